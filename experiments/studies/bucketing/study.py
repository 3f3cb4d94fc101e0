r"""The official MNIST runs of bucketing, cell by cell (Karimireddy, He, Jaggi).

  python -m experiments.studies bucketing --only=rfa_IPM_0.9_s2 --data_dir=DATA
  python -m experiments.studies bucketing --only=cm_ALIE --publish \
    --data_dir=DATA --output_dir=DIR

A cell has the name that it has in the logs of the authors:

  RULE_ATTACK_MOMENTUM_sS      5 of 25 workers attack, 600 rounds (exp3)
  RULE_NA_SORTED_sS            24 honest workers, long-tailed classes (exp1)
  ATTACK_MOMENTUM_sS_SCALING   centered clipping, three radii (exp6)

where s is the size of a bucket, 0 for none. With --publish, the cells that
were run take their place among the committed rows, so that the table grows
from one sitting to the next.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import logs, tables
from ...reporting.summary import (
  Check,
  Claim,
  Summary,
  Table,
  claims_about,
  of_what_ran,
)
from . import official

PAPER = 'Karimireddy, He, Jaggi 2022, arXiv:2006.09365, run logs of the authors'
# The mean and the standard deviation of the pixels, as the authors have them.
MEAN, DEVIATION = 0.1307, 0.3081
RULES = ('cp', 'cm', 'rfa', 'krum')
ATTACKS = {
  'IPM': lambda: byzjax.inner_product_manipulation(epsilon=0.1),
  'ALIE': byzjax.alie,
  'BF': lambda: byzjax.sign_flip(own=True),
  'LF': lambda: byzjax.label_flip(10),
  'mimic': byzjax.mimic,
  'NA': lambda: None,
}
SCALINGS = {
  'None': lambda beta: 1.0,
  'linear': lambda beta: 1 / (1 - beta),
  'sqrt': lambda beta: (1 - beta) ** -0.5,
}
QUICK = {'dataset': 'digits', 'rounds': 30}
QUICK_CELLS = ('rfa_IPM_0.9_s2',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_seeds: int = option(1, 'Seeds in one program.', low=1)
  first_seed: int = option(0, 'Of these seeds; 1 and 2 with --only.', low=0)
  dataset: str = option('mnist', 'mnist; or digits, to try the study.')
  rounds: int = option(600, 'Of exp3; exp6 has 2 times, exp1 7.5.', low=30)
  validation: bool = False  # Nothing is tuned: all examples are trained on.

  @property
  def seeds(self) -> range:
    return range(self.first_seed, self.first_seed + self.num_seeds)


class Standardised(nnx.Module):
  """A network that sees pixels less their mean, over their deviation."""

  def __init__(self, model: nnx.Module):
    self.model = model

  def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
    return self.model((x - MEAN) / DEVIATION, rngs)


def make_model(image_shape, num_classes: int, seed: int) -> nnx.Module:
  return Standardised(
    models.make('dropout_cnn', image_shape, num_classes, seed=seed)
  )


def define(settings: Settings) -> list[Cell]:
  attacks = [name for name in ATTACKS if name != 'NA']
  attacked = [
    attacked_cell(settings, *parts)
    for parts in itertools.product(RULES, attacks, (0.9, 0.0), (0, 2))
  ]
  long_tail = [
    long_tail_cell(settings, *parts)
    for parts in itertools.product(('avg', *RULES), (False, True), (0, 2))
  ]
  radii = [
    radius_cell(settings, *parts)
    for parts in itertools.product(('ALIE', 'IPM'), (0, 2), SCALINGS)
  ]
  return [*attacked, *long_tail, *radii]


def attacked_cell(
  settings: Settings, rule_name: str, attack: str, beta: float, s: int
) -> Cell:
  """exp3: honest workers have one class or two."""
  return cell(
    settings,
    f'{rule_name}_{attack}_{beta}_s{s}',
    rule(rule_name, s, 10 * SCALINGS['linear'](beta), 5),
    ATTACKS[attack](),
    beta,
    rounds=settings.rounds,
  )


def radius_cell(settings: Settings, attack: str, s: int, scaling: str) -> Cell:
  """exp6: how the radius has to grow with the momentum; twice as long."""
  beta = 0.9
  return cell(
    settings,
    f'{attack}_{beta}_s{s}_{scaling}',
    rule('cp', s, 10 * SCALINGS[scaling](beta), 5),
    ATTACKS[attack](),
    beta,
    rounds=2 * settings.rounds,
  )


def long_tail_cell(
  settings: Settings, rule_name: str, is_sorted: bool, s: int
) -> Cell:
  """exp1: nobody attacks; class k keeps 0.5^k of its examples."""
  division = 'label_sorted' if is_sorted else 'random_shards'
  return cell(
    settings,
    f'{rule_name}_NA_{is_sorted}_s{s}',
    rule(rule_name, s, 10.0, 0),
    None,
    0.0,
    rounds=15 * settings.rounds // 2,
    num_workers=24,
    num_byzantine=0,
    partition=f'{division}(long_tail=0.5)',
    measure=long_tail_accuracy,
  )


def cell(
  settings: Settings,
  name: str,
  aggregator: byzjax.Aggregator,
  attack: Any,
  beta: float,
  *,
  rounds: int,
  num_workers: int = 25,
  num_byzantine: int = 5,
  **options: Any,
) -> Cell:
  def make_round(task, key):
    del key
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=num_workers,
      # PyTorch's momentum, a sum; attackers keep none.
      worker=optax.trace(beta) if beta else None,
      attack=attack,
      byzantine=num_byzantine if attack else None,
      byzantine_chain=not (attack and beta),
      aggregator=aggregator,
      optimizer=optax.sgd(0.01),
      needs_key=task.needs_key,
      worker_map='map',
    )

  del settings
  return Cell(
    labels={'cell': name},
    make_round=make_round,
    make_model=make_model,
    num_workers=num_workers,
    rounds=rounds,
    num_evals=max(rounds // 30, 1),
    batch_size=32,
    batches_per_pass=30,
    metrics=lambda state, info: {'train_loss': info.loss},
    **{'partition': honest_sorted, **options},
  )


def rule(name: str, s: int, radius: float, f: int) -> byzjax.Aggregator:
  """A rule as the authors run it; f stays what it was behind buckets."""
  alone = {
    'avg': byzjax.mean(),
    'cp': byzjax.centered_clipping(radius=radius, num_iterations=3),
    'cm': byzjax.coordinate_median(middle='lower'),
    'rfa': byzjax.geometric_median(
      num_iterations=8, smoothing=0.1, start='zeros'
    ),
    'krum': byzjax.krum(num_byzantine=f, distance_power=4),
  }[name]
  if not s:
    return alone
  return byzjax.pre_aggregate(byzjax.bucketing(bucket_size=s), alone)


def honest_sorted(labels, num_workers: int, seed: int) -> data.Partition:
  """Attackers have i.i.d. shards, honest workers those sorted by label."""
  of_attackers = data.random_shards(labels, num_workers, seed=seed)
  of_honest = data.label_sorted(labels, num_workers - 5)
  width = of_honest.indices.shape[1]
  few = [np.resize(row, width) for row in of_attackers.indices[:5]]
  return data.Partition(
    np.concatenate([few, of_honest.indices]).astype(np.int32),
    np.concatenate([of_attackers.sizes[:5], of_honest.sizes]),
  )


def long_tail_accuracy(task, params, images, labels) -> dict[str, jax.Array]:
  """The accuracy that the logs of exp1 have, in place of the usual one.

  Of class k, 0.5^k of the test examples; of these in the order of classes the
  first 1920, for the last batches are dropped. So classes 4 to 9 do not count.
  """
  members = labels[:, None] == jnp.arange(task.num_classes)[None]
  kept = jnp.floor(members.sum(0) * 0.5 ** jnp.arange(task.num_classes))
  number = jnp.cumsum(members, axis=0)[jnp.arange(labels.size), labels] - 1
  first = jnp.cumsum(kept) - kept
  counts = (number < kept[labels]) & (first[labels] + number < 1920)
  logits = jax.lax.map(
    lambda x: nnx.merge(task.graphdef, params)(x[None] / task.scale)[0],
    images.astype(jnp.float32),
    batch_size=500,
  )
  is_right = jnp.argmax(logits, axis=-1) == labels
  return {'accuracy': (is_right & counts).sum() / counts.sum()}


def worst_of_clipping(ours: tables.Cells) -> float:
  """With momentum 0.9; not a number before every attack was run."""
  mean = {
    attack: [
      accuracy.mean()
      for name, accuracy in ours.items()
      if name.startswith(f'cp_{attack}_0.9_')
    ]
    for attack in ATTACKS
    if attack != 'NA'
  }
  return min(map(min, mean.values())) if all(mean.values()) else np.nan


def keep(rows: Rows, settings: Settings) -> Rows:
  """Every evaluation: single ones swing, and curves are what is compared."""
  del settings
  return [
    {name: row[name] for name in ('cell', 'seed', 'round', 'accuracy')}
    for row in rows
  ]


def summarise(rows: Rows, settings: Settings) -> Summary:
  ours = tables.Cells(
    (name, official.last_five(of_cell))
    for name, of_cell in tables.split(rows, 'cell').items()
  )
  # Digits are for trying the program: there is nothing to compare them with.
  is_theirs = settings.dataset == 'mnist'
  lines = official.comparisons(ours) if is_theirs else []
  outside = official.outside(rows) if is_theirs else []
  return Summary(
    claims=of_what_ran(claims(ours, lines)),
    tables=[
      Table(
        'Accuracy (%), mean of the last five evaluations', tables.plain(lines)
      ),
      Table(
        'Evaluations outside of the lowest and highest official seed',
        tables.plain(outside),
      ),
    ],
    figures={
      'curves.png': lambda: logs.figure(rows, official.FOLDER, 'round', 30)
    },
  )


def claims(ours: tables.Cells, lines: Rows) -> list[Claim]:
  most = max(map(len, ours.values()))
  seeds = '1 seed' if most == 1 else f'1 to {most} seeds'
  claim = claims_about('bucketing', PAPER, f'MNIST, {seeds}')
  inside = [line['within'] == 'yes' for line in lines]

  def gain(rule: str) -> float:
    # Means, for one of the two cells may have been run with more seeds.
    with_buckets, without = (
      ours[f'{rule}_IPM_0.0_{s}'].mean() for s in ('s2', 's0')
    )
    return float(with_buckets - without)

  return [
    claim(
      'its official MNIST runs, cell by cell',
      Check(
        f'percent of {len(lines)} cells within 3 deviations and 2 points'
        ' of the official mean',
        100 * np.mean(inside or [np.nan]),
        at_least=90,
      ),
      Check(
        'cells that were run',
        len(lines),
        at_least=22,
        why='the others are still to be run',
      ),
      published=f'{len(logs.means(official.FOLDER))} cells of exp1 and exp3',
      evidence='L',
    ),
    claim(
      'buckets of two help where workers have one class each',
      Check(
        'points that buckets give RFA under IPM without momentum',
        gain('rfa'),
        at_least=60,
      ),
      Check(
        'points that buckets give the median under IPM without momentum',
        gain('cm'),
        at_least=8,
      ),
      published='RFA under IPM: 14.6 without, 90.6 with',
      evidence='L',
    ),
    claim(
      'with worker momentum it stands every attack on sorted data',
      Check(
        'its worst cell with momentum 0.9, % right',
        worst_of_clipping(ours),
        at_least=96,
      ),
      Check(
        'the best of the other rules under ALIE with momentum 0.9'
        ' and no buckets, % right',
        # Not a number before all of them were run.
        np.max([ours[f'{r}_ALIE_0.9_s0'].mean() for r in RULES[1:]]),
        at_most=20,
      ),
      method='centered clipping with worker momentum',
      published='97.6 to 98.0',
      evidence='L',
    ),
  ]
