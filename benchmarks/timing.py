"""Times of functions against each other, in one process.

Beside the wall clock there is the *critical path* of a call: the CPU time of
its busiest thread. Other programs on the machine stretch the wall clock and
hardly touch this, so it is close to what the call takes on a machine that has
nothing else to do. It is a lower bound: work that goes from one thread to
another and back is not added up.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_THREADS = '/proc/self/task'


class Times(NamedTuple):
  """Seconds of every repeat of a function."""

  wall: list[float]
  critical: list[float]  # Empty where threads have no clocks.


class Program(NamedTuple):
  """A compiled call, and what compiling it took."""

  call: Callable[[], Any]
  compile_seconds: float
  temporary_bytes: int


def interleaved(
  functions: dict[str, Callable],
  repeats: int,
  seconds: float = float('inf'),
) -> dict[str, Times]:
  """Times of each call: every repeat runs all functions, one after another.

  So a change of the machine's load meets all of them alike. Repeats end early
  when so many `seconds` are over; there is always one.
  """
  for function in functions.values():
    jax.block_until_ready(function())
  times = {name: Times([], []) for name in functions}
  end = time.monotonic() + seconds
  for repeat in range(repeats):
    if repeat and time.monotonic() > end:
      break
    for name, function in functions.items():
      before = _thread_seconds()
      start = time.perf_counter()
      jax.block_until_ready(function())
      times[name].wall.append(time.perf_counter() - start)
      after = _thread_seconds()
      if after:
        busiest = max(t - before.get(i, 0.0) for i, t in after.items())
        times[name].critical.append(busiest)
  return times


def ratio(times: Times, floor: Times) -> float:
  """Median over repeats of the wall clock over that of the same repeat."""
  return statistics.median(a / b for a, b in zip(times.wall, floor.wall))


def compiled(function: Callable, *args) -> Program:
  """The compiled call, its compile seconds and temporary bytes."""
  start = time.perf_counter()
  program = jax.jit(function).lower(*args).compile()
  seconds = time.perf_counter() - start
  memory: Any = program.memory_analysis()
  return Program(lambda: program(*args), seconds, memory.temp_size_in_bytes)


def _thread_seconds() -> dict[int, float]:
  """CPU seconds of each thread of this process; empty where nothing says so.

  The clock of a thread, and not `schedstat` in its folder: that is the same
  sum, but of a thread which is running it is some milliseconds old.
  """
  seconds = {}
  try:
    threads = [int(name) for name in os.listdir(_THREADS)]
  except OSError:
    return {}
  for thread in threads:
    try:
      # Linux: bit 2 for a clock of one thread, 2 in bits 0 and 1 for its run
      # time; what `pthread_getcpuclockid` makes of a thread.
      seconds[thread] = time.clock_gettime(~thread << 3 | 6)
    except OSError:
      pass  # It has ended.
  return seconds
