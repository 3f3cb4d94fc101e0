"""What output folders hold, as tables whose columns are told apart."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..harness import output

Rows = list[dict[str, Any]]

_MAX_TEXTS = 40  # Different texts in a label that stands behind the seed.
_FIRST = ('accuracy', 'loss', 'balanced_accuracy')  # Of the metrics.
_SKIPPED = ('checkpoints', 'unfinished')


class Table(NamedTuple):
  """Rows of a file, and what its columns are."""

  title: str
  labels: list[str]  # Columns that tell series apart, seeds excluded.
  x: str | None  # The column along which a series goes on, if any does.
  metrics: list[str]
  series: dict[tuple, dict[Any, Rows]]  # By labels, then by seed.
  plain: Rows  # All rows, where there are no seeds.


class Found(NamedTuple):
  """All that is in the folders."""

  tables: list[Table]
  configs: dict[str, dict[str, Any]]
  pictures: dict[str, bytes]


def find(folders: Sequence[str | pathlib.Path]) -> Found:
  """Reads the folders and those below them.

  Raises:
    ValueError: if one does not exist or holds nothing to show, or if a file
      in it is damaged; names it.
  """
  paths: dict[pathlib.Path, pathlib.Path] = {}
  for folder in map(pathlib.Path, folders):
    if not folder.is_dir():
      raise ValueError(f'there is no folder {folder}')
    below = {
      path.resolve(): path
      for path in sorted(folder.rglob('*'))
      if _wanted(path.relative_to(folder))
    }
    if not below:
      raise ValueError(
        f'{folder} holds no metrics.csv, results.csv, config.json or picture'
      )
    paths = {**below, **paths}
  files = _by_short_name(sorted(paths.values()))
  of_runs = [
    {'run': str(name.parent), **row}
    for name, path in files.items()
    if path.name == 'metrics.csv'
    for row in _read_rows(path)
  ]
  tables = [make_table('training runs', of_runs)] if of_runs else []
  for name, path in files.items():
    if path.suffix == '.csv' and path.name != 'metrics.csv':
      if rows := _read_rows(path):
        tables.append(make_table(str(name), rows))
  return Found(
    tables,
    {
      str(name.parent): _read_config(path)
      for name, path in files.items()
      if path.name == 'config.json'
    },
    {str(n): p.read_bytes() for n, p in files.items() if p.suffix == '.png'},
  )


def _wanted(path: pathlib.Path) -> bool:
  if any(part in _SKIPPED for part in path.parts):
    return False
  # What processes have written and not yet put together is not a result.
  if path.match('results.*.csv'):
    return False
  return path.suffix in ('.csv', '.png') or path.name == 'config.json'


def _by_short_name(
  files: Sequence[pathlib.Path],
) -> dict[pathlib.PurePath, pathlib.Path]:
  """The files by their names below the folder that all are in.

  That folder's own name is kept where a file lies in it: no name is empty.
  """
  places = [path.resolve() for path in files]
  common = pathlib.Path(os.path.commonpath([p.parent for p in places]))
  if any(place.parent == common for place in places):
    common = common.parent
  return {p.relative_to(common): path for p, path in zip(places, files)}


def _read_rows(path: pathlib.Path) -> Rows:
  try:
    rows = output.read_rows(path)
    if any(None in row or None in row.values() for row in rows):
      raise ValueError('a row is not as long as the first')
  except Exception as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  return output.numbers(rows)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  try:
    config = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if not isinstance(config, dict):
    raise ValueError(f'{path} is damaged: it is not a JSON object')
  return config


def make_table(title: str, rows: Rows) -> Table:
  """Tells labels, metrics and the x axis of rows apart.

  Labels are the columns before `seed`, and those behind it with text in them.
  The x axis is the first column of numbers that rises from row to row of every
  series and seed; there is none if each of these is one row.
  """
  columns = list(dict.fromkeys(column for row in rows for column in row))
  if 'seed' not in columns:
    return Table(title, [], None, columns, {}, rows)
  place = columns.index('seed')
  labels = [c for c in columns[:place] if c != 'round']
  others = [c for c in columns if c not in labels and c != 'seed']
  metrics = []
  for column in others:
    texts = {v for v in _column(rows, column) if isinstance(v, str)}
    if not texts - {'', '-'}:
      metrics.append(column)
    elif len(texts) <= _MAX_TEXTS:
      labels.append(column)
  series: dict[tuple, dict[Any, Rows]] = {}
  for row in rows:
    # Not a number would differ from itself.
    values = [row.get(label, '-') for label in labels]
    key = tuple(str(value) if value != value else value for value in values)
    series.setdefault(key, {}).setdefault(row['seed'], []).append(row)
  runs = [run for seeds in series.values() for run in seeds.values()]
  x = None
  if any(len(run) > 1 for run in runs):
    x = next((c for c in metrics if all(_rises(r, c) for r in runs)), None)
  metrics = [
    c for c in metrics if c not in (x, 'round') and _says_something(rows, c)
  ]
  metrics.sort(key=lambda c: _FIRST.index(c) if c in _FIRST else len(_FIRST))
  return Table(title, labels, x, metrics, series, [])


def values(rows: Rows, column: str) -> np.ndarray:
  """A column of metrics; what is not a number is missing."""
  entries = _column(rows, column)
  return np.array([np.nan if isinstance(v, str) else float(v) for v in entries])


def _column(rows: Rows, column: str) -> list[Any]:
  # Not every run need have the metrics of the first.
  return [row.get(column, '') for row in rows]


def _rises(rows: Rows, column: str) -> bool:
  return bool((np.diff(values(rows, column)) > 0).all())


def _says_something(rows: Rows, column: str) -> bool:
  return not np.isnan(values(rows, column)).all()
