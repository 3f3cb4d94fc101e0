"""What asynchronous rounds check, beside what all rounds check."""

from typing import Any

import numpy as np

from byzjax._src import round_arguments
from byzjax.aggregators import mean
from byzjax.asynchrony import Buffer, Events


def check(
  name: str,
  events: Any,
  buffer: Any,
  local_optimizer: Any,
  codec: Any,
  attack: Any,
  aggregator: Any,
) -> None:
  """Raises ValueError for what does not fit together."""
  if not isinstance(events, Events) or not len(events.worker):
    raise ValueError(
      f'{name} needs events from asynchrony.simulate, at least one, got'
      f' {type(events).__name__}'
    )
  round_arguments.check_slots(
    name,
    mean() if aggregator is None else aggregator,
    attack,
    {'codec': codec},
  )
  if buffer is not None and (
    not isinstance(buffer, Buffer) or len(buffer.row) != len(events.worker)
  ):
    raise ValueError(
      f'{name} needs a buffer of these {len(events.worker)} events, such as'
      f' asynchrony.by_worker(events, num_rows=...), got'
      f' {type(buffer).__name__}'
    )
  if local_optimizer is None and events.num_local_steps.max() > 1:
    raise ValueError(
      f'{name} needs a local_optimizer for events with several local steps,'
      f' got None and {np.unique(events.num_local_steps)[:8]}'
    )
