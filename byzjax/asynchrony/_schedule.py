"""Events as data of a compiled program, instead of constants."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import checks
from byzjax.asynchrony import _plan
from byzjax.asynchrony._buffers import Buffer, check_buffer
from byzjax.asynchrony._check_events import check_events
from byzjax.asynchrony._events import Events


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
  """The messages of one or several runs as a pytree: see `schedule`.

  Its arrays may be traced, and mapped over by `jax.vmap`. The other numbers are
  static: two schedules with the same ones run in one compiled program.

  Attributes:
    plan: the data of every message, arrays `[length]`.
    num_events: int32[], the number of real messages; the rest is padding.
    num_workers: K.
    num_shards: number of parts of the data.
    num_versions: number of parameter versions that are stored.
    num_rows: number of rows of the buffer, or None without one.
    max_local_steps: the maximum number of local steps of a job.
  """

  plan: _plan.Plan
  num_events: jax.Array | int
  num_workers: int = dataclasses.field(metadata={'static': True})
  num_shards: int = dataclasses.field(metadata={'static': True})
  num_versions: int = dataclasses.field(metadata={'static': True})
  num_rows: int | None = dataclasses.field(metadata={'static': True})
  max_local_steps: int = dataclasses.field(metadata={'static': True})


def schedule(
  events: Events,
  buffer: Buffer | None = None,
  *,
  length: int | None = None,
  num_versions: int | None = None,
  max_local_steps: int | None = None,
) -> Schedule:
  """Converts events to an argument of a compiled program.

  `asynchronous_round(events=...)` makes events constants of its program, so
  another order of arrival needs another compilation. A `Schedule` may instead
  be an argument of a jitted function that builds the round and runs it: then
  one program accepts any schedule of the same sizes. `stack_schedules` stacks
  several schedules for `jax.vmap`.

  Args:
    events: from `simulate` or `events_from_trace`.
    buffer: for these events, such as `by_worker(events, num_rows=...)`.
    length: the padded number of messages; None for their actual number. Steps
      on padding do not change the parameters.
    num_versions: the padded number of stored parameter versions; None for the
      number that the events need; K + 1 is always enough.
    max_local_steps: an upper bound on the local steps of a job; None for the
      largest.

  Returns:
    A `Schedule`, with NumPy or JAX arrays.

  Raises:
    ValueError: if the events are not a possible run, the buffer does not belong
      to these events, or a size is too small for them.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> from byzjax import asynchrony
    >>> @jax.jit
    ... def train(schedule):
    ...   training = byzjax.asynchronous_round(
    ...     lambda w, x: jnp.mean((w - x) ** 2), events=schedule,
    ...     optimizer=optax.sgd(0.1))
    ...   def step(state, _):
    ...     return training.step(state, jnp.ones([2, 1]), jax.random.key(0))
    ...   start = training.init(jnp.zeros([]))
    ...   return jax.lax.scan(step, start, length=9)[0].params
    >>> runs = asynchrony.stack_schedules([
    ...   asynchrony.schedule(asynchrony.simulate(
    ...     [1.0, 1.5], num_events=9, variation=0.5, seed=seed))
    ...   for seed in range(3)])
    >>> jax.vmap(train)(runs).shape
    (3,)
  """
  made = make_schedule('schedule', events, buffer)
  sizes = _sizes(made)
  for name, value in (
    ('length', length),
    ('num_versions', num_versions),
    ('max_local_steps', max_local_steps),
  ):
    if value is not None:
      checks.check_count('schedule', name, value, sizes[name])
      sizes[name] = value
  return _resized(made, **sizes)


def stack_schedules(schedules: Sequence[Schedule]) -> Schedule:
  """Stacks several schedules along a new leading axis, for `jax.vmap`.

  Args:
    schedules: with the same numbers of workers, shards and buffer rows; all
      other sizes may differ.

  Returns:
    A `Schedule` whose arrays have a leading axis for the runs.

  Raises:
    ValueError: if there are none, or they differ in one of these numbers.

  Example:
    >>> from byzjax import asynchrony
    >>> runs = asynchrony.stack_schedules([
    ...   asynchrony.schedule(asynchrony.simulate([1.0, 2.0], num_events=n))
    ...   for n in (4, 6)])
    >>> runs.plan.worker.shape, runs.num_events
    ((2, 6), Array([4, 6], dtype=int32))
  """
  name = 'stack_schedules'
  checks.check_sequence(name, 'schedules', schedules)
  if not schedules or not all(isinstance(s, Schedule) for s in schedules):
    raise ValueError(
      f'{name} needs schedules to be at least one Schedule of'
      f' asynchrony.schedule, got {[type(s).__name__ for s in schedules]}'
    )
  for field in ('num_workers', 'num_shards', 'num_rows'):
    found = [getattr(each, field) for each in schedules]
    if len(set(found)) > 1:
      raise ValueError(f'{name} needs schedules alike in {field}, got {found}')
  each = [_sizes(one) for one in schedules]
  sizes = {key: max(size[key] for size in each) for key in each[0]}
  resized = [_resized(one, **sizes) for one in schedules]
  return jax.tree.map(lambda *arrays: jnp.stack(arrays), *resized)


def make_schedule(name: str, events: Any, buffer: Any) -> Schedule:
  """The schedule with the sizes that the events need; `name` is for errors."""
  events = check_events(name, events)
  if buffer is not None:
    check_buffer(name, buffer, len(events.worker))
  plan, num_versions = _plan.plan(events, buffer)
  return Schedule(
    plan,
    len(events.worker),
    events.num_workers,
    events.num_shards,
    num_versions,
    None if buffer is None else buffer.num_rows,
    int(events.num_local_steps.max()),
  )


def _sizes(one: Schedule) -> dict[str, int]:
  return {
    'length': one.plan.worker.shape[-1],
    'num_versions': one.num_versions,
    'max_local_steps': one.max_local_steps,
  }


def _resized(
  one: Schedule, length: int, num_versions: int, max_local_steps: int
) -> Schedule:
  """With more places; the last version's is for what nobody will read."""
  plan = one.plan
  unread = plan.write == one.num_versions - 1
  plan = plan._replace(write=jnp.where(unread, num_versions - 1, plan.write))
  # Messages behind the last one repeat it, and do nothing.
  lacking = length - plan.worker.shape[0]
  return dataclasses.replace(
    one,
    plan=_plan.Plan(*(jnp.pad(x, (0, lacking), 'edge') for x in plan)),
    num_events=jnp.asarray(np.int32(one.num_events)),
    num_versions=num_versions,
    max_local_steps=max_local_steps,
  )
