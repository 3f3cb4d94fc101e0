"""The committed rows of the leaderboard: what may join them, their commands.

Files are in `boards`, `v1_MODEL...`: of every defence and attack the accuracies
at the setting that was chosen; `tuning`, what it was chosen from; `times`; and
a JSON file with the settings and the command of all of it.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ..harness import output
from ..reporting import summary
from ..reporting.tables import Rows
from . import board, settings
from . import cells as grid_cells
from .board import Board
from .settings import Grid
from .tables import NOBODY, Choice

SUITE = 'leaderboard'
MODELS = ('mlp', 'cnn')
NUM_CLASSES = 10
# What one who hands in a defence chooses; all else is of the board.
_FREE = ('aggregators', 'attacks', 'assumed_byzantine', 'data_dir', 'model')


@functools.cache
def suite() -> Grid:
  return settings.of_suite(SUITE)


def check(grid: Grid) -> None:
  """Raises ValueError unless the rows of this grid can stand on the board."""
  free = {name: getattr(suite(), name) for name in _FREE}
  if dataclasses.replace(grid, **free) != suite():
    raise ValueError(
      '--publish is for the settings of --suite=leaderboard; only'
      f' {", ".join(f"--{name}" for name in _FREE)} may differ'
    )
  if NOBODY not in grid.entries('attacks'):
    raise ValueError(f'--publish: one of --attacks must be {NOBODY}')


def publish(
  rows: Rows, times: Rows, grid: Grid, refused: Sequence[str]
) -> None:
  """Puts the rows of a grid on the board.

  Args:
    rows: of its runs.
    times: of its defences, or none.
    grid: what was run.
    refused: defences that cannot run.

  Raises:
    ValueError: if a defence would lose attacks that the board has of it.
  """
  if (path := board.path_of(grid.model)).exists():
    board.check_keeps(output.read_rows(path), board.chosen(rows, NUM_CLASSES))
  board.FOLDER.mkdir(exist_ok=True)
  for what, new in (
    ('', board.chosen(rows, NUM_CLASSES)),
    ('tuning', board.tuning(rows, NUM_CLASSES)),
    ('times', times),
  ):
    path = board.path_of(grid.model, what)
    old = output.read_rows(path) if path.exists() else []
    if new or old:
      output.write_rows(path, board.merged(old, new))
  told = {
    'version': board.VERSION,
    'command': whole_command(grid.model),
    'refused': sorted({*refused, *about(grid.model).get('refused', [])}),
    'settings': settings.of_folder(dataclasses.replace(
      suite(), model=grid.model, data_dir=None
    )),
  }  # fmt: skip
  path = board.path_of(grid.model).with_suffix('.json')
  output.write_text(path, json.dumps(told, indent=2) + '\n')


def publish_folder(folder: pathlib.Path) -> None:
  """Puts the rows that a grid has so far on the board; it may go on.

  Raises:
    ValueError: if there are none, they are not of the board, or lack attacks
      that are on it.
  """
  config = output.read_config(folder)
  output.check_program(folder, config, 'grid')
  given: dict[str, Any] = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in config.items()
    if k != 'program'
  }
  grid = Grid(**given)
  check(grid)
  paths = [folder / 'results.csv', *sorted(folder.glob('results.*.csv'))]
  there = [path for path in paths if path.exists()]
  if not there:
    raise ValueError(f'no program of the grid in {folder} has ended yet')
  rows = [row for path in there for row in output.read_whole_rows(path)[0]]
  path = folder / 'times.csv'
  times = output.read_rows(path) if path.exists() else []
  publish(output.numbers(rows), times, grid, [])


def about(model: str) -> dict[str, Any]:
  """The settings of what is committed."""
  path = board.path_of(model).with_suffix('.json')
  return json.loads(path.read_text()) if path.exists() else {}


def whole_command(model: str) -> str:
  return summary.command(
    'grid', f'--suite={SUITE}', f'--model={model}',
    '--data_dir=FOLDER', '--output_dir=runs/leaderboard', '--resume',
    '--time', '--publish',
  )  # fmt: skip


def command(choice: Choice, attack: str, model: str) -> str:
  """The line that runs one cell of the board again, at what was chosen."""
  return summary.command(
    'grid', f'--suite={SUITE}', f'--model={model}',
    '--data_dir=FOLDER', '--output_dir=runs/cell',
    f'--aggregators={choice.chain}',
    f'--attacks={attack}', f'--partitions={choice.partition}',
    f'--learning_rates={choice.learning_rate:g}',
    f'--momenta={choice.momentum:g}',
  )  # fmt: skip


def read(model: str) -> Board:
  return board.read(board.path_of(model), NUM_CLASSES)


def models() -> list[str]:
  """Those that have rows."""
  return [model for model in MODELS if board.path_of(model).exists()]


def wanted() -> set[tuple[str, str]]:
  """Pairs of a defence and an attack that the suite has."""
  return {
    (cell.describe(values)['defence'], cell.describe(values)['attack'])
    for cell in grid_cells.make_cells(suite(), NUM_CLASSES)
    for values in cell.values
    if cell.labels['num_byzantine']
  }


def missing(
  of: Board, refused: Sequence[str], assumed: int | None = None
) -> tuple[int, int]:
  """How many pairs are lacking, of how many that can run.

  With `assumed`, of the defences that assume this number of attackers or none.
  """
  pairs = {pair for pair in wanted() if pair[0] not in refused}
  if assumed is not None:
    pairs = {p for p in pairs if board.plain(p[0])[1] in (assumed, None)}
  there = {
    (choice.defence, attack)
    for s in of.standings
    for choice in s.choices.values()
    for attack in choice.accuracy
  }
  return len(pairs - there), len(pairs)
