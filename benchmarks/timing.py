"""Times of functions against each other, in one process."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def interleaved(
  functions: dict[str, Callable], repeats: int
) -> dict[str, list[float]]:
  """Seconds of each call: every repeat runs all functions, one after another.

  So a change of the machine's load meets all of them alike.
  """
  for function in functions.values():
    jax.block_until_ready(function())
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      seconds[name].append(time.perf_counter() - start)
  return seconds


def ratio(seconds: list[float], floor: list[float]) -> float:
  """Median over repeats of the ratio to the floor of the same repeat."""
  return statistics.median(a / b for a, b in zip(seconds, floor))


def compiled(function: Callable, *args) -> tuple[Callable, float, float]:
  """The compiled call, its compile seconds and temporary bytes."""
  start = time.perf_counter()
  program = jax.jit(function).lower(*args).compile()
  seconds = time.perf_counter() - start
  memory: Any = program.memory_analysis()
  return lambda: program(*args), seconds, memory.temp_size_in_bytes
