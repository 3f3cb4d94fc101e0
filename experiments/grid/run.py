r"""Attacks x defences x f x heterogeneity, and how safe each defence is.

  python -m experiments.grid --suite=small            # the leaderboard: minutes
  python -m experiments.grid --num_byzantine=1,3 --momenta=0,0.9 \
      --attacks='none; alie(z=[0.5, 1.5]); alie, strength' \
      --aggregators='krum; centered_clipping(radius=[0.1, 1.0])' \
      --pre_aggregators='none; bucketing(bucket_size=[2, 3])' \
      --partitions='iid; dirichlet_by_class(alpha=0.3)' --output_dir=runs/mine
  python -m experiments.grid --config=grid.toml       # the same from a file

Entries are separated by semicolons; a comma makes a chain, pre-aggregators in
front of a rule or a search behind an attack. A list in place of a value is a
grid. Of defences, momenta and learning rates the values are chosen on a
validation split, for the worst attack; every value of an attack is an attack.
Real numbers, momenta, learning rates, partitions and seeds are one program; the
programs run one after the other.

A killed grid goes on with `--output_dir=FOLDER --resume`, also inside a
program. `results.csv` has every evaluation of every run, `worst_case.md` and
`.png` each defence under its worst attack with the command that trains it,
`leaderboard.md` the same in short, and a heat map for every f and partition
the rest.
"""

import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence

import tqdm
from absl import app, flags, logging

from byzjax import data

from .. import train
from ..harness import (
  distributed,
  lock,
  loop,
  output,
  programs,
  queue,
  resume,
  specs,
)
from ..harness.cells import Cell, Rows, even_stops
from ..reporting import pictures
from . import (
  board_page,
  board_store,
  environment,
  settings,
  tables,
  times,
)
from . import cells as grid_cells
from .settings import Grid

FLAGS = flags.FLAGS


def command(grid: Grid, choice: tables.Choice, attack: str) -> str:
  """The line that trains one row of the tables under an attack."""
  first, *searches = specs.split_top(attack, ',')
  front = choice.pre_aggregators
  run = train.Settings(
    dataset=grid.dataset,
    data_dir=grid.data_dir,
    partition=choice.partition,
    validation=True,
    augment=grid.augment,
    model=grid.model,
    num_workers=grid.num_workers,
    num_byzantine=choice.num_byzantine,
    attack=first,
    search=', '.join(searches) or 'none',
    pre_aggregators='' if front == 'none' else front,
    aggregator=choice.aggregator,
    momentum=float(choice.momentum),
    optimizer=grid.optimizer,
    learning_rate=float(choice.learning_rate),
    schedule=grid.schedule,
    batch_size=grid.batch_size,
    rounds=grid.rounds,
    eval_every=even_stops(grid.rounds, grid.num_evals)[0],
    num_seeds=grid.num_seeds,
  )
  return train.command(run)


def without_refused(
  cells: Sequence[Cell], dataset: data.Dataset, grid: Grid
) -> tuple[list[Cell], list[str]]:
  """The cells that can run, and why others cannot."""
  bar = tqdm.tqdm(cells, 'checking', leave=False)
  refused = grid_cells.refused(bar, dataset, grid.model)
  reasons = []
  for message, those in refused.items():
    names = [cell.name for cell in those[:3]]
    more = f' and {len(those) - 3} more' if len(those) > 3 else ''
    reasons.append(f'{message}: [{"], [".join(names)}]{more}')
  if reasons and not grid.skip_refused:
    raise ValueError(
      '\n'.join([*reasons, '--skip_refused leaves out what cannot run'])
    )
  away = {cell.name for those in refused.values() for cell in those}
  left = [cell for cell in cells if cell.name not in away]
  if not any(cell.labels['num_byzantine'] for cell in left):
    raise ValueError('\n'.join([*reasons, 'nothing is left to run']))
  return left, reasons


def without_cells(wanted: Sequence[Cell], left: Sequence[Cell]) -> list[str]:
  """The defences of which no cell is left."""

  def defences(cells):
    return {cell.describe(cell.values[0])['defence'] for cell in cells}

  return sorted(defences(wanted) - defences(left))


def job_of(
  i: int,
  cell: Cell,
  dataset: data.Dataset,
  options: programs.Options,
  stamp: Mapping[str, str],
) -> queue.Job:
  num_runs = programs.num_runs(cell, options)

  def run(folder, advance):
    rows = loop.run(
      programs.of_images(cell, dataset, options),
      folder,
      save_seconds=FLAGS.checkpoint_seconds,
      advance=lambda rounds, rows: advance(rounds * num_runs),
    )
    return [{**row, **stamp} for row in rows]

  return queue.Job(
    f'{i} {cell.name}'[:120],
    {**cell.labels, **cell.describe(cell.values[0])},
    cell.rounds * num_runs,
    run,
  )


def summarise(
  rows: Rows, folder: pathlib.Path, grid: Grid, reasons: Sequence[str]
) -> None:
  """Writes all tables and pictures, and prints the leaderboard."""
  choices = tables.choices(rows)
  control = [c for c in choices if not c.num_byzantine]
  choices = [c for c in choices if c.num_byzantine]
  setting = (
    f'{grid.dataset}, {grid.model}: test accuracy (%) after {grid.rounds}'
    f' rounds of {grid.num_workers} workers, mean ± standard deviation over'
    f' {grid.num_seeds} seeds.\n\n'
  )
  left_out = ''.join(f'Left out: {reason}\n\n' for reason in reasons)
  board = setting + tables.leaderboard(choices, control) + left_out
  board += 'The command of each row: [worst_case.md](worst_case.md).\n'
  output.write_text(folder / 'leaderboard.md', board)
  line = functools.partial(command, grid)
  worst = setting + tables.worst_case(choices, control, line) + left_out
  output.write_text(folder / 'worst_case.md', worst)
  cells, notes = tables.by_place(choices)
  worst_cases = pictures.heatmap(cells, f'{grid.dataset}: worst case', notes)
  pictures.save(worst_cases, folder / 'worst_case.png')
  for partition, f in tables.places(choices):
    heatmap = pictures.heatmap(
      tables.by_attack(choices, partition, f),
      f'{grid.dataset}, {partition}, {f} of {grid.num_workers} Byzantine',
    )
    name = output.slug(f'heatmap {partition} f={f}')
    pictures.save(heatmap, folder / f'{name}.png')
  print(board)


def read_grid() -> tuple[Grid, pathlib.Path]:
  """The grid of the flags and of what they name, and its folder."""
  if FLAGS.quick:
    settings.adopt_quick()
  # What sets a flag first wins.
  if FLAGS.config:
    settings.adopt_file(pathlib.Path(FLAGS.config))
  if FLAGS.suite:
    settings.adopt_suite(FLAGS.suite)
  suffix = f'-{FLAGS.suite}' if FLAGS.suite else ''
  folder = pathlib.Path(FLAGS.output_dir or f'runs/grid{suffix}')
  if FLAGS.resume:
    resume.adopt(folder, 'grid', settings.names())
  return settings.read(), folder


def main(argv):
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    grid, folder = read_grid()
    if not FLAGS.dry_run:
      goes_on = distributed.joins(folder) or FLAGS.resume
      output.check_root(folder, resume=goes_on)
    dataset = data.load(grid.dataset, grid.data_dir)
    options = programs.Options(grid.model, grid.seeds, grid.augment)
    if FLAGS.publish:
      board_store.check(grid)
    wanted = grid_cells.make_cells(grid, dataset.num_classes)
    grid_cells.check_partitions(grid, dataset)
    cells, reasons = without_refused(wanted, dataset, grid)
    if not FLAGS.dry_run:
      # To the end of the program, for tables and pictures come last.
      lock.take(folder, share=distributed.share(), resume=goes_on)
      output.open_folder(folder, settings.of_folder(grid))
  except (OSError, ValueError) as error:
    sys.exit(f'grid: {error}')
  stamp = environment.stamp()
  on_rows = stamp if grid.stamp else {}
  jobs = [
    job_of(i, cell, dataset, options, on_rows) for i, cell in enumerate(cells)
  ]
  num_runs = [programs.num_runs(cell, options) for cell in cells]
  print(
    f'{len(cells)} programs, {sum(num_runs)} runs of {grid.rounds} rounds;'
    f' writing to {folder}'
  )
  if FLAGS.dry_run:
    for cell, number in zip(cells, num_runs):
      print(f'{number:6} runs: {cell.name}')
    print(''.join(f'left out: {reason}\n' for reason in reasons), end='')
    return
  rows = queue.work(jobs, folder, 'rounds')
  summarise(rows, folder, grid, reasons)
  timed = []
  if FLAGS.time:
    timed = times.measure(cells, dataset, grid.model, stamp)
    output.write_rows(folder / 'times.csv', timed)
  if FLAGS.publish:
    away = without_cells(wanted, cells)
    board_store.publish(rows, timed, grid, away)
    board_page.write()
