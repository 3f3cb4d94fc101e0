r"""Centered clipping and worker momentum against attacks (Karimireddy et al.).

  python -m experiments.studies learning_from_history --check    # digits
  python -m experiments.studies learning_from_history --parts=attacks \
      --dataset=mnist --data_dir=FOLDER --rounds=600

Three parts: rules that fail on a long tail without any attacker (failure);
attacks x rules x momentum, with the mean as control (attacks), among them the
drift that is the same in every round; and the radius of centered clipping over
four decades (radius).

Momenta are averages, `m <- beta m + (1 - beta) g`, as in the paper. With
--sum_momentum they sum, as in the official code: learning rate and radius are
then those of sums.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import optax

import byzjax

from ...harness import specs
from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import Summary, pivots
from .. import pooling
from . import attacks, claims
from .claims import AUTOMATIC, RULES

PARTS = ('failure', 'attacks', 'radius')
SHARDS = ('iid', 'label_sorted')
CONTROLS = ('mean', 'coordinate_median', 'geometric_median')
# Those that cost some rule something.
DRAWN = ('none', 'ipm', 'alie, many', 'drift, many', '-10', 'constant 1e6')
QUICK = {'rounds': 4, 'momenta': (0.0,), 'radii': (1.0,), 'num_workers': 10}
QUICK_CELLS = (
  'attacks, iid, alie, many, mean',
  'radius, iid, -10 mean, mean',
)


TABLE = {
  'parts': ('attacks',),
  'attacks': attacks.TABLE,
  'rules': (*RULES, AUTOMATIC),
  'learning_rate': 0.1,
}
SMALL = {'model': 'cnn', 'batch_size': 8, 'pooling': 2}
# Without attackers, on the data of the paper's figure; and its attacks.
VARIANTS = {
  'fashion_mnist': {
    'dataset': 'fashion_mnist',
    **TABLE,
    'batch_size': 16,
    'rounds': 400,
  },
  'fashion_mnist_cnn': {
    'dataset': 'fashion_mnist',
    **TABLE,
    **SMALL,
    'rounds': 300,
  },
  'cifar10': {'dataset': 'cifar10', **TABLE, **SMALL, 'rounds': 400},
  'mnist': {
    'dataset': 'mnist',
    'parts': ('failure',),
    'tail': 0.5,
    'batch_size': 32,
    'learning_rate': 0.1,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  parts: tuple[str, ...] = option(PARTS, 'Which parts to run.')
  num_workers: int = option(25, 'n.', low=5)
  rounds: int = option(400, 'Rounds; 15/4 as many for failure.', low=1)
  batch_size: int = option(8, 'Examples per worker and round.', low=1)
  learning_rate: float = option(0.5, 'Times 0.1 after 75 % of rounds.', low=0)
  momenta: tuple[float, ...] = option(
    (0.0, 0.9, 0.99), 'Decays of worker momentum.'
  )
  radius: float = option(1.0, 'Of centered clipping, in attacks.', low=0)
  radii: tuple[float, ...] = option(
    (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0), 'Radii in part radius.'
  )
  attacks: tuple[str, ...] = option(tuple(attacks.ATTACKS), 'In part attacks.')
  rules: tuple[str, ...] = option(RULES, 'In part attacks.')
  pooling: int = option(1, 'Images of means of k x k pixels.', low=1)
  tail: float = option(0.6, 'In failure, class k keeps tail^k of its images.')
  sum_momentum: bool = option(False, 'Momenta sum, as in official code.')


def define(settings: Settings) -> list[Cell]:
  for part in settings.parts:
    if part not in PARTS:
      raise ValueError(f'--parts: {part} is none of {PARTS}')
  once = {'radius': [settings.radius]}
  tried: dict[str, Any] = {'momentum': settings.momenta, **once}
  radius = {'momentum': [0.0, 0.9], **once}
  failure = {'momentum': [0.0], 'radius': [10.0]}
  cells = [
    *(
      cell(settings, 'failure', shards, 'none', name, failure)
      for shards in long_tails(settings)
      for name in RULES
      if name != 'trimmed_mean'  # Of nothing: the mean.
    ),
    *(
      cell(settings, 'attacks', 'iid', attack, name, tried)
      for attack in settings.attacks
      for name in settings.rules
    ),
    *(
      cell(settings, 'radius', 'iid', attack, name, radius | more)
      for attack in attacks.RADIUS_ATTACKS
      for name, more in [
        *((control, {}) for control in CONTROLS),
        ('centered_clipping', {'radius': settings.radii}),
      ]
    ),
  ]
  return [cell for cell in cells if cell.labels['part'] in settings.parts]


def long_tails(settings: Settings) -> list[str]:
  """How the classes are thinned and divided in part failure."""
  return [f'{shards}(long_tail={settings.tail:g})' for shards in SHARDS]


def cell(
  settings: Settings, part: str, shards: str, attack: str, name: str, grid
) -> Cell:
  failure, total = part == 'failure', settings.num_workers
  # 5 or 11 of 25; Krum admits no more.
  f = (total - 3) // 2 if attack.endswith('many') else total // 5
  f = 0 if failure else f
  num_workers = total - failure  # 24 divide into even shards.
  rounds = settings.rounds * 15 // 4 if failure else settings.rounds
  # On CPUs convolutions are faster one after the other.
  map_kind: Any = 'vmap' if settings.model == 'mlp' else 'map'

  def make_round(task, key, momentum, radius):
    del key
    scale = 1 / (1 - momentum) if settings.sum_momentum else 1.0
    schedule = optax.piecewise_constant_schedule(
      settings.learning_rate * scale, {int(0.75 * rounds): 0.1}
    )
    if name == 'centered_clipping':
      rule = byzjax.centered_clipping(
        radius=radius / scale, num_iterations=3 if failure else 1
      )
    elif name == AUTOMATIC:
      rule = byzjax.centered_clipping(radius=1.0, quantile=0.5)
    else:
      rule = specs.aggregator(name, '', f)
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=num_workers,
      worker=byzjax.worker_momentum(momentum),
      attack=attacks.ALL[attack](task.num_classes),
      byzantine=0 if attack.startswith('none') else f,
      aggregator=rule,
      optimizer=optax.sgd(schedule),
      worker_map=map_kind,
    )

  labels = {'part': part, 'partition': shards, 'attack': attack, 'rule': name}
  return Cell(
    labels=labels,
    make_round=make_round,
    grid=grid,
    num_workers=num_workers,
    rounds=rounds,
    batch_size=settings.batch_size,
    partition=shards,
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    num_evals=20 if settings.model == 'mlp' else 1,
    run_map=map_kind,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """A row for a case, a momentum and a seed; a column for a rule or radius."""
  # To evaluate a CNN takes as long as many rounds: it is done once.
  tail = 3 if settings.model == 'mlp' else 1
  kept: dict[tuple, dict[str, Any]] = {}
  for row in tables.keep(
    rows, tail=tail, metrics=('accuracy', 'balanced_accuracy')
  ):
    part, name, failure = row['part'], row['rule'], row['part'] == 'failure'
    if part == 'radius' and name == 'centered_clipping':
      name = f'radius {row["radius"]:g}'
    case = row['partition' if failure else 'attack']
    about = {'part': part, 'case': case}
    about |= {k: row[k] for k in ('momentum', 'seed', 'round')}
    score = row['balanced_accuracy' if failure else 'accuracy']
    kept.setdefault(tuple(about.values()), about)[name] = score
  return list(kept.values())


def summarise(rows: Rows, settings: Settings) -> Summary:
  found = scores_of(rows, settings)
  titles = (
    'No attacker, long tail: class-balanced accuracy (%)',
    'Test accuracy (%) by attack and momentum',
    'Test accuracy (%) by radius of centered clipping',
  )
  few, data = settings.num_workers // 5, data_of(settings)
  return Summary(
    claims=claims.of_parts(found, long_tails(settings), few, data),
    tables=pivots(zip(titles, found.values())),
    figures={
      name: functools.partial(pictures.heatmap, table, title)
      for name, title, table in maps(settings, *found.values())
      if table
    },
  )


def data_of(settings: Settings) -> str:
  model = '' if settings.model == 'mlp' else f'_{settings.model}'
  return f'{settings.dataset}{model}'


def scores_of(rows: Rows, settings: Settings) -> dict[str, tables.Cells]:
  """Per part: percent by case and momentum, and by rule or radius."""
  found = {part: tables.Cells() for part in PARTS}
  radii = [f'radius {radius:g}' for radius in settings.radii]
  for (part, case, momentum), runs in tables.split_by(
    rows, 'part', 'case', 'momentum'
  ):
    line = case if part == 'failure' else f'{case}, {momentum:g}'
    for name in (*settings.rules, *radii):
      scores = np.array([100 * row.get(name, np.nan) for row in runs])
      if not np.isnan(scores).all():
        found[part][line, name] = scores
  return found


def maps(settings: Settings, failure, attacked, radius) -> list[tuple]:
  """File, title and cells of the pictures; the cells may be none."""
  own = f'{data_of(settings)}.png'
  is_whole = AUTOMATIC in settings.rules
  drawn = {
    line: scores
    for line, scores in attacked.items()
    if is_whole or line[0].startswith(DRAWN)
  }
  unattacked = {} if attacked else failure
  return [
    (own if is_whole else 'attacks.png', 'Attack, momentum', drawn),
    ('radius.png', 'Attack, momentum', radius),
    (own, 'Nobody attacks: class-balanced accuracy', unattacked),
  ]
