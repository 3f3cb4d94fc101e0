"""What asynchronous rounds check, beside what all rounds check."""

from typing import Any

import numpy as np

from byzjax._src import base, checks, round_arguments
from byzjax.aggregators import mean
from byzjax.asynchrony import Events
from byzjax.asynchrony._buffers import check_buffer


def check(
  name: str,
  events: Events,
  buffer: Any,
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
  if buffer is not None:
    check_buffer(name, buffer, len(events.worker))
  if local_optimizer is None and events.num_local_steps.max() > 1:
    raise ValueError(
      f'{name} needs a local_optimizer for events with several local steps,'
      f' got None and {np.unique(events.num_local_steps)[:8]}'
    )
  return None if aggregator is None and buffer is None else rule


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
