"""What asynchronous rounds check, beside what all rounds check."""

from typing import Any

import jax
import numpy as np

from byzjax._src import base, checks, kept_rows, round_arguments
from byzjax.aggregators import mean
from byzjax.asynchrony import Schedule
from byzjax.asynchrony._schedule import make_schedule


def schedule_of(name: str, events: Any, buffer: Any) -> Schedule:
  """The messages with what follows from them, checked."""
  if not isinstance(events, Schedule):
    return make_schedule(name, events, buffer)
  if buffer is not None:
    raise ValueError(
      f'{name} needs buffer to be None where events is a Schedule, which has'
      ' its own: asynchrony.schedule(events, buffer)'
    )
  if events.plan.worker.ndim != 1:
    runs = list(events.plan.worker.shape[:-1])
    raise ValueError(
      f'{name} needs the Schedule of one run, got one of {runs} runs: map over'
      ' them with jax.vmap'
    )
  return events


def check(
  name: str,
  messages: Schedule,
  local_optimizer: Any,
  codec: Any,
  attack: Any,
  aggregator: Any,
) -> base.Aggregator | None:
  """Raises ValueError for what does not fit together; returns the rule."""
  rule = round_arguments.check_slots(
    name,
    mean() if aggregator is None else aggregator,
    attack,
    {'codec': codec},
  )
  most = messages.max_local_steps
  if local_optimizer is None and most > 1:
    raise ValueError(
      f'{name} needs a local_optimizer for events with several local steps,'
      f' got None and up to {most}'
    )
  _check_places(name, messages, rule, codec)
  has_rule = aggregator is not None or messages.num_rows is not None
  return rule if has_rule else None


def _check_places(
  name: str, messages: Schedule, rule: base.Aggregator, codec: Any
) -> None:
  """Raises ValueError where a place is not of one worker, and must be.

  A traced schedule is not checked.
  """
  plan = messages.plan
  known = (plan.worker, plan.row, plan.num_averaged)
  if any(isinstance(x, jax.core.Tracer) for x in known):
    return
  worker, row, averaged = (np.asarray(x).tolist() for x in known)
  is_own = len(set(zip(worker, row))) == len(set(worker)) == len(set(row))
  if kept_rows.knows_places(rule) and not is_own:
    raise ValueError(
      f'{name} needs a buffer in which every worker has one row of its own with'
      f' {rule!r}, which knows workers by their places, got another: use'
      f' asynchrony.by_worker(events, num_rows={messages.num_workers})'
    )
  # The sum of differences is what both sides keep, not their mean.
  if getattr(codec, 'name', '').startswith('byz_ef21') and max(averaged) > 1:
    raise ValueError(
      f'{name} needs a buffer that averages no messages with {codec!r}, got one'
      f' with up to {max(averaged)} in a row'
    )


def byzantine_schedule(
  name: str, num_workers: int, byzantine: Any
) -> base.ByzantineSchedule:
  """Who attacks, the same in all events; None for nobody."""
  if callable(byzantine):
    raise ValueError(f'{name} needs byzantine to be an int or bool[K]')
  return round_arguments.byzantine_schedule(name, num_workers, byzantine)


def check_batch(
  name: str, batch: base.Batch, num_shards: int, takes_slices: bool
) -> None:
  """Raises ValueError unless the batch has a row, or slices, for all shards."""
  rows = checks.num_workers(f'{name}: batch', batch)
  if rows != num_shards:
    raise ValueError(
      f'{name} needs a batch with num_shards={num_shards} rows, got {rows}'
    )
  if takes_slices:
    round_arguments.check_slices(name, batch, None)
