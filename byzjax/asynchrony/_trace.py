"""Events from the record of a real run."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from byzjax._src import checks
from byzjax.asynchrony import _check_events
from byzjax.asynchrony._events import Events

_NAME = 'events_from_trace'
# What errors call the fields of the events.
_ARGUMENTS = dict(zip(Events._fields, Events._fields)) | {
  'worker': 'workers',
  'time': 'times',
  'shard': 'shards',
}


def events_from_trace(
  workers: ArrayLike,
  times: ArrayLike,
  *,
  num_workers: int | None = None,
  started: ArrayLike | None = None,
  issued_at: ArrayLike | None = None,
  grace: float = 0.0,
  num_local_steps: ArrayLike = 1,
  shards: ArrayLike | None = None,
  num_shards: int | None = None,
  progress: ArrayLike | None = None,
  is_waiting: ArrayLike | None = None,
) -> Events:
  """The events of a recorded run, from the sender and time of each message.

  Missing information is inferred as in `simulate`: all workers start at 0
  seconds from the initial parameters, and a worker starts its next job as soon
  as its message has arrived (together with those that arrive up to `grace`
  seconds later), from the parameters at that moment. So the workers and times
  of a `simulate` run reproduce its events if no message was lost, no worker was
  absent, every worker has its own shard, and `grace` and `num_local_steps` are
  passed.

  If jobs started at other times, pass `started`, or, if the server numbered its
  parameters, `issued_at`. This also covers lost messages and absent workers:
  omit the lost messages, and pass the start of the jobs that arrived.

  Args:
    workers: int[E], the sender of each message, from 0 to K - 1.
    times: float[E], the arrival time in seconds from the start of the run,
      non-decreasing.
    num_workers: K; None for the highest entry of `workers` plus one.
    started: float[E], the time in seconds from the start of the run at which
      the job got its parameters, which include all messages that had arrived by
      then. None: inferred as above.
    issued_at: int[E], how many messages had arrived at that time; an
      alternative to `started`.
    grace: as in `simulate`; only without `started` and `issued_at`.
    num_local_steps: local steps of the jobs: an int >= 1, or int[E].
    shards: int[E], the part of the data of each job; None for the index of its
      worker.
    num_shards: number of parts of the data; None for K.
    progress: int[E], the number of local steps assigned on the shard before the
      job. None: the steps of the jobs here that started earlier, in the order
      of `issued_at` (ties in the order of the workers).
    is_waiting: bool[E], whether some worker was waiting for new parameters when
      the message arrived. None: a worker waits from its message until it gets
      the parameters of its next message.

  Returns:
    `Events`.

  Raises:
    ValueError: if an argument has the wrong type or shape, or the messages are
      not a possible run; it names the argument, the index of the message and
      the rule.

  Example:
    >>> from byzjax import asynchrony
    >>> events = asynchrony.events_from_trace(
    ...   workers=[0, 0, 1, 0, 0], times=[1.0, 2.0, 2.5, 3.0, 4.0])
    >>> print(events.issued_at, events.staleness, events.progress)
    [0 1 0 2 4] [0 0 2 1 0] [0 1 0 2 3]
  """
  sent = _check_events.as_array(_NAME, 'workers', workers, np.int32)
  count = len(sent)

  def array(name: str, value: ArrayLike, dtype: Any) -> np.ndarray:
    entries = _check_events.as_array(_NAME, name, value, dtype)
    if len(entries) != count:
      raise ValueError(
        f'{_NAME} needs {name} to have an entry for each of the {count}'
        f' messages in workers, got {len(entries)}'
      )
    return entries

  arrived = array('times', times, np.float64)
  shard = sent if shards is None else array('shards', shards, np.int32)
  steps = np.asarray(num_local_steps)
  steps = np.full(count, steps) if steps.ndim == 0 else steps
  steps = array('num_local_steps', steps, np.int32)
  if num_workers is None:
    num_workers = max(int(sent.max(initial=0)) + 1, 1)
  checks.check_range(_NAME, 'grace', grace, 0)
  if (started is not None) + (issued_at is not None) + (grace > 0) > 1:
    raise ValueError(
      f'{_NAME} needs only one of started, issued_at and grace: each says when'
      f' jobs began, got {started=}, {issued_at=} and {grace=}'
    )
  waits = None
  if issued_at is not None:
    begun = array('issued_at', issued_at, np.int32)
  elif started is not None:
    begun = _begun(sent, arrived, array('started', started, np.float64))
  else:
    begun, waits = _replay(sent, arrived, num_workers, grace)
  if is_waiting is not None:
    waits = array('is_waiting', is_waiting, bool)
  elif waits is None:
    waits = _check_events.waits(sent, begun, at_end=False)
  if progress is None:
    progress = _progress(sent, begun, steps, shard)
  events = Events(
    num_workers,
    num_workers if num_shards is None else num_shards,
    sent,
    arrived,
    begun,
    steps,
    shard,
    array('progress', progress, np.int32),
    waits,
  )
  return _check_events.check_events(_NAME, events, _ARGUMENTS)


def _replay(workers, times, num_workers, grace):
  """`(issued_at, is_waiting)` if workers begin again as in `simulate`."""
  begun = dict[int, int]()  # by worker, of its newest job
  waiting = set[int]()
  issued_at, is_waiting, first = [], [], math.inf
  for e, (k, time) in enumerate(zip(workers.tolist(), times.tolist())):
    # Who sends again cannot have waited until now.
    is_over = time - first > grace or k in waiting
    if waiting and (is_over or len(waiting) == num_workers):
      begun.update(dict.fromkeys(waiting, e))
      waiting.clear()
    first = min(first, time) if waiting else time
    issued_at.append(begun.get(k, 0))
    is_waiting.append(bool(waiting))
    waiting.add(k)
  return np.array(issued_at, np.int32), np.array(is_waiting, bool)


def _begun(workers, times, started):
  """How many messages had arrived when jobs got their parameters."""
  before, _ = _check_events.neighbors(workers)
  previous = np.where(before < 0, 0, times[before])
  _check_events.require(
    _NAME,
    'started',
    started,
    (started >= previous) & (started <= times),
    'from the arrival of the last message of the same worker, or 0, to that of'
    ' its own',
  )
  count = np.searchsorted(times, started, side='right')
  # A message has not arrived before its own job began, if that took no time.
  return np.minimum(count, np.arange(len(times))).astype(np.int32)


def _progress(workers, issued_at, steps, shards):
  """Steps of the jobs on the same shard that began before."""
  order = np.lexsort((workers, issued_at, shards))
  counts, own = steps[order].astype(np.int64), shards[order]
  before = np.cumsum(counts) - counts
  # What was counted before the shard's first job is of other shards.
  is_first = np.diff(own, prepend=own[:1] - 1) != 0
  offsets = before[is_first][np.cumsum(is_first) - 1]
  progress = np.empty_like(before)
  progress[order] = before - offsets
  return progress
