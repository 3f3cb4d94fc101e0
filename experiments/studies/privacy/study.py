r"""What privacy costs where workers may lie (Allouah et al. 2023).

  python -m experiments.studies privacy --data_dir=FOLDER
  python -m experiments.studies privacy --dataset=digits --rounds=100

Every worker clips the gradient of each example and adds noise, then come its
momentum, the attack and the rule (SAFE-DSHB). The network is one linear layer
on pooled images. Batches are Poisson samples, so that epsilon can be counted:
by the extra `byzjax[privacy]`, when rows are committed. Every cell has its own
learning rate for every amount of noise, chosen on a validation split that is
not part of what epsilon counts.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, theory

from ...harness.cells import Cell, Rows
from ...harness.poisson import on_poisson_batches
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table
from .. import linear, opponents, pooling

PAPER = 'Allouah, Guerraoui, Gupta, Pinot, Stephan 2023, arXiv:2302.04787'
NOBODY = 'none'
ATTACKS: dict[str, Callable] = {
  'alie': lambda: byzjax.alie(z=1.5),
  'foe': lambda: byzjax.inner_product_manipulation(epsilon=0.5),
}


RULES: dict[str, Callable] = {
  'mean': lambda f: byzjax.mean(),
  'median': lambda f: byzjax.coordinate_median(),
  'geometric median': lambda f: byzjax.geometric_median(),
  'mixing, trimmed mean': opponents.mixing_trimmed_mean,
  'covariance filter': lambda f: byzjax.covariance_filter(num_byzantine=f),
}
ROBUST = [*RULES][1:]
# In these the momentum is left out, too, under the first attack.
WITHOUT_MOMENTUM = ROBUST[2:]
METRICS = ('accuracy', 'validation_accuracy', 'sampling_rate')
QUICK = {'dataset': 'digits', 'rounds': 8, 'num_evals': 4}
QUICK_CELLS = ('6, alie, median', '0, none, median')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  dataset: str = option('fashion_mnist', 'Or digits, to try the study.')
  num_workers: int = option(20, 'n.', low=3)
  num_byzantine: tuple[int, ...] = option((0, 6), '0 and others.')
  noise_multipliers: tuple[float, ...] = option(
    (0.0, 1.0, 2.0, 4.0), 'Standard deviations of the noise over the clip norm.'
  )
  num_examples: int = option(500, 'Of each worker.', low=1)
  clip_norm: float = option(1.0, 'The largest norm of a gradient.', low=0)
  delta: float = option(1e-5, 'The probability that epsilon leaves out.', low=0)
  rounds: int = option(200, 'Rounds of training.', low=1)
  batch_size: int = option(25, 'Examples per worker and round, on average.')
  learning_rates: tuple[float, ...] = option(
    (0.1, 0.3, 1.0, 3.0), 'To choose from.'
  )
  momentum: float = option(0.9, 'Decay of worker momentum.')
  pooling: int = option(4, 'Pixels of an image, k x k, that are one.', low=1)
  num_evals: int = option(
    10, 'Evaluations of a run; the last 3 are averaged.', low=3
  )


def define(settings: Settings) -> list[Cell]:
  first = next(iter(ATTACKS))
  cells = []
  for f in settings.num_byzantine:
    for attack in ATTACKS if f else [NOBODY]:
      cells += [cell(settings, f, attack, rule) for rule in RULES]
    if f:
      cells += [
        cell(settings, f, first, rule, momentum=0.0)
        for rule in WITHOUT_MOMENTUM
      ]
  return cells


def cell(
  settings: Settings,
  f: int,
  attack: str,
  rule: str,
  momentum: float | None = None,
) -> Cell:
  momentum = settings.momentum if momentum is None else momentum

  def make_round(task, key, learning_rate, noise_multiplier):
    del key
    training = byzjax.robust_round(
      task.loss_fn,
      num_workers=settings.num_workers,
      value_and_grad=byzjax.differentially_private_gradient(
        task.loss_fn,
        clip_norm=settings.clip_norm,
        noise_multiplier=noise_multiplier,
        batch_size=settings.batch_size,
      ),
      worker=byzjax.worker_momentum(momentum),
      attack=ATTACKS[attack]() if f else None,
      byzantine=f,
      aggregator=RULES[rule](f),
      optimizer=optax.sgd(learning_rate),
    )
    return on_poisson_batches(training, task, settings.batch_size)

  def sampling_rate(task, params, key):
    del params, key
    smallest = task.partition.sizes.min()
    return {'sampling_rate': jnp.minimum(settings.batch_size / smallest, 1.0)}

  return Cell(
    labels={
      'num_byzantine': f,
      'attack': attack,
      'rule': rule,
      'momentum': momentum,
    },
    make_round=make_round,
    grid={
      'learning_rate': settings.learning_rates,
      'noise_multiplier': settings.noise_multipliers,
    },
    num_workers=settings.num_workers,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    partition=functools.partial(few_each, settings),
    is_local=True,
    num_evals=settings.num_evals,
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    make_model=linear.network,
    probe=sampling_rate,
  )


def few_each(
  settings: Settings, labels: np.ndarray, num_workers: int, seed: int
) -> data.Partition:
  """So many examples of each worker, at nobody else; or equal shards."""
  shards = data.random_shards(labels, num_workers, seed=seed)
  few = min(settings.num_examples, int(np.min(shards.sizes)))
  return data.Partition(
    shards.indices[:, :few], np.full(num_workers, few, np.int32)
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """The runs with the learning rates that were chosen, and their epsilon."""
  last = tables.keep(rows, metrics=METRICS)
  keys = (*define(settings)[0].labels, 'noise_multiplier')
  best = tables.tuned_each(last, keys, 'learning_rate')
  return tables.added(best, functools.partial(_private, settings))


@functools.cache
def _epsilon(noise, rate, rounds, delta) -> float:
  """Not a number where its accountant is not installed."""
  try:
    return theory.privacy_epsilon(
      noise_multiplier=noise,
      sampling_rate=rate,
      num_rounds=rounds,
      delta=delta,
    )
  except ImportError:
    return float('nan')


def _private(settings: Settings, run: Rows) -> dict[str, float]:
  (row,) = run
  if not row['noise_multiplier']:
    return {'epsilon': float('inf')}
  epsilon = _epsilon(
    row['noise_multiplier'],
    row['sampling_rate'],
    settings.rounds,
    settings.delta,
  )
  return {'epsilon': epsilon}


def accuracies(rows: Rows, momentum: float) -> tables.Cells:
  """By number of attackers, attack, rule and noise; percent, by seed."""
  here = tables.select(rows, momentum=momentum)
  keys = ('num_byzantine', 'attack', 'rule', 'noise_multiplier')
  return tables.Cells(
    (labels, tables.percent(runs))
    for labels, runs in tables.split_by(here, *keys)
  )


def worst(of: tables.Cells, f: int, rule: str, noise: float) -> np.ndarray:
  """The accuracy under the attack that is worst on average over seeds."""
  found = [of[f, a, rule, noise] for a in (ATTACKS if f else [NOBODY])]
  return min(found, key=np.mean)


def summarise(rows: Rows, settings: Settings) -> Summary:
  of = accuracies(rows, settings.momentum)
  fs, noises = settings.num_byzantine, settings.noise_multipliers
  names = _names(rows)
  table = tables.Cells(
    ((f'f = {f}, {rule}', names[noise]), worst(of, f, rule, noise))
    for f in fs
    for rule in RULES
    for noise in noises
  )
  each = tables.Cells(
    ((f'{f}, {attack}, {rule}', names[noise]), of[f, attack, rule, noise])
    for f in fs
    for attack in (ATTACKS if f else [NOBODY])
    for rule in RULES
    for noise in noises
  )
  rates = tables.Cells(
    (
      (', '.join(map(str, labels[:-1])), names[labels[-1]]),
      tables.final(runs, 'learning_rate'),
    )
    for labels, runs in tables.split_by(
      rows, 'num_byzantine', 'attack', 'rule', 'momentum', 'noise_multiplier'
    )
  )
  without = accuracies(rows, 0.0)
  first = next(iter(ATTACKS))
  alone = tables.Cells(
    ((f'f = {f}, {rule}', names[noise]), values)
    for (f, _, rule, noise), values in without.items()
  )
  return Summary(
    claims=claims(of, without, settings),
    tables=[
      Table(title, tables.pivot(cells))
      for title, cells in (
        ('Test accuracy (%) under the worst attack', table),
        ('And under each: f, attack, rule', each),
        (f'Without momentum, under {first}', alone),
        ('Learning rates that were chosen', rates),
      )
      if cells
    ],
    figures={'privacy.png': lambda: picture(of, names, settings)},
  )


def _names(rows: Rows) -> dict[float, str]:
  """The largest epsilon of every amount of noise, as the name of a column."""
  of_noise = tables.split(rows, 'noise_multiplier')
  return {
    noise: f'z {noise:g}, eps {max(tables.column(runs, "epsilon")):.3g}'
    for noise, runs in of_noise.items()
  }


def claims(
  of: tables.Cells, without: tables.Cells, settings: Settings
) -> list[Claim]:
  few, most = settings.num_byzantine[1], settings.num_byzantine[-1]
  low, middle, high = settings.noise_multipliers[1:]
  best = {
    (f, noise): max((worst(of, f, rule, noise) for rule in ROBUST), key=np.mean)
    for f in settings.num_byzantine
    for noise in settings.noise_multipliers
  }

  def cost(f: int, noise: float) -> float:
    """Points of the best rule below itself without noise and attackers."""
    return float(np.median(best[0, 0.0] - best[f, noise]))

  def over(rule: str, other: str) -> float:
    return float(
      np.median(worst(of, few, rule, high) - worst(of, few, other, high))
    )

  def gain(rule: str) -> float:
    place = (few, next(iter(ATTACKS)), rule, middle)
    return float(np.median(of[place] - without[place]))

  on = settings.dataset
  return [
    Claim(
      '',
      'privacy and robustness cost more together than one by one',
      f'{PAPER}, abstract',
      on,
      [
        Check('points that little noise costs alone', cost(0, low), at_most=5),
        Check(
          f'points that {few} attackers cost alone', cost(few, 0.0), at_most=5
        ),
        Check(
          f'points that {most} attackers and much noise cost beyond the sum',
          cost(most, high) - cost(most, 0.0) - cost(0, high),
          at_least=5,
          why='the best rule averages the noise of n - f messages away',
        ),
      ],
    ),
    Claim(
      '',
      'a rule on the largest eigenvalue stands the noise, the median does not',
      f'{PAPER}, abstract',
      on,
      [
        Check(
          'points of the covariance filter over the median',
          over('covariance filter', 'median'),
          at_least=2,
        ),
        Check(
          'points over mixing and trimmed mean',
          over('covariance filter', 'mixing, trimmed mean'),
          at_least=0,
        ),
      ],
    ),
    Claim(
      '',
      'worker momentum recovers what attackers win by the noise',
      PAPER,
      on,
      [
        Check(
          f'points of momentum, {rule}',
          gain(rule),
          at_least=3,
          why='ALIE does no harm here, so there is nothing to recover',
        )
        for rule in WITHOUT_MOMENTUM
      ],
    ),
  ]


def picture(of: tables.Cells, names: dict[float, str], settings: Settings):
  """Accuracy by epsilon under the worst attack, a panel for every f."""
  noises = settings.noise_multipliers
  fs = settings.num_byzantine
  figure, axes = pictures.panels(1, len(fs), figsize=(11, 3.6), sharey=True)
  for panel, f in zip(axes[0], fs):
    series = {
      rule: [worst(of, f, rule, noise) for noise in noises] for rule in RULES
    }
    pictures.spread_over(panel, range(len(noises)), series)
    panel.set_xticks(range(len(noises)), [names[noise] for noise in noises])
    panel.set_title(f'{f} of {settings.num_workers} attack')
  axes[0, 0].set_ylabel('test accuracy (%)')
  axes[0, -1].legend(fontsize=8)
  return figure
