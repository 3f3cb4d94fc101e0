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
`.png` each defence under its worst attack, `leaderboard.md` the same in short,
and a heat map for every f and partition the rest.
"""

import pathlib
import sys
import tomllib
from collections.abc import Sequence

import tqdm
from absl import app, flags, logging

from byzjax import data
from experiments import (
  distributed,
  lock,
  output,
  queue,
  report,
  resume,
  specs,
)
from experiments.cell import Cell, Options, num_runs, run_cell
from experiments.grid import cells as grid_cells
from experiments.grid import tables

FLAGS = flags.FLAGS
SUITES = pathlib.Path(__file__).parent

flags.DEFINE_enum(
  'suite', None, ['small', 'standard'], 'A grid that is ready, to compare with.'
)
flags.DEFINE_string(
  'config', None, 'A TOML file whose keys are flags; those given here win.'
)
flags.DEFINE_string(
  'dataset', 'digits', 'digits, or an image set of --data_dir such as mnist.'
)
flags.DEFINE_string('data_dir', None, 'Folder with data sets in TFDS format.')
flags.DEFINE_enum('model', 'mlp', ['cnn', 'mlp', 'resnet20'], 'The network.')
flags.DEFINE_bool('augment', False, 'Random crops and mirror images.')
flags.DEFINE_string(
  'attacks',
  'none; sign_flip(scale=10.0); alie; inner_product_manipulation(epsilon=0.5)',
  f'Of {specs.describe(specs.ATTACKS)}; behind a comma a search that holds the'
  f' defence: {specs.describe(specs.SEARCHES)}.',
)
flags.DEFINE_string(
  'aggregators',
  'mean; coordinate_median; krum; centered_clipping(radius=[0.1, 1.0])',
  f'Of {specs.describe(specs.AGGREGATORS)}; perhaps behind pre-aggregators and'
  ' a comma.',
)
flags.DEFINE_string(
  'pre_aggregators',
  'none',
  'What stands in front of every one of --aggregators, in turn: none, or of'
  f' {specs.describe(specs.PRE_AGGREGATORS)}.',
)
flags.DEFINE_list('num_byzantine', '3', 'Values of f.')
flags.DEFINE_string(
  'partitions',
  'iid',
  'How examples are divided among workers:'
  f' {specs.describe(specs.PARTITIONS)}, all with long_tail.',
)
flags.DEFINE_list('momenta', '0.9', 'Decays of the momentum of each worker.')
flags.DEFINE_list('learning_rates', '0.1,0.3', 'Of the server.')
flags.DEFINE_string(
  'optimizer', 'sgd', f'Of {specs.describe(specs.OPTIMIZERS)}.'
)
flags.DEFINE_string(
  'schedule', 'constant', f'Of {specs.describe(specs.SCHEDULES)}.'
)
flags.DEFINE_integer('num_workers', 15, 'n, attackers included.', 1)
flags.DEFINE_integer('rounds', 200, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 8, 'Examples per worker and round.', 1)
flags.DEFINE_integer('num_evals', 10, 'Evaluations; the last 3 count.', 1)
flags.DEFINE_integer('num_seeds', 3, 'Seeds 0, 1, ... in one program.', 1)
flags.DEFINE_bool(
  'skip_refused', False, 'Leave out what cannot run, such as a rule for few f.'
)
flags.DEFINE_bool('dry_run', False, 'Only say what would run.')
flags.DEFINE_string('output_dir', None, 'A new folder; runs/grid if none.')
flags.DEFINE_bool(
  'resume',
  False,
  'Continue the grid in --output_dir with its flags; those given must agree.',
)
flags.DEFINE_float(
  'checkpoint_seconds', 60.0, 'Between checkpoints inside a program.', 0.0
)

# Entries separated by semicolons.
_TEXTS = ('attacks', 'aggregators', 'pre_aggregators', 'partitions')
# What is no part of a grid, or no key of a file.
_OF_A_CALL = ('config', 'dry_run', 'resume', 'suite')
# What may differ between a grid and its continuation.
_NOT_CONFIG = (*_OF_A_CALL, 'checkpoint_seconds', 'output_dir')


def own_flags() -> list[str]:
  key_flags = FLAGS.get_key_flags_for_module(sys.modules[__name__])
  return [flag.name for flag in key_flags]


def read_file(path: pathlib.Path) -> None:
  """Sets the flags that the command line does not."""
  try:
    options = tomllib.loads(path.read_text())
  except (OSError, tomllib.TOMLDecodeError) as error:
    raise ValueError(f'--config={path}: {error}') from error
  known = sorted(set(own_flags()) - set(_OF_A_CALL))
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(
      f'--config={path}: unknown keys {", ".join(unknown)}; known are'
      f' {", ".join(known)}'
    )
  for name, value in options.items():
    if isinstance(value, list):
      value = ('; ' if name in _TEXTS else ',').join(map(str, value))
    if not FLAGS[name].present:
      try:
        FLAGS[name].parse(str(value))
      except flags.IllegalFlagValueError as error:
        raise ValueError(f'--config={path}: {error}') from error


def numbers(name: str, kind: type) -> list:
  try:
    return [kind(text) for text in getattr(FLAGS, name)]
  except ValueError as error:
    raise ValueError(f'--{name}: {error}') from error


def grid() -> grid_cells.Grid:
  """The grid of the flags."""
  return grid_cells.Grid(
    **{name: specs.split_top(getattr(FLAGS, name), ';') for name in _TEXTS},
    num_byzantine=numbers('num_byzantine', int),
    momenta=numbers('momenta', float),
    learning_rates=numbers('learning_rates', float),
    num_workers=FLAGS.num_workers,
    rounds=FLAGS.rounds,
    batch_size=FLAGS.batch_size,
    num_evals=FLAGS.num_evals,
    optimizer=FLAGS.optimizer,
    schedule=FLAGS.schedule,
    worker_map=specs.worker_map(FLAGS.model),
  )


def without_refused(
  cells: Sequence[Cell], dataset: data.Dataset, options: Options
) -> tuple[list[Cell], list[str]]:
  """The cells that can run, and why others cannot."""
  bar = tqdm.tqdm(cells, 'checking', leave=False)
  refused = grid_cells.refused(bar, dataset, options)
  reasons = []
  for message, those in refused.items():
    names = [cell.name for cell in those[:3]]
    more = f' and {len(those) - 3} more' if len(those) > 3 else ''
    reasons.append(f'{message}: [{"], [".join(names)}]{more}')
  if reasons and not FLAGS.skip_refused:
    raise ValueError(
      '\n'.join([*reasons, '--skip_refused leaves out what cannot run'])
    )
  away = {cell.name for those in refused.values() for cell in those}
  left = [cell for cell in cells if cell.name not in away]
  if not any(cell.labels['num_byzantine'] for cell in left):
    raise ValueError('\n'.join([*reasons, 'nothing is left to run']))
  return left, reasons


def summarise(
  rows: report.Rows, folder: pathlib.Path, reasons: Sequence[str]
) -> None:
  """Writes all tables and pictures, and prints the leaderboard."""
  choices = tables.choices(rows)
  control = [c for c in choices if not c.num_byzantine]
  choices = [c for c in choices if c.num_byzantine]
  setting = (
    f'{FLAGS.dataset}, {FLAGS.model}: test accuracy (%) after {FLAGS.rounds}'
    f' rounds of {FLAGS.num_workers} workers, mean ± standard deviation over'
    f' {FLAGS.num_seeds} seeds.\n\n'
  )
  left_out = ''.join(f'Left out: {reason}\n\n' for reason in reasons)
  board = setting + tables.leaderboard(choices, control) + left_out
  output.write_text(folder / 'leaderboard.md', board)
  worst = setting + tables.worst_case(choices, control) + left_out
  output.write_text(folder / 'worst_case.md', worst)
  cells, notes = tables.by_place(choices)
  report.heatmap(
    cells, f'{FLAGS.dataset}: worst case', folder / 'worst_case.png', notes
  )
  for partition, f in tables.places(choices):
    name = output.slug(f'heatmap {partition} f={f}')
    report.heatmap(
      tables.by_attack(choices, partition, f),
      f'{FLAGS.dataset}, {partition}, {f} of {FLAGS.num_workers} Byzantine',
      folder / f'{name}.png',
    )
  print(board)


def main(argv):
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    if FLAGS.suite:
      read_file(SUITES / f'{FLAGS.suite}.toml')
    if FLAGS.config:
      read_file(pathlib.Path(FLAGS.config))
    suffix = f'-{FLAGS.suite}' if FLAGS.suite else ''
    folder = pathlib.Path(FLAGS.output_dir or f'runs/grid{suffix}')
    if FLAGS.resume:
      resume.adopt(folder, 'grid', set(own_flags()) - {*_NOT_CONFIG})
    if not FLAGS.dry_run:
      goes_on = distributed.joins(folder) or FLAGS.resume
      output.check_root(folder, resume=goes_on)
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
    options = Options(
      FLAGS.model,
      range(FLAGS.num_seeds),
      FLAGS.augment,
      FLAGS.checkpoint_seconds,
    )
    wanted = grid_cells.make_cells(grid(), dataset.num_classes)
    cells, reasons = without_refused(wanted, dataset, options)
    config = {k: getattr(FLAGS, k) for k in own_flags()}
    config = {k: v for k, v in config.items() if k not in _NOT_CONFIG}
    # As texts differ that mean the same.
    config |= {k: '; '.join(specs.split_top(config[k], ';')) for k in _TEXTS}
    config = {'program': 'grid', **config}
    if not FLAGS.dry_run:
      # To the end of the program, for tables and pictures come last.
      lock.take(folder, share=distributed.share(), resume=goes_on)
      output.open_folder(folder, config)
  except (OSError, ValueError) as error:
    sys.exit(f'grid: {error}')
  total = sum(num_runs(cell, options) for cell in cells)
  print(
    f'{len(cells)} programs, {total} runs of {FLAGS.rounds} rounds; writing to'
    f' {folder}'
  )
  if FLAGS.dry_run:
    for cell in cells:
      print(f'{num_runs(cell, options):6} runs: {cell.name}')
    print(''.join(f'left out: {reason}\n' for reason in reasons), end='')
    return

  def job_of(i, cell):
    def run_job(folder, advance):
      return run_cell(cell, dataset, folder, options, advance)

    return queue.Job(
      f'{i} {cell.name}'[:120],
      {**cell.labels, **cell.describe(cell.values[0])},
      cell.rounds * num_runs(cell, options),
      run_job,
    )

  jobs = [job_of(i, cell) for i, cell in enumerate(cells)]
  rows = queue.work(jobs, folder, 'rounds')
  summarise(rows, folder, reasons)


if __name__ == '__main__':
  app.run(main)
