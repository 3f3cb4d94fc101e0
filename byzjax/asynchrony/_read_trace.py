"""A recorded run from a file."""

import csv
import os
import pathlib
from typing import Any

import numpy as np

from byzjax.asynchrony._events import Events
from byzjax.asynchrony._trace import events_from_trace

_NAME = 'read_trace'
# Columns of the file, and what `events_from_trace` calls them.
_COLUMNS = {
  'worker': ('workers', int),
  'time': ('times', float),
  'started': ('started', float),
  'issued_at': ('issued_at', int),
  'num_local_steps': ('num_local_steps', int),
  'shard': ('shards', int),
}
_NEEDED = ('worker', 'time')
_EXAMPLE = pathlib.Path(__file__).parent / 'trace.csv'


def read_trace(
  path: str | os.PathLike[str] | None = None, **options: Any
) -> Events:
  """The events of a run that a server has recorded in a CSV file.

  The first line names the columns: `worker` and `time`, and, where the record
  has them, `started` or `issued_at`, `num_local_steps` and `shard`; they mean
  what they mean in `events_from_trace`. Lines are in the order of arrival.

  Args:
    path: the file; None for one that comes with byzjax: 400 messages of 12
      workers, whose speeds are log-normal, with stragglers, lost messages and
      three workers that are away for a while. It was made by `simulate`, in the
      shape that devices of users have, and is no record of a real run.
    **options: further arguments of `events_from_trace`, such as `num_workers`
      or `grace`.

  Returns:
    `Events`, for `asynchronous_round` and `schedule`.

  Raises:
    ValueError: if path is no path, a column is missing, unknown or holds what
      is no number, with the line; or if the lines cannot be a run.
    OSError: if the file cannot be read.

  Example:
    >>> from byzjax import asynchrony
    >>> events = asynchrony.read_trace()
    >>> events.num_workers, len(events.worker), int(events.staleness.max()) > 30
    (12, 400, True)
  """
  if path is None:
    path = _EXAMPLE
  elif not isinstance(path, (str, os.PathLike)):
    raise ValueError(f'{_NAME} needs path to be that of a file, got {path!r}')
  with open(path, newline='') as file:
    reader = csv.DictReader(file)
    names = reader.fieldnames or []
    missing = [name for name in _NEEDED if name not in names]
    unknown = [name for name in names if name not in _COLUMNS]
    if missing or unknown:
      raise ValueError(
        f'{_NAME} needs path to be of a file with columns among'
        f' {", ".join(_COLUMNS)}, with {" and ".join(_NEEDED)}, got'
        f' {", ".join(names) or "an empty file"}'
      )
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for line in reader:
      for name in names:
        kind = _COLUMNS[name][1]
        try:
          columns[name].append(kind(line[name]))
        except (TypeError, ValueError):
          raise ValueError(
            f'{_NAME} needs {name} to be {kind.__name__}, got {line[name]!r} in'
            f' line {reader.line_num} of {path}'
          ) from None
  arrays: dict[str, Any] = {
    _COLUMNS[name][0]: np.array(columns[name]) for name in names
  }
  return events_from_trace(**arrays, **options)
