"""From the rows of a grid to its tables: functions without side effects.

Accuracies are in percent, one per seed; one that is not a number counts as 0.
Every choice of hyper-parameters looks at the validation split only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..reporting import tables
from ..reporting.summary import markdown
from ..reporting.tables import Rows

NOBODY = 'none'  # The attack of honest workers.


class Choice(NamedTuple):
  """A defence in one place, with the hyper-parameters chosen there."""

  defence: str
  partition: str
  num_byzantine: int
  pre_aggregators: str  # As all that follows, chosen.
  aggregator: str
  momentum: float
  learning_rate: float
  accuracy: dict[str, np.ndarray]  # By attack: on the test set, [num_seeds].

  @property
  def chain(self) -> str:
    """The rule, behind its pre-aggregators."""
    front = [self.pre_aggregators] * (self.pre_aggregators != NOBODY)
    return ', '.join([*front, self.aggregator])

  @property
  def setting(self) -> str:
    """Everything that is chosen."""
    return (
      f'{self.chain}; momentum {self.momentum:g},'
      f' learning rate {self.learning_rate:g}'
    )

  @property
  def worst(self) -> str:
    """The attack of the least mean accuracy, the first of several."""
    return min(self.accuracy, key=lambda attack: self.accuracy[attack].mean())

  @property
  def floor(self) -> float:
    return float(self.accuracy[self.worst].mean())


def choices(rows: Rows, tail: int = 3) -> list[Choice]:
  """For every defence and place the hyper-parameters that are safest.

  Those with the best validation accuracy under their worst attack, averaged
  over seeds and the last evaluations; the first of several that are equal.
  Hyper-parameters that lack an attack come after those that have more.
  """
  measured = ('accuracy', 'validation_accuracy')
  rows = [{**r, **{k: np.nan_to_num(r[k]) for k in measured}} for r in rows]
  rows = tables.keep(rows, tail=tail, metrics=measured)
  chosen = []
  for place, there in tables.split_by(
    rows, 'defence', 'partition', 'num_byzantine'
  ):
    tried = tables.split_by(
      there, 'pre_aggregators', 'aggregator', 'momentum', 'learning_rate'
    )
    by_attack = [(name, tables.split(found, 'attack')) for name, found in tried]

    def safety(option):
      means = [
        tables.percent(found, 'validation_accuracy').mean()
        for found in option[1].values()
      ]
      return len(means), min(means)

    best, attacks = max(by_attack, key=safety)
    accuracy = {name: tables.percent(found) for name, found in attacks.items()}
    chosen.append(Choice._make([*place, *best, accuracy]))
  return chosen


def places(choices: Sequence[Choice]) -> list[tuple[str, int]]:
  """All pairs of a partition and f."""
  return list(dict.fromkeys((c.partition, c.num_byzantine) for c in choices))


def ranked(choices: Sequence[Choice]) -> list[Choice]:
  """Best worst case first; after them those that lack an attack."""
  return sorted(choices, key=lambda c: (-len(c.accuracy), -c.floor))


def standings(
  choices: Sequence[Choice],
) -> dict[str, dict[tuple[str, int], Choice]]:
  """Defences by their mean worst case over places, and what they are there.

  After them those that lack an attack or a place.
  """
  defences: dict[str, dict[tuple[str, int], Choice]] = {}
  for c in choices:
    defences.setdefault(c.defence, {})[c.partition, c.num_byzantine] = c

  def rank(name):
    here = defences[name].values()
    complete = sum(len(c.accuracy) for c in here)
    return -complete, -np.mean([c.floor for c in here])

  return {name: defences[name] for name in sorted(defences, key=rank)}


def worst_case(
  choices: Sequence[Choice],
  control: Sequence[Choice],
  command: Callable[[Choice, str], str],
) -> str:
  """A Markdown table for every partition and f, and all accuracies.

  In a fold the command that trains what is in a row, under every attack.
  """
  attacks = list(dict.fromkeys(a for c in choices for a in c.accuracy))
  lines = []
  for partition, f in places(choices):
    here = ranked(_at(choices, partition, f))
    lines += [f'## {partition}, {f} Byzantine', '']
    head = ['defence', 'worst case', 'under', 'nobody attacks', 'chosen']
    table = [
      [
        c.defence,
        spread(c.accuracy[c.worst]),
        c.worst + _missing(c, attacks),
        spread(c.accuracy.get(NOBODY)),
        c.setting,
      ]
      for c in here
    ]
    for c in control:
      if c.partition == partition:
        nobody = spread(c.accuracy[NOBODY])
        table.append([f'*{c.defence}, all honest*', '', '', nobody, c.setting])
    lines += markdown(head, table)
    lines += ['', 'The same under every attack:', '']
    lines += markdown(
      ['defence', *attacks],
      [
        [c.defence, *(spread(c.accuracy.get(a)) for a in attacks)] for c in here
      ],
    )
    honest = [c for c in control if c.partition == partition]
    lines += ['', *_fold(here + honest, command), '']
  return '\n'.join(lines)


def _fold(
  choices: Sequence[Choice], command: Callable[[Choice, str], str]
) -> list[str]:
  """The command of every accuracy, row by row."""
  lines = ['<details>', '<summary>The command of each row</summary>', '']
  for c in choices:
    name = c.defence if c.num_byzantine else f'{c.defence}, all honest'
    commands = [command(c, attack) for attack in c.accuracy]
    lines += [f'{name}:', '', '```', *commands, '```', '']
  return [*lines, '</details>']


def leaderboard(choices: Sequence[Choice], control: Sequence[Choice]) -> str:
  """A Markdown table for every f: worst cases side by side, best first.

  The order is that of the mean over partitions.
  """
  attacks = {a for c in choices for a in c.accuracy}
  partitions = list(dict.fromkeys(c.partition for c in choices))
  lines = []
  for f in dict.fromkeys(c.num_byzantine for c in choices):
    here = standings([c for c in choices if c.num_byzantine == f])
    table = []
    for name, by_partition in here.items():
      line = [name]
      for partition in partitions:
        c = by_partition.get((partition, f))
        if c is None:
          line += ['-', '-', '-']
          continue
        line += [
          spread(c.accuracy[c.worst]),
          c.worst + _missing(c, attacks),
          mean(c.accuracy.get(NOBODY)),
        ]
      table.append(line)
    nobody = {c.partition: mean(c.accuracy[NOBODY]) for c in control}
    for name in {c.defence for c in control}:
      line = [f'*{name}, all honest*']
      for partition in partitions:
        line += ['', '', nobody[partition]]
      table.append(line)
    head = ['defence']
    for partition in partitions:
      head += [f'{partition}: worst case', 'under', 'nobody attacks']
    lines += [f'{f} Byzantine:', '', *markdown(head, table), '']
  return '\n'.join(lines)


def by_attack(
  choices: Sequence[Choice], partition: str, f: int
) -> dict[tuple[str, str], np.ndarray]:
  """Accuracies by defence and attack, for `pictures.heatmap`."""
  return {
    (c.defence, attack): accuracy
    for c in ranked(_at(choices, partition, f))
    for attack, accuracy in c.accuracy.items()
  }


def by_place(
  choices: Sequence[Choice],
) -> tuple[dict[tuple[str, str], np.ndarray], dict[tuple[str, str], str]]:
  """Worst cases by defence and place, and the attacks they are under."""
  cells, notes = {}, {}
  for name, there in standings(choices).items():
    for (partition, f), c in there.items():
      key = name, f'{partition}, f={f}'
      cells[key], notes[key] = c.accuracy[c.worst], c.worst
  return cells, notes


def spread(accuracy: np.ndarray | None) -> str:
  """Mean and standard deviation over seeds."""
  if accuracy is None:
    return '-'
  return f'{accuracy.mean():.1f} ± {accuracy.std():.1f}'


def mean(accuracy: np.ndarray | None) -> str:
  return '-' if accuracy is None else f'{accuracy.mean():.1f}'


def _missing(choice: Choice, attacks) -> str:
  lacking = len(attacks) - len(choice.accuracy)
  return f' (of {len(choice.accuracy)} attacks only)' if lacking else ''


def _at(choices: Sequence[Choice], partition: str, f: int) -> list[Choice]:
  return [
    c for c in choices if (c.partition, c.num_byzantine) == (partition, f)
  ]
