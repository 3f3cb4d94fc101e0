"""Workers of different speeds as arrays of events, simulated on the host."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from byzjax._src import checks

_NAME = 'simulate'


class Events(NamedTuple):
  """The messages that a server receives, in the order of their arrival.

  Nothing here depends on the values of parameters, so that a schedule can be
  known before any training, and a run is repeated bit by bit. `simulate` makes
  them, `events_from_trace` makes them of what a real server has recorded, and
  what takes them checks that they can be a run.

  Attributes:
    num_workers: K.
    num_shards: parts of the data, K unless said otherwise.
    worker: int32[E], who sent the message.
    time: float64[E], seconds at its arrival; never decreasing.
    issued_at: int32[E], how many messages had arrived when the server sent the
      parameters that the job began from: 0 is the initial parameters.
    num_local_steps: int32[E], of the job.
    shard: int32[E], which part of the data it was computed on.
    progress: int32[E], local steps that had been given out on this shard before
      the job.
    is_waiting: bool[E], whether at the arrival some worker was waiting for new
      parameters.
  """

  num_workers: int
  num_shards: int
  worker: np.ndarray
  time: np.ndarray
  issued_at: np.ndarray
  num_local_steps: np.ndarray
  shard: np.ndarray
  progress: np.ndarray
  is_waiting: np.ndarray

  @property
  def staleness(self) -> np.ndarray:
    """int32[E], messages that arrived since the job's parameters were sent."""
    return np.arange(len(self.worker), dtype=np.int32) - self.issued_at


class _Job(NamedTuple):
  """What one worker is doing."""

  finish: float
  is_lost: bool
  issued_at: int
  steps: int
  shard: int
  progress: int


def seconds_per_step(
  level: Literal['no', 'slight', 'moderate', 'very'], num_workers: int
) -> np.ndarray:
  """Speeds at the levels of heterogeneity of asynchronous Local-SGD.

  'very' is 0.58, 0.75, 1.51 and 3.33 seconds for four workers, the published
  numbers; 'no' is 1 for everybody; 'slight' and 'moderate' lie between them,
  a third and two thirds of the way in the logarithm, and so do the workers
  between the four, where there are more.

  Args:
    level: 'no', 'slight', 'moderate' or 'very'.
    num_workers: K >= 1.

  Returns:
    float64[K], from the fastest to the slowest; the median speed for K = 1.

  Raises:
    ValueError: if the level is not known, or K < 1.

  References:
    Liu, Chhaparia, Douillard, Kale, Rusu, Shen, Szlam, Ranzato, 2024,
    arXiv:2401.09135, and its notebook.

  Example:
    >>> from byzjax import asynchrony
    >>> print(asynchrony.seconds_per_step('very', 4))
    [0.58 0.75 1.51 3.33]
  """
  levels = ('no', 'slight', 'moderate', 'very')
  if level not in levels:
    raise ValueError(
      f'seconds_per_step needs level to be one of {", ".join(levels)}, got'
      f' {level!r}'
    )
  checks.check_count('seconds_per_step', 'num_workers', num_workers, 1)
  published = np.log([0.58, 0.75, 1.51, 3.33])
  at = np.linspace(0, 3, num_workers) if num_workers > 1 else np.array([1.5])
  share = levels.index(level) / 3
  return np.exp(share * np.interp(at, np.arange(4), published)).round(12)


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
  r"""Who sends what and when, if workers have these speeds.

  A job of worker k takes

  .. math:: H_k \, s_k \, \Gamma \, S, \quad
    \Gamma \sim \mathrm{Gamma}(v^{-2}, v^2), \quad
    S = \text{slow\_factor with slow\_probability, or else } 1

  seconds. When it arrives, the server applies it and waits `grace` seconds for
  others. All that arrived in this time then begin again, from the same
  parameters, when the last of them has arrived. So 0 is asynchronous and
  `math.inf` is synchronous. Every worker draws from a stream of its own.

  Args:
    seconds_per_step: float[K], s_k > 0.
    num_events: E, after how many messages to end.
    total_steps: end when so many local steps have arrived.
    max_time: end before the first message that is later than this.
    num_local_steps: H, or int[K], such as `dynamic_local_updates(...)`.
    grace: seconds >= 0 that a finished worker may have to wait.
    variation: v >= 0, the standard deviation of a job's time over its mean.
    slow_probability: in [0, 1], of a job that straggles.
    slow_factor: by which it takes longer.
    loss_probability: in [0, 1), of a job whose message never arrives; its
      worker begins again when it would have arrived, with what is newest then.
    absences: `(worker, from, to)` in seconds: what the worker would deliver in
      this time is lost, and at its end it begins again; `to` may be infinite.
    shards: 'own', worker k has shard k; 'balanced', the shard of a job is drawn
      in proportion to `max(|D_i| / sum_j |D_j| - n_i / sum_j n_j, 0)`, n_i the
      steps given out on shard i; 'least_visited', the shard with the fewest
      steps for its size, the lowest number of several.
    shard_sizes: float[num_shards] > 0, `|D_i|`; None for K equal shards.
    seed: of all draws.

  Returns:
    `Events`. Of equal times the lowest worker arrives first.

  Raises:
    ValueError: if an argument is out of range, or neither of `num_events`,
      `total_steps` and `max_time` is given, or nobody is left to send anything
      before the end.

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
  draws = [np.random.default_rng([seed, k]) for k in range(num_workers)]
  shard_draws = np.random.default_rng([seed, num_workers])
  given = np.zeros(len(sizes), np.int64)  # steps, by shard

  def shard_of(k):
    if shards == 'own':
      return k
    share = sizes / sizes.sum()
    if shards == 'least_visited':
      return int(np.argmin(given / share))
    lack = np.maximum(share - given / np.maximum(given.sum(), 1), 0)
    # All shards are where they should be, but for rounding.
    lack = share if lack.sum() < 1e-12 else lack
    return int(shard_draws.choice(len(sizes), p=lack / lack.sum()))

  def begin(k, start, issued_at):
    seconds = float(steps[k] * speeds[k])
    if variation > 0:
      seconds *= draws[k].gamma(variation**-2, variation**2)
    if slow_probability > 0 and draws[k].random() < slow_probability:
      seconds *= slow_factor
    is_lost = bool(loss_probability and draws[k].random() < loss_probability)
    finish = start + seconds
    for who, since, until in absences:
      if who == k and since <= finish < until:
        finish, is_lost = until, True
    shard = shard_of(k)
    progress = int(given[shard])
    given[shard] += steps[k]
    return _Job(finish, is_lost, issued_at, int(steps[k]), shard, progress)

  jobs = [begin(k, 0.0, 0) for k in range(num_workers)]
  waiting: list[int] = []
  found: list[tuple[Any, ...]] = []
  group_start, local_steps = math.inf, 0

  def is_over(time):
    return (
      (num_events is not None and len(found) >= num_events)
      or (total_steps is not None and local_steps >= total_steps)
      or (max_time is not None and time > max_time)
    )

  def earliest():
    """When the next job is done, and whose it is."""
    at_work = set(range(num_workers)) - set(waiting)
    return min((jobs[i].finish, i) for i in at_work or range(num_workers))

  while True:
    finish, k = earliest()
    is_late = finish == math.inf or finish - group_start > grace
    if waiting and (is_late or len(waiting) == num_workers):
      now = max(jobs[i].finish for i in waiting)
      for i in sorted(waiting):
        jobs[i] = begin(i, now, len(found))
      waiting, group_start = [], math.inf
      continue
    if is_over(finish):
      break
    job = jobs[k]
    if finish == math.inf:
      raise ValueError(
        f'{_NAME} needs a worker to be left until the end, got'
        f' absences={absences} and {len(found)} messages'
      )
    if job.is_lost:
      jobs[k] = begin(k, finish, len(found))
      continue
    found.append((k, finish, *job[2:], bool(waiting)))
    waiting.append(k)
    group_start = min(group_start, finish)
    local_steps += job.steps

  worker, time, *integers, is_waiting = zip(*found) if found else [()] * 7
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
