"""The loop of every run: a stretch of rounds, its rows, a checkpoint."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from . import output, resume
from .cells import Program, Rows


def run(
  program: Program,
  folder: pathlib.Path,
  *,
  file: str = 'rows.csv',
  save_seconds: float = 60.0,
  begun: tuple[int, Any, Rows] | None = None,
  advance: Callable[[int, Rows], Any] = lambda rounds, rows: None,
) -> Rows:
  """A row for every run of the program at every stop.

  A long run leaves rows and checkpoints in the folder, and goes on from the
  newest to the same bits.

  Args:
    program: what is run.
    folder: for rows and checkpoints; made when it is first needed.
    file: name of the file of rows in it.
    save_seconds: at least so much time between checkpoints.
    begun: what `beginning` returned, if it was called before.
    advance: told how many rounds more are done, and their rows.

  Raises:
    ValueError: if a checkpoint is damaged, or its rows are not there.
  """
  done, states, rows = begun or beginning(program, folder, file)
  saved = time.monotonic()
  if rows:
    advance(done, rows[-len(program.runs) :])
  left = [stop for stop in program.stops if stop > done or not rows]
  for stop in left:
    states, metrics = program.stretch(states, done, stop - done)
    new = rows_of(program, stop, metrics)
    rows = rows + new
    advance(stop - done, new)
    done = stop
    if time.monotonic() - saved >= save_seconds:
      with output.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
      # Rows go first: a resumed run cuts those that its checkpoint lacks.
      output.write_rows(folder / file, rows)
      output.save_checkpoint(folder, done, states)
      saved = time.monotonic()
  return rows


def beginning(
  program: Program, folder: pathlib.Path, file: str = 'rows.csv'
) -> tuple[int, Any, Rows]:
  """Rounds done, states and rows, as a checkpoint has them or at round 0.

  Raises:
    ValueError: if a checkpoint is damaged, or its rows are not there.
  """
  states = program.start()
  restored = resume.restore(
    folder, states, program.stops, len(program.runs), file
  )
  return restored or (0, states, [])


def rows_of(program: Program, stop: int, metrics) -> Rows:
  """A row for every run: what it is, the round, and what was measured."""
  columns = {
    name: np.asarray(values).reshape(-1)
    for name, values in jax.device_get(metrics).items()
  }
  return [
    {
      **labels,
      'round': stop,
      **{name: float(values[i]) for name, values in columns.items()},
    }
    for i, labels in enumerate(program.runs)
  ]
