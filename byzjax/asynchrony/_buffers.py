"""Buffers: how a server collects messages before it makes a step."""

from typing import Any, NamedTuple

import numpy as np

from byzjax._src import checks
from byzjax.asynchrony._check_events import as_array, check_events, require
from byzjax.asynchrony._events import Events


class Buffer(NamedTuple):
  """The buffer row of every message, and when the server makes a step.

  Attributes:
    num_rows: B, the number of rows.
    row: int32[E], the row of each message.
    num_averaged: int32[E], the number of messages in that row, including this
      one: a row stores their mean.
    is_full: bool[E], whether the server makes a step after this message; all
      rows are then emptied.
  """

  num_rows: int
  row: np.ndarray
  num_averaged: np.ndarray
  is_full: np.ndarray


def by_arrival(events: Events, *, num_rows: int) -> Buffer:
  """Buffers the next B messages from any workers (FedBuff).

  A fast worker may fill several rows, and a fast Byzantine worker the whole
  buffer.

  Args:
    events: the events of the run.
    num_rows: B >= 1.

  Returns:
    A `Buffer` in which every row has one message.

  Raises:
    ValueError: if B < 1, or the events are not a possible run.

  References:
    Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, 2022,
    arXiv:2106.06639.

  Example:
    >>> from byzjax import asynchrony
    >>> events = asynchrony.simulate([1.0, 2.5], num_events=5)
    >>> buffer = asynchrony.by_arrival(events, num_rows=2)
    >>> print(buffer.row, buffer.is_full)
    [0 1 0 1 0] [False  True False  True False]
  """
  events = check_events('by_arrival', events)
  checks.check_count('by_arrival', 'num_rows', num_rows, 1)
  row = np.arange(len(events.worker), dtype=np.int32) % num_rows
  return Buffer(num_rows, row, np.ones_like(row), row == num_rows - 1)


def by_worker(events: Events, *, num_rows: int) -> Buffer:
  """Puts worker k's messages in row `k mod B`, until all rows are used (BASGD).

  A row stores the mean of its messages. However often f Byzantine workers send,
  they reach at most f rows, so a rule that tolerates f of B rows is robust.

  Args:
    events: the events of the run.
    num_rows: B, from 1 to K.

  Returns:
    A `Buffer`.

  Raises:
    ValueError: if B is out of range, or the events are not a possible run.

  References:
    Yang, Li, 2021, arXiv:2003.00937 (without reassigning rows whose workers do
    not respond).

  Example:
    >>> from byzjax import asynchrony
    >>> events = asynchrony.simulate([1.0, 2.5], num_events=5)
    >>> buffer = asynchrony.by_worker(events, num_rows=2)
    >>> print(buffer.row, buffer.num_averaged, buffer.is_full)
    [0 0 1 0 0] [1 2 1 1 2] [False False  True False False]
  """
  events = _checked('by_worker', events, num_rows)

  def place(worker, taken):
    del taken
    return worker % num_rows

  return _fill(events, num_rows, place)


def by_distinct_workers(events: Events, *, num_rows: int) -> Buffer:
  """Gives one row to each of the first B distinct workers that send a message.

  Further messages of the same worker are averaged into its row: no worker has
  more than one row, and no step waits for the slowest K - B workers.

  Args:
    events: the events of the run.
    num_rows: B, from 1 to K.

  Returns:
    A `Buffer`.

  Raises:
    ValueError: if B is out of range, or the events are not a possible run.

  References:
    One row per worker as in Yang, Li, 2021, arXiv:2003.00937; the first B
    workers as in Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, 2022,
    arXiv:2106.06639.

  Example:
    >>> from byzjax import asynchrony
    >>> events = asynchrony.simulate([1.0, 1.0, 2.5], num_events=6)
    >>> buffer = asynchrony.by_distinct_workers(events, num_rows=2)
    >>> print(events.worker, buffer.row)
    [0 1 0 1 2 0] [0 1 0 1 0 1]
  """
  events = _checked('by_distinct_workers', events, num_rows)

  def place(worker, taken):
    return taken.setdefault(worker, len(taken))

  return _fill(events, num_rows, place)


def check_buffer(name: str, buffer: Any, num_events: int) -> None:
  """Raises ValueError unless this can be a buffer of so many events."""
  if not isinstance(buffer, Buffer) or len(buffer.row) != num_events:
    raise ValueError(
      f'{name} needs a buffer of these {num_events} events, such as'
      f' asynchrony.by_worker(events, num_rows=...), got'
      f' {type(buffer).__name__}'
    )
  checks.check_count(name, 'buffer.num_rows', buffer.num_rows, 1)
  rows = as_array(name, 'buffer.row', buffer.row, np.int32)
  counts = as_array(name, 'buffer.num_averaged', buffer.num_averaged, np.int32)
  fulls = as_array(name, 'buffer.is_full', buffer.is_full, bool)
  good = (rows >= 0) & (rows < buffer.num_rows)
  rule = f'from 0 to {buffer.num_rows - 1}, as num_rows = {buffer.num_rows}'
  require(name, 'buffer.row', rows, good, rule)
  if len(counts) != num_events or len(fulls) != num_events:
    raise ValueError(
      f'{name} needs buffer.num_averaged and buffer.is_full to have an entry'
      f' for each of {num_events} events, got {len(counts)} and {len(fulls)}'
    )
  expected, may_be_full = _count(rows.tolist(), fulls.tolist(), buffer.num_rows)
  rule = 'False as long as a row has no message'
  require(name, 'buffer.is_full', fulls, ~fulls | may_be_full, rule)
  rule = 'the number of messages in this row since the buffer was full'
  require(name, 'buffer.num_averaged', counts, counts == expected, rule)


def _count(rows, fulls, num_rows):
  """`(messages in the row of each, whether all rows have one by then)`."""
  filled, counts, complete = [0] * num_rows, [], []
  for row, is_full in zip(rows, fulls):
    filled[row] += 1
    counts.append(filled[row])
    complete.append(is_full and all(filled))
    if is_full:
      filled = [0] * num_rows
  return np.array(counts), np.array(complete)


def _checked(name: str, events: Events, num_rows: int) -> Events:
  events = check_events(name, events)
  checks.check_count(name, 'num_rows', num_rows, 1)
  if num_rows > events.num_workers:
    raise ValueError(
      f'{name} needs num_rows <= num_workers, got {num_rows} and'
      f' {events.num_workers}'
    )
  return events


def _fill(events: Events, num_rows: int, place) -> Buffer:
  """Runs over the messages; `place` is `(worker, {worker: row}) -> row`."""
  rows, counts, fulls = [], [], []
  filled, taken = np.zeros(num_rows, np.int32), dict[int, int]()
  for worker in events.worker.tolist():
    row = place(worker, taken)
    filled[row] += 1
    rows.append(row)
    counts.append(filled[row])
    fulls.append(bool(filled.all()))
    if fulls[-1]:
      filled[:] = 0
      taken.clear()
  return Buffer(
    num_rows,
    np.array(rows, np.int32),
    np.array(counts, np.int32),
    np.array(fulls, bool),
  )
