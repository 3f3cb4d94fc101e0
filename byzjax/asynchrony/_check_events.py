"""Whether arrays of events can be a run: what a schedule never violates."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from byzjax._src import checks
from byzjax.asynchrony._events import Events

_DTYPES = {
  'worker': np.int32,
  'time': np.float64,
  'issued_at': np.int32,
  'num_local_steps': np.int32,
  'shard': np.int32,
  'progress': np.int32,
  'is_waiting': bool,
}


def check_events(
  name: str, events: Any, arguments: Mapping[str, str] | None = None
) -> Events:
  """The events as NumPy arrays of the types that `Events` states.

  Args:
    name: of the function that was given them, for errors.
    events: from `simulate`, from `events_from_trace`, or made by hand.
    arguments: what the caller calls the fields, where not `events.worker`.

  Returns:
    `Events`, those of `simulate` as they are.

  Raises:
    ValueError: if there are none, or they cannot be a run; with the field, the
      index of the event and the rule.
  """
  if not isinstance(events, Events):
    raise ValueError(
      f'{name} needs events from asynchrony.simulate or'
      f' asynchrony.events_from_trace, got {type(events).__name__}'
    )
  label = arguments or {field: f'events.{field}' for field in Events._fields}
  checks.check_count(name, label['num_workers'], events.num_workers, 1)
  checks.check_count(name, label['num_shards'], events.num_shards, 1)
  events = _as_arrays(name, events, label)

  def rule(good, field, words):
    require(name, label[field], getattr(events, field), good, words)

  index = np.arange(len(events.worker))
  rule(
    (events.worker >= 0) & (events.worker < events.num_workers),
    'worker',
    f'from 0 to {events.num_workers - 1}, as num_workers ='
    f' {events.num_workers}',
  )
  rule(
    np.isfinite(events.time) & (events.time >= 0),
    'time',
    'finite and at least 0',
  )
  rule(
    np.diff(events.time, prepend=0) >= 0,
    'time',
    'at least that of the event before it',
  )
  rule(
    (events.issued_at >= 0) & (events.issued_at <= index),
    'issued_at',
    'from 0 to the number of events before this one: no job begins from'
    ' parameters of the future',
  )
  before, _ = neighbors(events.worker)
  rule(
    events.issued_at > before,
    'issued_at',
    'above the index of the last event of the same worker: it gets new'
    ' parameters after its message has arrived',
  )
  rule(events.num_local_steps >= 1, 'num_local_steps', 'at least 1')
  rule(
    (events.shard >= 0) & (events.shard < events.num_shards),
    'shard',
    f'from 0 to {events.num_shards - 1}, as num_shards = {events.num_shards}',
  )
  rule(events.progress >= 0, 'progress', 'at least 0')
  _check_progress(events, rule)
  rule(
    ~events.is_waiting | waits(events.worker, events.issued_at, at_end=True),
    'is_waiting',
    'False, for every worker that had sent a message had got new parameters',
  )
  return events


def neighbors(worker: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The events of the same worker before and after each: int[E] twice.

  -1 where there is none before, and E where there is none after.
  """
  count = len(worker)
  before, after = np.full(count, -1), np.full(count, count)
  order = np.argsort(worker, kind='stable')
  same = worker[order[1:]] == worker[order[:-1]]
  before[order[1:][same]] = order[:-1][same]
  after[order[:-1][same]] = order[1:][same]
  return before, after


def waits(
  worker: np.ndarray, issued_at: np.ndarray, *, at_end: bool
) -> np.ndarray:
  """At which arrivals some worker had sent and not yet got parameters.

  Args:
    worker: int[E].
    issued_at: int[E].
    at_end: whether workers wait after the last message of theirs.

  Returns:
    bool[E].
  """
  count = len(worker)
  _, after = neighbors(worker)
  index = np.arange(count)
  # It waits at the events between its message and its new parameters.
  until = np.append(issued_at, count)[after]
  if not at_end:
    until = np.where(after == count, index + 1, until)
  until = np.clip(until, index + 1, count)
  changes = np.bincount(index + 1, minlength=count + 1)
  changes = changes - np.bincount(until, minlength=count + 1)
  return np.cumsum(changes)[:count] > 0


def as_array(name: str, field: str, value: Any, dtype: Any) -> np.ndarray:
  """One array `[E]` of a dtype, from what is of the same kind."""
  if isinstance(value, jax.core.Tracer):
    raise ValueError(
      f'{name} needs {field} to be known before jax.jit: events are part of the'
      ' program, got a traced array'
    )
  array = np.asarray(value)
  kinds = {bool: 'b', np.int32: 'iu', np.float64: 'iuf'}[dtype]
  word = {bool: 'bool', np.int32: 'int', np.float64: 'float'}[dtype]
  if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
    raise ValueError(
      f'{name} needs {field} to be {word}[E], one entry per message, got'
      f' {array.dtype}{list(array.shape)}'
    )
  if dtype is np.int32 and array.size:
    limit = np.iinfo(np.int32).max
    require(name, field, array, array <= limit, f'at most {limit}')
  return array.astype(dtype, copy=False)


def require(
  name: str, field: str, values: np.ndarray, good: np.ndarray, rule: str
) -> None:
  """Raises ValueError for the first event that is not good."""
  if not good.all():
    e = int(np.argmin(good))
    raise ValueError(f'{name} needs {field}[{e}] to be {rule}, got {values[e]}')


def _as_arrays(name, events, label):
  arrays = {
    field: as_array(name, label[field], getattr(events, field), dtype)
    for field, dtype in _DTYPES.items()
  }
  count = len(arrays['worker'])
  if not count:
    raise ValueError(f'{name} needs events of at least one message, got none')
  for field, array in arrays.items():
    if len(array) != count:
      raise ValueError(
        f'{name} needs {label[field]} to have an entry for each of the {count}'
        f' messages in {label["worker"]}, got {len(array)}'
      )
  return events._replace(**arrays)


def _check_progress(events, rule):
  """Local steps of a shard are given out once each, in the order of jobs."""
  order = np.lexsort((events.progress, events.shard))
  first, second = order[:-1], order[1:]
  other = events.shard[first] != events.shard[second]
  good = np.ones(len(order), bool)
  # int64, for a job may end beyond int32.
  ends = events.progress[first].astype(np.int64) + events.num_local_steps[first]
  good[second] = other | (events.progress[second] >= ends)
  rule(good, 'progress', 'a local step of its shard that no other job takes')
  good[second] = other | (events.issued_at[second] >= events.issued_at[first])
  rule(good, 'progress', 'below that of jobs on its shard that began later')
