"""The authors' runs: a small CNN, 100 clients, 10 in a round.

A part of its own, for the variants on Fashion-MNIST and CIFAR-10. Local steps
are those of the authors' notebooks: momentum, weight decay, a rate that decays
within a round and starts again in the next, pools of 32 examples or more that
grow from a fifth to all of them. There are fewer of these steps, on smaller
images.

Orders are numbers of a program: losses times -1 put hard examples first, and a
pool that has all from the start is vanilla, in whatever order.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models

from ...harness.cells import Cell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import Summary, pivots
from .. import pooling
from . import claims as said
from .notebook_claims import claims, published

PART, ATTACKED = 'notebook', 'notebook, attacked'
LABELS = 'part', 'ranks', 'rule'
RULES = {'mean': byzjax.mean, 'median': byzjax.coordinate_median}
ATTACKS = {'none': 0.0, 'sign flip': 1.0}
SHARE = 0.2  # Of the pool at the start, unless it is all.
WEIGHT_DECAY = 5e-4


class LeNet5(nnx.Module):
  """Convolutions of 6 and 16 channels, dense layers of 120, 84 and K.

  Only the first convolution is pooled: the images are small.
  """

  def __init__(self, image_shape, num_classes: int, seed: int):
    rngs = nnx.Rngs(seed)
    height, width, channels = image_shape
    self.conv1 = models.Conv(channels, 6, 5, rngs=rngs)
    self.conv2 = models.Conv(6, 16, 5, padding='VALID', rngs=rngs)
    sizes = (16 * (height // 2 - 4) * (width // 2 - 4), 120, 84)
    self.hidden = nnx.List(
      [nnx.Linear(*pair, rngs=rngs) for pair in zip(sizes, sizes[1:])]
    )
    self.last = nnx.Linear(84, num_classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = jnp.swapaxes(x, 0, 3)
    # What is largest stays largest: the same as ReLU before pooling.
    x = jax.nn.relu(self.conv1.chwb(x, models.max_pool))
    x = jax.nn.relu(self.conv2.chwb(x))
    x = jnp.swapaxes(x, 0, 3)
    x = x.reshape(x.shape[0], -1)
    for layer in self.hidden:
      x = jax.nn.relu(layer(x))
    return self.last(x)


@functools.cache
def load(
  name: str, data_dir: str | None, k: int, num_train: int
) -> data.Dataset:
  """The first images for training, and all for tests; k x k pixels in one."""
  dataset = data.load(name, data_dir)
  return dataset._replace(
    train_images=pooling.pooled(dataset.train_images[:num_train], k),
    train_labels=dataset.train_labels[:num_train],
    test_images=pooling.pooled(dataset.test_images, k),
  )


def local_optimizer(
  learning_rate, momentum: float
) -> optax.GradientTransformation:
  """SGD as the authors' clients run it, anew in every round."""
  return optax.chain(
    optax.add_decayed_weights(WEIGHT_DECAY),
    optax.sgd(
      lambda step: learning_rate * (1 + 0.001 * step) ** -0.75, momentum
    ),
  )


def name_of(sign: float, initial_share: float) -> str:
  """The order of these numbers; all examples from the start are vanilla."""
  if initial_share == 1:
    return 'vanilla'
  return {-1: 'anti', 0: 'random', 1: 'curriculum'}[int(sign)]


def cell(
  settings,
  loss_per_example_of: Callable,
  part: str,
  ranks: str,
  rule: str,
  rates: Sequence[float],
  **grid: Sequence[float],
) -> Cell:
  n, size = settings.num_workers, settings.batch_size

  def make_round(task, key, learning_rate, sign, initial_share, attack):
    del key
    of_examples = loss_per_example_of(task.graphdef)
    sampler = data.curriculum(
      task.images,
      task.labels,
      pacing='linear',
      full_at=0.8,
      initial_share=initial_share,
      loss_per_example=lambda *of: sign * of_examples(*of),
      scale=task.scale,
      batch_size=size,
      num_local_steps=settings.local_steps,
      order='random' if ranks == 'random' else 'curriculum',
      min_pool=settings.min_pool,
    )
    f = jnp.where(attack > 0, settings.num_byzantine, 0)
    return byzjax.local_round(
      task.loss_fn,
      local_optimizer=local_optimizer(learning_rate, settings.momentum),
      local_state='reset',
      optimizer=optax.sgd(1.0),
      num_local_steps=settings.local_steps,
      num_workers=n,
      participation=settings.num_participants,
      sampler=sampler,
      aggregator=RULES[rule](),
      attack=byzjax.sign_flip(scale=10.0),
      byzantine=lambda step: jnp.arange(n) < f,
    )

  def describe(values):
    order = name_of(values['sign'], values['initial_share'])
    return {'order': order, **values}

  return Cell(
    labels=dict(zip(LABELS, (part, ranks, rule))),
    make_round=make_round,
    grid={'learning_rate': rates, **grid},
    load=functools.partial(
      load,
      settings.dataset,
      settings.data_dir,
      settings.pooling,
      settings.num_train,
    ),
    num_workers=n,
    rounds=settings.rounds if part == PART else settings.attacked_rounds,
    batch_size=size,
    partition='random_shards'
    if math.isinf(settings.skew)
    else f'dirichlet_by_worker(alpha={settings.skew})',
    is_local=True,
    num_evals=5,
    make_model=LeNet5,
    describe=describe,
  )


def define(settings, loss_per_example_of: Callable) -> list[Cell]:
  made = functools.partial(cell, settings, loss_per_example_of)
  rates = settings.learning_rates
  return [
    made(
      PART,
      'loss',
      'mean',
      rates,
      sign=[1.0, -1.0],
      initial_share=[SHARE],
      attack=[0.0],
    ),
    made(
      PART,
      'random',
      'mean',
      rates,
      sign=[0.0],
      initial_share=[SHARE, 1.0],
      attack=[0.0],
    ),
    *(
      made(
        ATTACKED,
        'loss',
        rule,
        rates[1:2] or rates,
        sign=[1.0],
        initial_share=[SHARE, 1.0],
        attack=list(ATTACKS.values()),
      )
      for rule in RULES
    ),
  ]


def keep(rows: Rows) -> Rows:
  """At all rates, the last row: so one sees where the best is."""
  return tables.keep(rows, tail=2, metrics=('accuracy', 'validation_accuracy'))


def tables_of(rows: Rows):
  """Accuracy and rates by order; accuracy by rate; under attack."""
  names = {number: name for name, number in ATTACKS.items()}
  accuracy, by_rate, attacked = (tables.Cells() for _ in range(3))
  for (part, order, rule, attack), runs in tables.split_by(
    rows, 'part', 'order', 'rule', 'attack'
  ):
    best = tables.tuned(runs, 'learning_rate')
    if part == ATTACKED:
      attacked[f'{order}, {rule}', names[attack]] = tables.percent(best)
      continue
    accuracy[order, 'here'] = tables.percent(best)
    accuracy[order, '1000 x rate'] = np.array(1000 * best[0]['learning_rate'])
    for rate, own in tables.split(runs, 'learning_rate').items():
      by_rate[order, f'{rate:g}'] = tables.percent(own)
  return accuracy, by_rate, attacked


def summarise(rows: Rows, settings) -> Summary:
  accuracy, by_rate, attacked = tables_of(rows)
  shown = tables.Cells(accuracy)
  theirs = published(settings)
  for order, value in theirs.items():
    shown[order, 'authors [N]'] = np.array(value)
    if order != 'curriculum':
      row = f'curriculum - {order}'
      over = accuracy['curriculum', 'here'] - accuracy[order, 'here']
      shown[row, 'here'] = over
      shown[row, 'authors [N]'] = np.array(theirs['curriculum'] - value)
  f, n = settings.num_byzantine, settings.num_workers
  rounds = f'{settings.attacked_rounds} rounds'
  return Summary(
    claims=claims(accuracy, attacked, settings),
    tables=pivots(
      [
        ('Test accuracy (%), and that of the authors', shown, 2),
        ('Test accuracy (%) at every learning rate', by_rate),
        (f'{f} of {n} clients attack, {rounds}: test accuracy (%)', attacked),
      ]
    ),
    figures={
      f'{picture_name(settings)}.png': lambda: picture(
        accuracy, attacked, theirs
      )
    },
  )


def picture_name(settings) -> str:
  is_skewed = settings.dataset == 'cifar10' and not math.isinf(settings.skew)
  return f'{settings.dataset}_skewed' if is_skewed else settings.dataset


def picture(accuracy, attacked, theirs):
  """The orders, with the authors' numbers as dots; then under attack."""
  figure, (axes,) = pictures.panels(1, 2, figsize=(10, 2.8))
  orders, under = axes
  bars = {order: accuracy[order, 'here'] for order in said.ORDERS}
  pictures.bars(orders, bars, 'test accuracy (%)')
  dots = [theirs[order] for order in said.ORDERS]
  orders.plot(dots, range(len(dots)), 'kD', label='authors')
  orders.legend(fontsize='small', loc='lower left')
  bars = {
    f'{row}, {attack}': values for (row, attack), values in attacked.items()
  }
  pictures.bars(under, bars, 'test accuracy (%)')
  under.set_title('with and without attackers')
  return figure
