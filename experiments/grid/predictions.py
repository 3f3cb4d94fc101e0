"""What was expected of the leaderboard, written before it was run.

Thresholds do not move afterwards; what falls short stays, and says so.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from ..reporting.summary import Check
from . import board
from .board import Board, Standing
from .tables import NOBODY

IID, SKEWED = 'iid', 'dirichlet_by_class(alpha=0.3)'
ADAPTIVE = ', strength'  # In the texts of attacks that hold the rule.


def checks(of: Board, f: int) -> list[Check]:
  """All predictions; not a number of those that lack what they compare."""
  here = of.told(f)
  (mean,) = [s for s in here if s.name == 'mean']
  robust = [s for s in here if s.name != 'mean']
  less, right, more = (_that_ask(of, assumed) for assumed in (f - 2, f, f + 2))

  def ahead(attack):
    others = [_accuracy(s, SKEWED, attack) for s in robust]
    return _accuracy(mean, SKEWED, attack) - np.median(others)

  def gap(first, second, value):
    shared = sorted({*first} & {*second})
    if not shared:
      return float('nan')
    return float(np.mean([value(first[n]) - value(second[n]) for n in shared]))

  worst = [c.worst for s in robust for c in s.choices.values()]
  return [
    Check(
      'Dirichlet, label_flip: points by which the mean is ahead of the median'
      ' of the other defences',
      ahead('label_flip'),
      at_least=2,
    ),
    Check('the same under label_poison', ahead('label_poison'), at_least=2),
    Check(
      'Dirichlet, nobody attacks: points by which the mean is ahead',
      ahead(NOBODY),
      at_least=2,
    ),
    Check(
      'Dirichlet, nobody attacks: points lost by assuming two attackers too'
      ' many, and not two too few',
      gap(less, more, lambda s: _accuracy(s, SKEWED, NOBODY)),
      at_least=1,
    ),
    Check(
      'points of the worst case lost by assuming two attackers too few',
      gap(right, less, lambda s: s.score.mean()),
      at_least=5,
    ),
    Check(
      'points of the worst case lost by assuming two too many',
      gap(right, more, lambda s: s.score.mean()),
      at_most=3,
    ),
    Check(
      'percent of worst cases that are by an attack which holds the rule',
      100 * float(np.mean([ADAPTIVE in attack for attack in worst])),
      at_least=50,
    ),
    Check(
      'defences that share the first rank',
      list(board.ranks({s.name: s.score for s in here}).values()).count(1),
      at_least=3,
    ),
    Check(
      'i.i.d.: percent of defences with which a backdoor wins most images',
      100 * float(np.mean([s.success[IID] > 50 for s in here])),
      at_least=50,
    ),
    Check(
      'i.i.d.: points of clean accuracy that the backdoor costs the median'
      ' defence',
      float(np.median([
        _accuracy(s, IID, NOBODY) - _accuracy(s, IID, 'backdoor') for s in here
      ])),
      at_most=3,
    ),
    Check(
      'rank correlation of the worst cases on even and on uneven data',
      _correlation(here),
      at_most=0.8,
    ),
  ]  # fmt: skip


def _that_ask(of: Board, assumed: int) -> dict[str, Standing]:
  return {s.name: s for s in of.standings if s.assumed == assumed}


def _accuracy(standing: Standing, partition: str, attack: str) -> float:
  return float(standing.choices[partition].accuracy[attack].mean())


def _correlation(standings: Sequence[Standing]) -> float:
  even, uneven = (
    [s.choices[partition].floor for s in standings]
    for partition in (IID, SKEWED)
  )
  return float(stats.spearmanr(even, uneven).statistic)
