"""From rows to numbers and tables: functions without side effects.

The columns of a row up to `round` say what the run is; those behind it are
what was measured.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]
Pivot = Mapping[tuple[str, str], np.ndarray]


class Cells(dict[Any, Any]):
  """A table by keys; what is not there is not a number.

  So that a summary can be made of some of the cells of a study.
  """

  def __missing__(self, key):
    return np.array([np.nan])


def column(rows: Rows, name: str) -> np.ndarray:
  """One column as floats."""
  return np.array([float(row[name]) for row in rows])


def select(rows: Rows, **labels: Any) -> Rows:
  """The rows with these values."""
  return [
    row
    for row in rows
    if all(row[key] == value for key, value in labels.items())
  ]


def values_of(rows: Rows, name: str) -> list[Any]:
  """The different values of a column, in order."""
  return list(dict.fromkeys(row[name] for row in rows))


def split(rows: Rows, name: str) -> dict[Any, Rows]:
  """The rows by the value of a column."""
  return {v: select(rows, **{name: v}) for v in values_of(rows, name)}


def split_by(rows: Rows, *names: str) -> list[tuple[tuple, Rows]]:
  """The rows by the values of several columns."""
  groups: dict[tuple, Rows] = {}
  for row in rows:
    groups.setdefault(tuple(row[name] for name in names), []).append(row)
  return list(groups.items())


def identity(row: Mapping[str, Any]) -> tuple:
  """What tells a run from others: its columns up to `round`."""
  names = list(row)
  return tuple(row[name] for name in names[: names.index('round')])


def runs(rows: Rows) -> dict[tuple, Rows]:
  """The rows of every run."""
  by_run: dict[tuple, Rows] = {}
  for row in rows:
    by_run.setdefault(identity(row), []).append(row)
  return by_run


def keep(
  rows: Rows,
  *,
  tail: int = 3,
  metrics: Sequence[str] | None = None,
  curves: Callable[[dict[str, Any]], bool] = lambda row: False,
) -> Rows:
  """Of every run its last row, and those before it that pictures need.

  The last row has the mean over the last `tail` evaluations.

  Args:
    rows: all rows of a study.
    tail: evaluations that are averaged.
    metrics: columns behind `round` to keep; all by default.
    curves: whether a row before the last is kept.
  """
  kept = []
  for run in runs(rows).values():
    names = list(run[0])
    behind = names[names.index('round') + 1 :]
    wanted = [name for name in behind if metrics is None or name in metrics]
    about = names[: names.index('round') + 1]
    last = {name: run[-1][name] for name in about}
    last |= {k: float(np.mean(column(run[-tail:], k))) for k in wanted}
    before = [row for row in run[:-1] if curves(row)]
    kept += [{k: row[k] for k in (*about, *wanted)} for row in before]
    kept.append(last)
  return kept


def added(rows: Rows, of_run: Callable[[Rows], dict[str, Any]]) -> Rows:
  """Rows with columns more, which are made of all rows of their run."""
  return [
    row | more
    for run in runs(rows).values()
    for more in [of_run(run)]
    for row in run
  ]


def rounded(rows: Rows, digits: int = 6) -> Rows:
  """Floats with so many significant digits, as they are committed."""

  def short(value):
    return float(f'{value:.{digits}g}') if isinstance(value, float) else value

  return [{k: short(v) for k, v in row.items()} for row in rows]


def final(rows: Rows, name: str = 'accuracy') -> np.ndarray:
  """Per seed, a column of the last row; not a number without rows."""
  last = [of_seed[-1][name] for of_seed in split(rows, 'seed').values()]
  return np.array(last or [np.nan])


def percent(rows: Rows, name: str = 'accuracy') -> np.ndarray:
  """`final`, a share as a percentage."""
  return 100 * final(rows, name)


def tuned(
  rows: Rows, *names: str, by: str = 'validation_accuracy', least: bool = False
) -> Rows:
  """The rows of the values of a grid that are best on the validation split.

  The mean over seeds of the last row counts; the first of several that are
  equal. With `least` the smallest is best, as for a loss; what is not a number
  is worst.
  """
  choices: dict[tuple, Rows] = {}
  if not rows:
    return []
  for row in rows:
    choices.setdefault(tuple(row[name] for name in names), []).append(row)
  sign = -1 if least else 1

  def score(choice):
    return np.nan_to_num(sign * final(choices[choice], by).mean(), nan=-np.inf)

  return choices[max(choices, key=score)]


def tuned_each(
  rows: Rows, cells: Sequence[str], *names: str, **options: Any
) -> Rows:
  """`tuned` in every cell, which all values of the columns `cells` are."""
  parts = split_by(rows, *cells)
  return [row for _, part in parts for row in tuned(part, *names, **options)]


def reached(cells: Pivot) -> dict[tuple[str, str], np.ndarray]:
  """The table less what not all seeds reached."""
  return {key: x for key, x in cells.items() if np.isfinite(x).all()}


def pivot(cells: Pivot, digits: int = 1) -> str:
  """A table of mean and standard deviation over seeds, by (row, column)."""
  rows, columns = axes(cells)
  width = max(map(len, rows))
  lines = ['  '.join([' ' * width, *(f'{c:>12}' for c in columns)])]
  for row in rows:
    line = [f'{row:{width}}']
    for name in columns:
      cell = cells.get((row, name))
      text = '-'
      if cell is not None:
        with np.errstate(invalid='ignore'):  # What one seed never reached.
          mean, deviation = np.mean(cell), np.std(cell)
        text = f'{mean:.{digits}f}'
        if np.size(cell) > 1:
          text += f' ± {deviation:.{digits}f}'
      line.append(f'{text:>{max(12, len(name))}}')
    lines.append('  '.join(line))
  return '\n'.join(line.rstrip() for line in lines)


def axes(cells: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
  """The names of rows and of columns, in order."""
  pairs = list(cells)
  rows = list(dict.fromkeys(row for row, _ in pairs))
  return rows, list(dict.fromkeys(name for _, name in pairs))


def plain(rows: Rows) -> str:
  """Rows as they are, under their names; a row may lack some."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  lines = [names] + [
    [f'{v:.6g}' if isinstance(v, float) else str(v) for v in values]
    for values in ([row.get(name, '-') for name in names] for row in rows)
  ]
  widths = [max(map(len, entries)) for entries in zip(*lines)]
  return '\n'.join(
    '  '.join(f'{text:>{width}}' for text, width in zip(line, widths))
    for line in lines
  )
