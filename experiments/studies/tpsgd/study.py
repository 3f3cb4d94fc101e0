r"""tpSGD: layers that learn from local targets (Lomnitz et al.).

  python -m experiments.studies tpsgd --check                      # digits
  python -m experiments.studies tpsgd --variant=mnist --data_dir=FOLDER

Networks with tanh learn by backpropagation (bp), by target projection with the
residuals l2 and l1, and by direct random target projection (drtp), all by SGD
with momentum; or only their last layer learns (frozen). First perceptrons of
several depths, a convolutional and a recurrent network, each with one worker.
Then two of ten workers attack, before the mean or a robust rule. The learning
rate, and what hidden layers have of it, are the best of a few on a validation
split, for every network and method, and under every attack.

The variant mnist (module `targets`) has targets behind pooling, on random
readouts and at the last step, beside those of the digits, without attackers.
"""

import dataclasses
import functools

import numpy as np

import byzjax

from ...harness.cells import Cell, OwnCell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import (
  OURS,
  Check,
  Claim,
  Summary,
  claims_about,
  pivots,
)
from .. import opponents
from . import parts, targets

METHODS = ('bp', 'l2', 'l1', 'drtp', 'frozen')
LEARNT = ('l2', 'l1')  # From projected targets.
# Why predictions fell short, by network.
WHY = {
  'cnn': 'an artefact: a target for every pixel, before pooling',
  'rnn': 'likely an artefact: a target at every time step',
}
ATTACKED = 'mlp 2'
ROBUST = 'nnm, median'
LOUD = {'sign flip': lambda: byzjax.sign_flip(scale=10.0)}
ATTACKS = opponents.ATTACKS | LOUD
LABELS = 'part', 'network', 'method', 'attack', 'rule'
QUICK = {'rounds': 4, 'attacked_rounds': 4, 'shares': (1.0,)}
QUICK_CELLS = ('mlp 1, l2', 'rnn, l1', 'l2, sign flip, nnm')
PARTS = ('methods', 'targets')
SOURCE = 'Lomnitz, Daniels, Zhang, Piacentino 2022, arXiv:2208.08503'
VARIANTS = {
  'mnist': {
    'parts': ('targets',),
    'dataset': 'mnist',
    'pooling': 2,
    'rounds': 1200,
    'batch_size': 32,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  parts: tuple[str, ...] = option(PARTS[:1], ', '.join(PARTS))
  depths: tuple[int, ...] = option(
    (1, 2, 4, 8), 'Hidden layers of the perceptrons.'
  )
  width: int = option(64, 'Of hidden layers.', low=1)
  rounds: int = option(400, 'Steps of training, of one worker.', low=1)
  batch_size: int = option(64, 'Examples per step, of one worker.', low=1)
  learning_rates: tuple[float, ...] = option((0.1, 0.3, 1.0), 'To choose from.')
  shares: tuple[float, ...] = option(
    (0.01, 0.1, 1.0), 'Of them, for hidden layers.'
  )
  pooling: int = option(1, 'Pixels of an image, k x k, that are one.', low=1)
  momentum: float = option(0.9, 'Decay of the momentum of a worker.')
  scale: float = option(0.5, 'Of the random signs of l2 and l1.', low=0)
  num_workers: int = option(10, 'n, in the second part.', low=1)
  num_byzantine: int = option(2, 'f, in the second part.', low=1)
  attacked_rounds: int = option(200, 'Of training, in the second part.', low=1)
  attacked_batch_size: int = option(16, 'In the second part.', low=1)


def cell(
  settings: Settings, name: str, method: str, attack='', rule='mean'
) -> Cell:
  n, f = (settings.num_workers, settings.num_byzantine) if attack else (1, 0)

  def make_round(task, key, learning_rate, share):
    del key
    return byzjax.robust_round(
      task.loss_fn,
      value_and_grad=parts.estimator(task, method, settings.scale),
      num_workers=n,
      worker=byzjax.worker_momentum(settings.momentum),
      aggregator=opponents.RULES[rule](f),
      optimizer=parts.optimizer(task, learning_rate, share),
      attack=ATTACKS[attack or 'none'](),
      byzantine=0 if attack == 'none' else f,
    )

  part = 'attacks' if attack else 'networks'
  return Cell(
    labels=dict(zip(LABELS, (part, name, method, attack or 'none', rule))),
    make_round=make_round,
    grid={
      'learning_rate': settings.learning_rates,
      'share': (0.0,) if method == 'frozen' else settings.shares,
    },
    num_workers=n,
    rounds=settings.attacked_rounds if attack else settings.rounds,
    batch_size=settings.attacked_batch_size if attack else settings.batch_size,
    make_model=functools.partial(parts.network, settings.width, name),
  )


def define(settings: Settings) -> list[Cell | OwnCell]:
  if settings.parts == ('targets',):
    return targets.define(settings)
  if settings.parts != ('methods',):
    raise ValueError(f'--parts: {settings.parts} is no one of {PARTS}')
  perceptrons = [f'mlp {depth}' for depth in settings.depths]
  calm = [
    cell(settings, name, method)
    for name in (*perceptrons, 'cnn', 'rnn')
    for method in METHODS
  ]
  attacked = [
    cell(settings, ATTACKED, method, attack, rule)
    for method in METHODS[:3]
    for attack in ATTACKS
    for rule in opponents.RULES
    if (attack, rule) != ('none', 'mean')
  ]
  return [*calm, *attacked]


def keep(rows: Rows, settings: Settings) -> Rows:
  """Of every cell its best rates."""
  if settings.parts == ('targets',):
    return targets.keep(rows, settings)
  finals = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  return tables.tuned_each(finals, LABELS, 'learning_rate', 'share')


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.parts == ('targets',):
    return targets.summarise(
      rows, settings, {'method': 'tpSGD', 'paper': SOURCE}
    )
  calm = tables.select(rows, part='networks')
  accuracy, rates = tables.Cells(), {}
  for (name, method), part in tables.split_by(calm, 'network', 'method'):
    accuracy[name, method] = tables.percent(part)
    rates[name, f'{method} rate'] = part[0]['learning_rate']
    rates[name, f'{method} share'] = part[0]['share']
  over_bp = {
    (name, method): found - accuracy[name, 'bp']
    for (name, method), found in accuracy.items()
  }
  attacks = tables.Cells(
    ((f'{attack}, {rule}', method), tables.percent(part))
    for (attack, rule, method), part in tables.split_by(
      tables.select(rows, part='attacks'), 'attack', 'rule', 'method'
    )
  )
  f, n = settings.num_byzantine, settings.num_workers
  chosen = 'Chosen rates of the last layer, and share of them for hidden layers'
  return Summary(
    claims=claims_of(accuracy, attacks, settings),
    tables=pivots(
      [
        ('Test accuracy (%)', accuracy),
        ('Points over backpropagation, paired by seed', over_bp),
        (chosen, rates, 2),
        (f'Test accuracy (%), {f} of {n} attack, {ATTACKED}', attacks),
      ]
    ),
    figures={'accuracy.png': lambda: picture(settings, accuracy, attacks)},
  )


def claims_of(
  accuracy: tables.Cells, attacks: tables.Cells, settings: Settings
) -> list[Claim]:
  claim = claims_about('tpSGD', SOURCE, settings.dataset)
  shallow, *_, deep = (f'mlp {depth}' for depth in settings.depths)
  apart = abs(over(accuracy, shallow, 'l1', 'l2'))
  return [
    claim(
      'within 5 points of backpropagation on shallow networks',
      *checks_of_networks(accuracy, (shallow, 'cnn', 'rnn'), LEARNT, 'bp', -5),
      published='within 5 %',
      evidence='A',
    ),
    claim(
      'the gap (points) grows with depth, and l1 is near l2',
      *(check_of_depth(accuracy, shallow, deep, m) for m in LEARNT),
      Check(f'{shallow}: l1 to l2', apart, at_most=3),
    ),
    claim(
      'points better than DRTP, and than layers that do not learn',
      Check(
        f'{shallow}: l2 over drtp',
        over(accuracy, shallow, 'l2', 'drtp'),
        0,
        why='within the spread over seeds, and the rates of drtp are ours',
      ),
      *checks_of_networks(
        accuracy, (shallow, deep, 'cnn', 'rnn'), ['l2'], 'frozen', 0
      ),
    ),
    claim(
      'points kept under attack by a robust rule, as with a gradient',
      *checks_of_attacks(attacks),
      **OURS,
    ),
  ]


def over(
  accuracy: tables.Cells, name: str, method: str, other: str = 'bp'
) -> float:
  """Points, paired by seed."""
  return (accuracy[name, method] - accuracy[name, other]).mean()


def checks_of_networks(
  accuracy: tables.Cells, names, compared, other: str, least: float
) -> list[Check]:
  return [
    Check(
      f'{name}: {method} over {other}',
      over(accuracy, name, method, other),
      least,
      why=WHY.get(name, ''),
    )
    for name in names
    for method in compared
  ]


def check_of_depth(
  accuracy: tables.Cells, shallow: str, deep: str, method: str
) -> Check:
  grows = over(accuracy, shallow, method) - over(accuracy, deep, method)
  return Check(f'{method}: gap, {deep} over {shallow}', grows, 0)


def checks_of_attacks(attacks: tables.Cells) -> list[Check]:
  """Points behind the robust rule, over no attack and over the mean."""
  return [
    Check(
      f'{method}, {attack}: {ROBUST}, over {other}',
      (attacks[f'{attack}, {ROBUST}', method] - attacks[other, method]).mean(),
      least,
    )
    for attack, other, least in (
      ('sign flip', f'none, {ROBUST}', -5),
      ('alie', f'none, {ROBUST}', -5),
      ('sign flip', 'sign flip, mean', 20),
    )
    for method in LEARNT
  ]


def picture(settings: Settings, accuracy, attacks):
  """Accuracy by depth, and under attacks."""
  figure, ((left, right),) = pictures.panels(1, 2, figsize=(11, 4))
  at_depths = {
    method: [accuracy[f'mlp {depth}', method] for depth in settings.depths]
    for method in METHODS
  }
  pictures.spread_over(left, settings.depths, at_depths)
  left.set(xlabel='hidden layers', ylabel='test accuracy (%)')
  left.set_xticks(settings.depths)
  colours = palette.colours([*METHODS])
  names = tables.axes(attacks)[0]
  for i, method in enumerate(METHODS[:3]):
    heights = [attacks[name, method].mean() for name in names]
    places = np.arange(len(names)) + (i - 1) / 4
    right.bar(places, heights, 0.25, label=method, color=colours[method])
  right.set(ylabel='test accuracy (%)', ylim=(0, 100))
  short = [name.replace('nnm, median', 'nnm') for name in names]
  right.set_xticks(range(len(names)), short, rotation=15)
  for axes in (left, right):
    axes.legend(fontsize=8, loc='lower left')
  return figure
