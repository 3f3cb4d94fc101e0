"""Simulated arrival times of workers with different speeds, as events."""

import heapq
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from byzjax._src import checks
from byzjax.asynchrony._events import Events

_NAME = 'simulate'


class _Job(NamedTuple):
  """What one worker is doing."""

  finish: float
  is_lost: bool
  issued_at: int
  steps: int
  shard: int
  progress: int


class _Jobs(NamedTuple):
  """The arguments of `simulate` that say what jobs are like, and its draws.

  What is read for every message is in lists: an item of an array costs more.
  """

  seconds: list[float]  # of a job, one of each worker
  steps: list[int]  # of a job, one of each worker
  variation: float
  slow_probability: float
  slow_factor: float
  loss_probability: float
  absences: Sequence[tuple[int, float, float]]
  shards: str
  sizes: np.ndarray  # float[num_shards]
  draws: list[np.random.Generator]  # one of each worker
  shard_draws: np.random.Generator
  given: list[int]  # of each shard, steps given out: every job adds its own


class _Limits(NamedTuple):
  """When a simulation ends: at the first of these that is not None."""

  num_events: int | None
  total_steps: int | None
  max_time: float | None

  def reached(self, num_events: int, total_steps: int, time: float) -> bool:
    """Whether so many messages, steps and seconds are enough."""
    return (
      (self.num_events is not None and num_events >= self.num_events)
      or (self.total_steps is not None and total_steps >= self.total_steps)
      or (self.max_time is not None and time > self.max_time)
    )


def simulate(
  seconds_per_step: Sequence[float] | np.ndarray,
  *,
  num_events: int | None = None,
  total_steps: int | None = None,
  max_time: float | None = None,
  num_local_steps: int | Sequence[int] | np.ndarray = 1,
  grace: float = 0.0,
  variation: float = 0.0,
  slow_probability: float = 0.0,
  slow_factor: float = 10.0,
  loss_probability: float = 0.0,
  absences: Sequence[tuple[int, float, float]] = (),
  shards: Literal['own', 'balanced', 'least_visited'] = 'own',
  shard_sizes: Sequence[float] | np.ndarray | None = None,
  seed: int = 0,
) -> Events:
  r"""Simulates when workers of given speeds send their messages.

  A job of worker k takes

  .. math:: H_k \, s_k \, \Gamma \, S, \quad
    \Gamma \sim \mathrm{Gamma}(v^{-2}, v^2), \quad
    S = \text{slow\_factor with slow\_probability, or else } 1

  seconds. When it arrives, the server applies it and waits `grace` seconds for
  others. All workers whose messages arrived in this time then start their next
  jobs together, from the same parameters, when the last of these messages has
  arrived. So grace = 0 is asynchronous and `math.inf` is synchronous. Every
  worker has its own random stream.

  Args:
    seconds_per_step: float[K], s_k > 0.
    num_events: E, the number of messages after which to end.
    total_steps: end when this many local steps have arrived.
    max_time: end before the first message later than this, in seconds.
    num_local_steps: H_k, an int or int[K], such as
      `dynamic_local_updates(...)`.
    grace: how long the server waits for other messages, seconds >= 0.
    variation: v >= 0, the standard deviation of a job's duration over its mean.
    slow_probability: the probability that a job straggles, in [0, 1].
    slow_factor: the factor on the duration of such a job, > 0.
    loss_probability: the probability that a message is lost, in [0, 1); the
      worker then starts a new job at the time at which it would have arrived,
      from the latest parameters.
    absences: `(worker, from, to)` in seconds: messages that the worker would
      deliver in this time are lost, and it starts a new job at the end; `to`
      may be infinite.
    shards: 'own', worker k uses shard k; 'balanced', the shard of a job is
      drawn in proportion to `max(|D_i| / sum_j |D_j| - n_i / sum_j n_j, 0)`,
      with n_i the steps assigned on shard i; 'least_visited', the shard with
      the fewest steps relative to its size (ties to the lowest index).
    shard_sizes: float[num_shards] > 0, `|D_i|`; None for K equal shards.
    seed: the seed of all draws, a Python int.

  Returns:
    `Events`. Messages with equal times arrive in the order of the workers.

  Raises:
    ValueError: if an argument is out of range, if none of `num_events`,
      `total_steps` and `max_time` is given, or if all workers are absent before
      the end.

  References:
    Liu, Chhaparia, Douillard, Kale, Rusu, Shen, Szlam, Ranzato, 2024,
    arXiv:2401.09135 (grace, shards).

  Example:
    >>> from byzjax import asynchrony
    >>> events = asynchrony.simulate([1.0, 2.5], num_events=5)
    >>> print(events.worker, events.time, events.staleness)
    [0 0 1 0 0] [1.  2.  2.5 3.  4. ] [0 0 2 1 0]
  """
  speeds, steps, sizes = _checked(
    seconds_per_step, num_local_steps, shards, shard_sizes
  )
  num_workers = len(speeds)
  checks.check_count(_NAME, 'seed', seed)
  _check_ranges(
    num_workers,
    num_events=num_events,
    total_steps=total_steps,
    max_time=max_time,
    grace=grace,
    variation=variation,
    slow_probability=slow_probability,
    slow_factor=slow_factor,
    loss_probability=loss_probability,
    absences=absences,
  )
  jobs = _Jobs(
    (steps * speeds).tolist(),
    steps.tolist(),
    variation,
    slow_probability,
    slow_factor,
    loss_probability,
    # In order, as an absence may begin before the one that it follows ends.
    sorted(absences, key=lambda absence: absence[1]),
    shards,
    sizes,
    [np.random.default_rng([seed, k]) for k in range(num_workers)],
    np.random.default_rng([seed, num_workers]),
    [0] * len(sizes),
  )
  arrivals = _run(jobs, grace, _Limits(num_events, total_steps, max_time))
  columns = zip(*arrivals) if arrivals else [()] * 7
  worker, time, *integers, is_waiting = columns
  issued_at, step_counts, shard, progress = (
    np.array(x, np.int32) for x in integers
  )
  return Events(
    num_workers,
    len(sizes),
    np.array(worker, np.int32),
    np.array(time, np.float64),
    issued_at,
    step_counts,
    shard,
    progress,
    np.array(is_waiting, bool),
  )


def _run(
  jobs: _Jobs, grace: float, limits: _Limits
) -> list[tuple[int, float, int, int, int, int, bool]]:
  """The messages in the order of their arrival, as rows of `Events`."""
  current = [_begin(jobs, k, 0.0, 0) for k in range(len(jobs.steps))]
  # Those at work, by when they are done; of equal times the lowest worker.
  at_work = [(job.finish, k) for k, job in enumerate(current)]
  heapq.heapify(at_work)

  def begin(k: int, now: float) -> None:
    current[k] = _begin(jobs, k, now, len(arrivals))
    heapq.heappush(at_work, (current[k].finish, k))

  waiting: list[int] = []
  arrivals: list[tuple[int, float, int, int, int, int, bool]] = []
  group_start, local_steps = math.inf, 0
  while True:
    finish, k = at_work[0] if at_work else (math.inf, -1)
    if waiting and (finish == math.inf or finish - group_start > grace):
      now = max(current[i].finish for i in waiting)
      for i in sorted(waiting):
        begin(i, now)
      waiting, group_start = [], math.inf
      continue
    if limits.reached(len(arrivals), local_steps, finish):
      return arrivals
    if finish == math.inf:
      raise ValueError(
        f'{_NAME} needs at least one worker to be present until the end, got'
        f' absences={jobs.absences} and {len(arrivals)} messages'
      )
    heapq.heappop(at_work)
    job = current[k]
    if job.is_lost:
      begin(k, finish)
      continue
    arrivals.append((k, finish, *job[2:], bool(waiting)))
    waiting.append(k)
    group_start = min(group_start, finish)
    local_steps += job.steps


def _begin(jobs: _Jobs, k: int, start: float, issued_at: int) -> _Job:
  """The next job of worker k, with its draws made."""
  random = jobs.draws[k]
  seconds = jobs.seconds[k]
  if jobs.variation > 0:
    seconds *= random.gamma(jobs.variation**-2, jobs.variation**2)
  if jobs.slow_probability > 0 and random.random() < jobs.slow_probability:
    seconds *= jobs.slow_factor
  loss = jobs.loss_probability
  is_lost = bool(loss and random.random() < loss)
  finish = start + seconds
  for who, since, until in jobs.absences:
    if who == k and since <= finish < until:
      finish, is_lost = until, True
  shard = _shard_of(jobs, k)
  progress = jobs.given[shard]
  jobs.given[shard] += jobs.steps[k]
  return _Job(finish, is_lost, issued_at, jobs.steps[k], shard, progress)


def _shard_of(jobs: _Jobs, k: int) -> int:
  """The part of the data that the next job of worker k is computed on."""
  if jobs.shards == 'own':
    return k
  share = jobs.sizes / jobs.sizes.sum()
  if jobs.shards == 'least_visited':
    return int(np.argmin(jobs.given / share))
  lack = np.maximum(share - np.array(jobs.given) / max(sum(jobs.given), 1), 0)
  # All shards are where they should be, but for rounding.
  lack = share if lack.sum() < 1e-12 else lack
  return int(jobs.shard_draws.choice(len(share), p=lack / lack.sum()))


def _checked(seconds, num_local_steps, shards, shard_sizes):
  """Speeds, steps and sizes as arrays, or a ValueError."""
  speeds = np.asarray(seconds, np.float64)
  if speeds.ndim != 1 or not speeds.size or not (speeds > 0).all():
    raise ValueError(
      f'{_NAME} needs seconds_per_step to be float[K] > 0, got {seconds}'
    )
  steps = np.asarray(num_local_steps)
  if (
    not np.issubdtype(steps.dtype, np.integer)
    or steps.shape not in ((), speeds.shape)
    or steps.min() < 1
  ):
    raise ValueError(
      f'{_NAME} needs num_local_steps to be an int or int[{len(speeds)}] >= 1,'
      f' got {num_local_steps!r}'
    )
  if shards not in ('own', 'balanced', 'least_visited'):
    raise ValueError(
      f"{_NAME} needs shards to be 'own', 'balanced' or 'least_visited', got"
      f' {shards!r}'
    )
  sizes = np.ones(len(speeds)) if shard_sizes is None else shard_sizes
  sizes = np.asarray(sizes, np.float64)
  if sizes.ndim != 1 or not sizes.size or not (sizes > 0).all():
    raise ValueError(
      f'{_NAME} needs shard_sizes to be float[num_shards] > 0, got'
      f' {shard_sizes}'
    )
  if shards == 'own' and len(sizes) != len(speeds):
    raise ValueError(
      f"{_NAME} needs as many shards as workers if shards='own', got"
      f' {len(sizes)} and {len(speeds)}'
    )
  return speeds, np.broadcast_to(steps, speeds.shape), sizes


def _check_ranges(num_workers, *, absences, num_events, total_steps, **reals):
  """Raises ValueError for an end or a real number that cannot be."""
  max_time = reals.pop('max_time')
  if max_time is not None:
    checks.check_range(_NAME, 'max_time', max_time)
  for name, value in reals.items():
    checks.check_range(_NAME, name, value)
  checks.check_sequence(_NAME, 'absences', absences)
  if num_events is None and total_steps is None and max_time is None:
    raise ValueError(
      f'{_NAME} needs num_events, total_steps or max_time, got none of them'
    )
  for name, count in (('num_events', num_events), ('total_steps', total_steps)):
    if count is not None:
      checks.check_count(_NAME, name, count, 1)
  if max_time is not None and not 0 < max_time < math.inf:
    raise ValueError(f'{_NAME} needs 0 < max_time < inf, got {max_time}')
  highest = {'slow_probability': 1.0, 'loss_probability': 1.0}
  for name, value in reals.items():
    low = math.ulp(0) if name == 'slow_factor' else 0
    if not low <= value <= highest.get(name, math.inf):
      raise ValueError(
        f'{_NAME} needs {name} between 0 and {highest.get(name, math.inf):g},'
        f' got {value}'
      )
  if reals['loss_probability'] == 1:
    raise ValueError(f'{_NAME} needs loss_probability < 1, got 1')
  for absence in absences:
    worker, since, until = absence
    if not (0 <= worker < num_workers and 0 <= since < until):
      raise ValueError(
        f'{_NAME} needs absences (worker, from, to) with worker <'
        f' {num_workers} and 0 <= from < to, got {absence}'
      )
