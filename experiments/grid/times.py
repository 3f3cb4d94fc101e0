"""How long a round takes with every defence, one run alone."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from byzjax import data

from ..harness import programs
from ..harness.cells import Cell, Program, Rows
from . import board
from .tables import NOBODY

_SHORT, _LONG = 5, 55  # Rounds whose difference is timed.


def measure(
  cells: Sequence[Cell],
  dataset: data.Dataset,
  model: str,
  stamp: dict[str, Any],
  clock: Callable[[], float] = time.perf_counter,
) -> Rows:
  """Milliseconds of a round of every defence when nobody attacks.

  Of what it assumes the number nearest to the truth: the least of three.
  """
  rows = []
  for cell in _one_each(cells):
    alone = dataclasses.replace(
      cell,
      partition='iid',
      grid={name: numbers[:1] for name, numbers in cell.grid.items()},
    )
    program = programs.of_images(
      alone, dataset, programs.Options(model, range(1)), [_LONG]
    )
    name, _ = board.plain(cell.describe(cell.values[0])['defence'])
    milliseconds = f'{1000 * _of_a_round(program, clock):.3f}'
    rows.append({'defence': name, 'milliseconds': milliseconds, **stamp})
  return rows


def _one_each(cells: Sequence[Cell]) -> list[Cell]:
  found: dict[str, tuple[int, Cell]] = {}
  for cell in cells:
    f = cell.labels['num_byzantine']
    title = cell.describe(cell.values[0])['defence']
    name, assumed = board.plain(title)
    far = abs(f - (f if assumed is None else assumed))
    if f and cell.labels['attack'] == NOBODY:
      if name not in found or far < found[name][0]:
        found[name] = far, cell
  return [cell for _, cell in found.values()]


def _of_a_round(program: Program, clock: Callable[[], float]) -> float:
  """Seconds; what is measured at the end of a stretch cancels."""

  def seconds(rounds: int) -> float:
    states = program.start()
    jax.block_until_ready(states)
    began = clock()
    jax.block_until_ready(program.stretch(states, 0, rounds))
    return clock() - began

  seconds(_SHORT)  # Compiles.
  of = {n: min(seconds(n) for _ in range(3)) for n in (_SHORT, _LONG)}
  return (of[_LONG] - of[_SHORT]) / (_LONG - _SHORT)
