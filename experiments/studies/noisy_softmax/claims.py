"""What noise was predicted to do, and what the rows say of it."""

from typing import Any, NamedTuple

from ...harness.cells import Rows
from ...reporting import tables
from ...reporting.summary import OURS, Check, Claim, claims_about
from .. import opponents

KINDS: dict[str, tuple[Any, Any]] = {  # amplitude and direction of noise
  'annealed': ('annealed', 'lower'),
  'norms': ('norms', 'lower'),
  'constant': ('constant', 'lower'),
  'both': ('annealed', 'both'),
  'raise': ('annealed', 'raise'),
}
ROBUST = 'nnm, median'
PAPER = 'Chen, Deng, Du 2017, arXiv:1708.03769'
# Of annealed noise; of attacked runs the first two.
KEPT = (
  *('accuracy', 'deviation', 'train_loss'),
  *('target_probability', 'early_probability'),
)


class Measured(NamedTuple):
  """Per seed; a run is an attack, a rule and a momentum."""

  calm: tables.Cells  # by column and alpha²: annealed noise, nobody attacks
  gains: tables.Cells  # by kind and alpha²: points over no noise, paired
  attacked: tables.Cells  # by run, column and alpha²: annealed noise
  attacked_gains: tables.Cells  # by run: points of the most noise


def measured(rows: Rows, settings: Any) -> Measured:
  squares, runs = settings.squares, ('attack', 'rule', 'momentum')
  run = 'none', 'mean', settings.momentum
  by_run = dict(tables.split_by(rows, *runs, 'kind', 'square'))

  def of(column, square, kind, run):
    return tables.final(by_run.get((*run, kind, square), []), column)

  def gain(square, kind, run):
    none = of('accuracy', squares[0], 'annealed', run)
    return 100 * (of('accuracy', square, kind, run) - none)

  attacked = [run for run, _ in tables.split_by(rows, *runs)]
  return Measured(
    calm=tables.Cells(
      ((column, square), of(column, square, 'annealed', run))
      for column in KEPT
      for square in squares
    ),
    gains=tables.Cells(
      ((kind, square), gain(square, kind, run))
      for kind in KINDS
      for square in squares
    ),
    attacked=tables.Cells(
      ((run, column, square), of(column, square, 'annealed', run))
      for run in attacked
      for column in KEPT[:2]
      for square in (squares[0], *settings.attacked_squares)
    ),
    attacked_gains=tables.Cells(
      (run, gain(most_noise(settings), 'annealed', run)) for run in attacked
    ),
  )


def most_noise(settings: Any) -> float:
  """That workers have under attack."""
  return max(settings.attacked_squares)


def of_noise(found: Measured, settings: Any) -> list[Claim]:
  claim = claims_about('Noisy Softmax', PAPER, settings.dataset)
  return [
    claim(
      'a little noise in training is better than none, and than much',
      *checks_of_amount(found, settings),
    ),
    claim(
      'annealed noise is level with the best kind, raising is worst',
      *checks_of_kind(found, settings),
      published='annealed > constant, norms > none > raise',
      evidence='T',
    ),
    claim(
      'the training loss is higher, the target probability grows later',
      *checks_of_training(found, settings),
    ),
    claim(
      'noise sets honest messages apart; worker momentum averages it',
      *checks_of_deviation(found, settings),
      **OURS,
    ),
  ]


def checks_of_amount(found: Measured, settings: Any) -> list[Check]:
  little, much = (pick(settings.squares[1:]) for pick in (min, max))
  gain = found.gains['annealed', little]
  over = gain - found.gains['annealed', much]
  return [
    Check(f'points gained, alpha² {little:g}', gain.mean(), 0.2),
    Check(f'points over alpha² {much:g}', over.mean(), 5),
  ]


def checks_of_kind(found: Measured, settings: Any) -> list[Check]:
  best = {
    kind: max(found.gains[kind, s].mean() for s in settings.squares[1:])
    for kind in KINDS
  }
  other = max(best[kind] for kind in KINDS if kind != 'annealed')
  return [
    Check('none over raise, points, each at its best', -best['raise'], 0),
    Check('norms over none', best['norms'], 0),
    Check('constant over none', best['constant'], 0),
    Check('annealed over all others', best['annealed'] - other, -0.5),
  ]


def times(found: Measured, settings: Any, column: str) -> float:
  """With noise over without."""
  some, none = most_noise(settings), settings.squares[0]
  return found.calm[column, some].mean() / found.calm[column, none].mean()


def checks_of_training(found: Measured, settings: Any) -> list[Check]:
  noise = most_noise(settings)
  early, late = (
    found.calm['early_probability', square]
    for square in (noise, settings.squares[0])
  )
  loss = times(found, settings, 'train_loss')
  return [
    Check(f'times the loss, alpha² {noise:g}', loss, 1.5),
    Check(
      'points of probability less at a quarter of the rounds',
      100 * (late - early).mean(),
      5,
    ),
  ]


def checks_of_deviation(found: Measured, settings: Any) -> list[Check]:
  noise, momentum = most_noise(settings), settings.momentum
  without, with_momentum = (
    found.attacked[('alie', ROBUST, m), 'deviation', noise].mean()
    for m in (0.0, momentum)
  )
  apart = times(found, settings, 'deviation')
  return [
    Check(f'times the deviation, alpha² {noise:g}', apart, 1.1),
    Check('alie: without over with momentum', without / with_momentum, 1.5),
    *[
      Check(
        f'{attack}, {ROBUST}, momentum: points gained, alpha² {noise:g}',
        found.attacked_gains[attack, ROBUST, momentum].mean(),
        -1,
      )
      for attack in opponents.ATTACKS
    ],
  ]
