"""From the rows of a grid to the rows of the leaderboard, and their ranks.

Accuracies are in percent. A run that failed counts as guessing: one whose loss
was not finite at one of the last evaluations, or that is not above chance.
"""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ..harness import output
from ..reporting import tables
from ..reporting.tables import Rows
from . import tables as grid_tables
from .tables import NOBODY, Choice

FOLDER = pathlib.Path(__file__).parent / 'boards'
VERSION = 1  # Another one whenever the suite changes.
LEVEL = 0.05  # Of the tests behind the ranks.
TAIL = 3  # Evaluations that are averaged.
_STAMP = ('commit', 'jax', 'device')
_SETTING = (
  'defence',
  'partition',
  'num_byzantine',
  'pre_aggregators',
  'aggregator',
  'momentum',
  'learning_rate',
)
_FAILED = 'failed'
_MEASURED = (
  'accuracy',
  'validation_accuracy',
  'attack_success_rate',
  _FAILED,
)


class Standing(NamedTuple):
  """A defence that assumes a number of attackers, on every kind of data.

  Attributes:
    name: without what it assumes.
    assumed: f as it was told; None if it asks for none.
    choices: by partition.
    failed: runs that failed, and
    runs: how many there were.
    success: percent of triggered images that the backdoor wins, by partition.
  """

  name: str
  assumed: int | None
  choices: Mapping[str, Choice]
  failed: int
  runs: int
  success: Mapping[str, float]

  @property
  def score(self) -> np.ndarray:
    """By seed: the worst case, averaged over partitions."""
    return _over(self.choices, lambda c: c.accuracy[c.worst])

  @property
  def mean_case(self) -> np.ndarray:
    """By seed: the mean over all attacks, none among them."""
    return _over(self.choices, lambda c: np.mean([*c.accuracy.values()], 0))

  @property
  def unattacked(self) -> np.ndarray:
    return _over(self.choices, lambda c: c.accuracy[NOBODY])

  @property
  def size(self) -> int:
    """Accuracies that it has; one that lacks some has no rank."""
    return sum(len(c.accuracy) for c in self.choices.values())


class Board(NamedTuple):
  """What the committed rows say."""

  standings: Sequence[Standing]
  control: Standing | None  # The mean, when all are honest.
  rows: Rows

  def told(self, assumed: int) -> list[Standing]:
    """Those that assume so many, and those that assume nothing."""
    return [s for s in self.standings if s.assumed in (assumed, None)]


def _over(choices: Mapping[str, Choice], value) -> np.ndarray:
  return np.mean([value(choice) for choice in choices.values()], axis=0)


def counted(rows: Rows, num_classes: int) -> Rows:
  """The rows, with `failed`, and what failed at the accuracy of guessing."""
  chance = 1 / num_classes

  def of_run(run: Rows) -> dict[str, Any]:
    last = run[-TAIL:]
    finite = all(math.isfinite(row['loss']) for row in last)
    if finite and tables.column(last, 'accuracy').mean() > chance + 1e-6:
      return {_FAILED: 0}
    return {_FAILED: 1, 'accuracy': chance, 'validation_accuracy': chance}

  return tables.added(rows, of_run)


def chosen(rows: Rows, num_classes: int) -> Rows:
  """A row for every defence, partition and attack, at its own best setting.

  A setting is chosen by validation accuracy under its worst attack. Columns of
  several seeds are numbers with spaces between.
  """
  rows = counted(rows, num_classes)
  kept = tables.keep(rows, tail=TAIL, metrics=_MEASURED)
  of = dict(_by_place(kept))
  stamps = {key: there[0] for key, there in _by_place(rows)}
  return [
    _row(choice, attack, of[*choice[:-1], attack])
    | {k: stamps[*choice[:-1], attack].get(k, 'unknown') for k in _STAMP}
    for choice in grid_tables.choices(rows, TAIL)
    for attack in choice.accuracy
  ]


def _by_place(rows: Rows) -> list[tuple[tuple, Rows]]:
  return tables.split_by(rows, *_SETTING, 'attack')


def _row(choice: Choice, attack: str, runs: Rows) -> dict[str, Any]:
  success = [r.get('attack_success_rate', math.nan) for r in runs]
  known = not any(map(math.isnan, success))
  validation = tables.column(runs, 'validation_accuracy').mean()
  return {
    'defence': choice.defence,
    'attack': attack,
    'partition': choice.partition,
    'num_byzantine': choice.num_byzantine,
    'rule': choice.chain,
    'momentum': choice.momentum,
    'learning_rate': choice.learning_rate,
    'accuracy': ' '.join(
      _FAILED if r[_FAILED] else f'{100 * r["accuracy"]:.2f}' for r in runs
    ),
    'validation_accuracy': f'{100 * validation:.2f}',
    'attack_success_rate': ' '.join(f'{100 * x:.1f}' for x in success)
    if known
    else '-',
  }


def tuning(rows: Rows, num_classes: int) -> Rows:
  """What the choice was made of: every setting under its worst attack."""
  rows = tables.keep(
    counted(rows, num_classes),
    tail=TAIL,
    metrics=('accuracy', 'validation_accuracy'),
  )
  found = []
  for setting, runs in tables.split_by(rows, *_SETTING):
    by_attack = {
      attack: tables.percent(there, 'validation_accuracy').mean()
      for attack, there in tables.split(runs, 'attack').items()
    }
    worst = min(by_attack, key=lambda attack: by_attack[attack])
    of = Choice._make([*setting, {}])
    found.append(
      {
        'defence': of.defence,
        'partition': of.partition,
        'num_byzantine': of.num_byzantine,
        'rule': of.chain,
        'momentum': of.momentum,
        'learning_rate': of.learning_rate,
        'worst_attack': worst,
        'validation_accuracy': f'{by_attack[worst]:.2f}',
      }
    )
  return found


def path_of(model: str, what: str = '') -> pathlib.Path:
  """The committed rows of a board; `what` is '', 'tuning' or 'times'."""
  words = [f'v{VERSION}', model, what]
  return FOLDER / f'{"_".join(filter(None, words))}.csv'


def merged(old: Rows, new: Rows) -> Rows:
  """The rows, with those of the defences that were run again in their place."""
  again = {_entry(row) for row in new}
  return [row for row in old if _entry(row) not in again] + list(new)


def _entry(row) -> tuple[str, bool]:
  """The defence, and whether it was attacked."""
  return str(row['defence']), int(row.get('num_byzantine', 0)) > 0


def check_keeps(old: Rows, new: Rows) -> None:
  """Raises ValueError if a defence would lose cells that it has.

  A setting is chosen by its worst attack, so one of fewer is not comparable.
  """
  again = {_entry(row) for row in new}
  given = {(_entry(row), row['attack'], row['partition']) for row in new}
  for row in old:
    place = row['attack'], row['partition']
    if _entry(row) in again and (_entry(row), *place) not in given:
      raise ValueError(
        f'{row["defence"]} is on the board under {", ".join(place)}, which was'
        ' not run now: run it with all attacks and partitions'
      )


def read(path: pathlib.Path, num_classes: int) -> Board:
  """What the committed rows of a board say.

  Raises:
    ValueError: if there are none.
  """
  if not path.exists():
    raise ValueError(
      f'there are no rows in {path}: run the grid with --publish'
    )
  return board_of(output.read_rows(path), num_classes)


def board_of(rows: Rows, num_classes: int) -> Board:
  """The standings that rows, as text, are."""
  by_defence = tables.split_by(rows, 'defence', 'num_byzantine')
  made = [
    (int(f), _standing(title, there, num_classes))
    for (title, f), there in by_defence
  ]
  control = [standing for f, standing in made if f == 0]
  return Board(
    [standing for f, standing in made if f > 0],
    control[0] if control else None,
    rows,
  )


def _standing(title: str, rows: Rows, num_classes: int) -> Standing:
  name, assumed = plain(title)
  choices, success = {}, {}
  for partition, there in tables.split(rows, 'partition').items():
    first = there[0]
    choices[partition] = Choice(
      title,
      partition,
      int(first['num_byzantine']),
      NOBODY,
      first['rule'],
      float(first['momentum']),
      float(first['learning_rate']),
      {r['attack']: _accuracies(r['accuracy'], num_classes) for r in there},
    )
    rates = [
      float(number)
      for r in there
      if r['attack_success_rate'] != '-'
      for number in r['attack_success_rate'].split()
    ]
    if rates:
      success[partition] = float(np.mean(rates))
  words = [word for r in rows for word in r['accuracy'].split()]
  return Standing(
    name, assumed, choices, words.count(_FAILED), len(words), success
  )


def _accuracies(text: str, num_classes: int) -> np.ndarray:
  guessing = 100 / num_classes
  return np.array(
    [guessing if word == _FAILED else float(word) for word in text.split()]
  )


def plain(title: str) -> tuple[str, int | None]:
  """A defence without what it assumes, and what that is."""
  found = re.search(r'num_byzantine=(\d+)', title)
  name = re.sub(r', num_byzantine=\d+|num_byzantine=\d+, |num_byzantine=\d+',
                '', title)  # fmt: skip
  # Of `module:function` the function is the name.
  name = re.sub(r'[\w.]+:', '', name.replace('()', ''))
  return name, int(found[1]) if found else None


def holm(p_values: Sequence[float]) -> np.ndarray:
  """Adjusted by Holm's method, for as many tests as there are."""
  p = np.asarray(p_values, float)
  order = np.argsort(p, kind='stable')
  factors = len(p) - np.arange(len(p))
  adjusted = np.empty(len(p))
  adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
  return adjusted


def paired(first: np.ndarray, second: np.ndarray) -> float:
  """Of a two-sided paired t-test over seeds: p.

  Seeds that all differ alike leave no doubt, and those that do not differ none
  that it is a tie.
  """
  differences = np.asarray(first) - np.asarray(second)
  if len(differences) < 2 or np.allclose(differences, 0):
    return 1.0
  if np.ptp(differences) < 1e-9:
    return 0.0
  return float(stats.ttest_rel(first, second).pvalue)


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
  """The mean of `first - second` over seeds, and its 95 % t-interval's half."""
  gaps = first - second
  error = gaps.std(ddof=1) / math.sqrt(gaps.size)
  return float(gaps.mean()), float(stats.t.ppf(0.975, gaps.size - 1) * error)


def ranks(scores: Mapping[str, np.ndarray]) -> dict[str, int]:
  """1 + how many are significantly better, best first.

  Paired t-tests of all pairs over seeds, corrected by Holm, at LEVEL. Those
  that nobody can be told from share a rank.
  """
  names = list(scores)
  pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
  adjusted = holm([paired(scores[a], scores[b]) for a, b in pairs])
  beaten = dict.fromkeys(names, 0)
  for (a, b), p in zip(pairs, adjusted):
    gap = np.mean(scores[a]) - np.mean(scores[b])
    if p < LEVEL and gap != 0:
      beaten[b if gap > 0 else a] += 1
  order = sorted(names, key=lambda n: (beaten[n], -np.mean(scores[n])))
  return {name: 1 + beaten[name] for name in order}
