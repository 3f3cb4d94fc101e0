"""Asynchronous workers, as data: events, buffers, numbers of steps."""

from byzjax.asynchrony._buffers import (
  Buffer,
  by_arrival,
  by_distinct_workers,
  by_worker,
)
from byzjax.asynchrony._dynamic_local_updates import dynamic_local_updates
from byzjax.asynchrony._events import Events, seconds_per_step
from byzjax.asynchrony._read_trace import read_trace
from byzjax.asynchrony._schedule import (
  Schedule,
  schedule,
  stack_schedules,
)
from byzjax.asynchrony._simulate import simulate
from byzjax.asynchrony._trace import events_from_trace

__all__ = [
  'Buffer',
  'Events',
  'Schedule',
  'by_arrival',
  'by_distinct_workers',
  'by_worker',
  'dynamic_local_updates',
  'events_from_trace',
  'read_trace',
  'schedule',
  'seconds_per_step',
  'simulate',
  'stack_schedules',
]
