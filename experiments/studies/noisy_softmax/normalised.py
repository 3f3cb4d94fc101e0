"""How much noise, in a network whose features keep their length.

Without normalisation large noise makes features short, and with them itself.
Here the root mean square of what the last layer is given is fixed, the last
layer has no bias, and every amount of noise has the learning rate that is best
for it on a validation split. One worker knows its few examples by heart.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models, objectives

from ...harness.cells import Cell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import OURS, Check, Summary, Table, claims_about
from .. import pooling
from .claims import PAPER

METRICS = (
  *('accuracy', 'validation_accuracy', 'train_loss'),
  *('target_probability', 'early_probability', 'length'),
)
NAMES = ('RMSNorm', 'none')


class Network(nnx.Module):
  """A hidden layer and the features, each with RMSNorm or without, ReLU.

  The norm has no scale to be learnt: noise would make that small in its turn.
  """

  def __init__(self, pixels: int, width: int, num_classes: int, norm, *, rngs):
    self.layers = nnx.List(
      [nnx.Linear(a, width, rngs=rngs) for a in (pixels, width)]
    )
    self.norms = nnx.List(
      [nnx.RMSNorm(width, use_scale=False, rngs=rngs) for _ in self.layers]
      if norm == 'RMSNorm'
      else []
    )
    self.classifier = nnx.Linear(width, num_classes, use_bias=False, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.classify(self.features(x))

  def features(self, x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    for i, layer in enumerate(self.layers):
      x = jax.nn.relu(layer(x))
      if self.norms:
        x = self.norms[i](x)
    return x

  def classify(self, z: jax.Array) -> jax.Array:
    return self.classifier(z)


def few(partition: data.Partition, examples: int) -> data.Partition:
  """The first examples of every worker."""
  indices, sizes = map(jnp.asarray, partition)
  return data.Partition(indices[:, :examples], jnp.minimum(sizes, examples))


def on_few(training, task, key: jax.Array, settings: Any):
  """The training, with batches of the first examples of every worker."""

  def step(state, partition, round_key):
    batch = data.sample_batch(
      task.images,
      task.labels,
      few(partition, settings.examples),
      jax.random.fold_in(key, state.step),
      settings.batch_size,
      scale=task.scale,
    )
    return training.step(state, batch, round_key)

  return training._replace(step=step)


def without_noise(
  task, params, examples: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Features and the target probability, on the examples that workers have."""
  chosen = few(task.partition, examples).indices.reshape(-1)
  images = task.images[chosen].astype(jnp.float32) / task.scale
  features, classify = models.features_and_classifier(task.graphdef)
  z = features(params, images)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    classify(params, z), task.labels[chosen]
  )
  return z, {'target_probability': jnp.exp(-losses).mean()}


def define(settings: Any) -> list[Cell]:
  return [cell(settings, norm) for norm in NAMES]


def cell(settings: Any, norm: str) -> Cell:
  def make_round(task, key, square, learning_rate):
    features, _ = models.features_and_classifier(task.graphdef)
    objective = objectives.noisy_softmax(
      features,
      models.classifier_weights(task.graphdef),
      alpha=jnp.sqrt(square),
    )

    def rate(step):
      return learning_rate * (1 - step / settings.rounds)

    training = byzjax.robust_round(
      objective,
      worker=byzjax.worker_momentum(settings.momentum),
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(rate),
      num_workers=1,
    )
    return on_few(training, task, key, settings)

  def probe(task, params, key):
    del key
    z, probability = without_noise(task, params, settings.examples)
    return {**probability, 'length': jnp.linalg.norm(z, axis=1).mean()}

  def network(shape, num_classes: int, seed: int) -> Network:
    return Network(
      math.prod(shape), settings.width, num_classes, norm, rngs=nnx.Rngs(seed)
    )

  return Cell(
    labels={'norm': norm},
    make_round=make_round,
    grid={
      'square': settings.squares,
      'learning_rate': settings.learning_rates,
    },
    num_workers=1,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    partition='random_shards',
    is_local=True,
    num_evals=4,
    make_model=network,
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    probe=probe,
  )


def keep(rows: Rows, settings: Any) -> Rows:
  """The last row of every run; what its first quarter ended with beside it."""
  del settings

  def of_run(run):
    return {'early_probability': run[0]['target_probability']}

  return tables.keep(tables.added(rows, of_run), tail=1, metrics=METRICS)


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
  """The median, and order statistics around it that miss it in < 5 %.

  That the k-th of n numbers is above the median has the probability of fewer
  than k heads of n coins; the k-th from the top has the same on the other side.
  """
  ordered, n = np.sort(values), len(values)
  heads = np.cumsum([math.comb(n, k) for k in range(n + 1)]) / 2**n
  inside = max(int(np.searchsorted(heads, 0.025, side='right')), 1)
  low, high = ordered[inside - 1], ordered[n - inside]
  return float(np.median(values)), float(low), float(high)


def by_amount(rows: Rows, settings: Any) -> tables.Cells:
  """By column, network and alpha², per seed, at the best rate.

  `gain` is the accuracy over no noise in points, paired by seed.
  """
  found, columns = tables.Cells(), ('learning_rate', *METRICS)
  for (norm, square), part in tables.split_by(rows, 'norm', 'square'):
    best = tables.tuned(part, 'learning_rate')
    for column in columns:
      found[column, norm, square] = tables.final(best, column)
  for norm in NAMES:
    none = found['accuracy', norm, settings.squares[0]]
    for square in settings.squares:
      apart = found['accuracy', norm, square] - none
      found['gain', norm, square] = 100 * apart
  return found


def summarise(rows: Rows, settings: Any) -> Summary:
  found = by_amount(rows, settings)
  claim = claims_about('Noisy Softmax', PAPER, settings.dataset)
  return Summary(
    claims=[
      claim(
        'noise of the right amount gains over none, and over much',
        *checks_of_amount(found, settings),
      ),
      claim(
        'the training loss is higher, the target probability grows later',
        *checks_of_training(found, settings),
      ),
      claim(
        'normalised features withstand noise that makes others collapse',
        *checks_of_collapse(found),
        **OURS,
      ),
    ],
    tables=[
      Table(
        f'Points gained over no noise, {settings.num_seeds} seeds: median and'
        ' its 95 % interval',
        tables.plain(lines_of_gain(found, settings)),
      ),
      Table('At the chosen rates', tables.pivot(states(found, settings), 2)),
    ],
    figures={f'{settings.dataset}.png': lambda: picture(settings, found)},
  )


def checks_of_amount(found: tables.Cells, settings: Any) -> list[Check]:
  """Of the amount that is best on the validation split."""
  norm, positive = NAMES[0], settings.squares[1:]
  scores = [found['validation_accuracy', norm, s].mean() for s in positive]
  amount = positive[int(np.argmax(np.nan_to_num(scores)))]
  much, gain = max(positive), found['gain', norm, amount]
  median, low, _ = median_interval(gain)
  return [
    Check(
      'median points gained, alpha² chosen on the validation split',
      median,
      at_least=0.2,
    ),
    Check('lower end of its interval', low, at_least=0),
    Check(
      f'median points over alpha² {much:g}',
      float(np.median(gain - found['gain', norm, much])),
      at_least=0.2,
    ),
  ]


def checks_of_training(found: tables.Cells, settings: Any) -> list[Check]:
  noise, none = settings.noise, settings.squares[0]
  loss, early = (
    [found[column, NAMES[0], square] for square in (noise, none)]
    for column in ('train_loss', 'early_probability')
  )
  return [
    Check(
      f'times the loss, alpha² {noise:g}, median',
      float(np.median(loss[0] / loss[1])),
      at_least=1.5,
    ),
    Check(
      'points of probability less at a quarter of the rounds, median',
      float(np.median(100 * (early[1] - early[0]))),
      at_least=1,
    ),
  ]


def checks_of_collapse(found: tables.Cells) -> list[Check]:
  return [
    Check(
      f'{norm}: median points gained, alpha² 1',
      float(np.median(found['gain', norm, 1.0])),
      **bound,
      why='so much noise costs accuracy, though nothing collapses',
    )
    for norm, bound in zip(NAMES, ({'at_least': -1}, {'at_most': -1}))
  ]


def lines_of_gain(found: tables.Cells, settings: Any) -> Rows:
  return [
    {
      'network': norm,
      'alpha²': square,
      'rate': float(found['learning_rate', norm, square][0]),
      'accuracy': float(100 * found['accuracy', norm, square].mean()),
      'median gain': middle,
      'from': lower,
      'to': upper,
      'mean gain': float(gain.mean()),
    }
    for norm in NAMES
    for square in settings.squares
    for gain in [found['gain', norm, square]]
    for middle, lower, upper in [median_interval(gain)]
  ]


def states(found: tables.Cells, settings: Any) -> tables.Pivot:
  """What training has come to."""
  return {
    (f'{norm}, alpha² {square:g}', name): times * found[column, norm, square]
    for norm in NAMES
    for square in settings.squares
    for name, column, times in [
      ('p early, %', 'early_probability', 100),
      ('p at end, %', 'target_probability', 100),
      ('training loss', 'train_loss', 1),
      ('|X|', 'length', 1),
    ]
  }


def picture(settings: Any, found: tables.Cells):
  """Points gained by the amount of noise: medians and intervals."""
  figure, ((axes,),) = pictures.panels(1, 1, figsize=(7, 4))
  positive = settings.squares[1:]
  for norm, marker in zip(NAMES, ('o-', 's--')):
    gains = [median_interval(found['gain', norm, s]) for s in positive]
    middle, low, high = np.array(gains).T
    axes.errorbar(
      positive,
      middle,
      [middle - low, high - middle],
      fmt=marker,
      capsize=3,
      label=norm,
    )
  axes.axhline(0, color='gray', linewidth=1)
  axes.set_yscale('symlog', linthresh=2)
  axes.set(xscale='log', xlabel='alpha²', ylabel='points gained (median)')
  axes.legend(title='normalisation')
  return figure
