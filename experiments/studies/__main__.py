r"""A study of this folder: its cells, tables, claims and pictures.

  python -m experiments.studies                       # which there are
  python -m experiments.studies sign_majority --check # fail unless claims hold
  python -m experiments.studies sign_majority --quick # seconds, to try it
  python -m experiments.studies sign_majority --list  # the line of every cell

A killed study goes on to the same bits with `--output_dir=FOLDER --resume`.
`--committed` says what the committed results say, without running anything.
"""

import pathlib
import sys
import time
from types import ModuleType
from typing import Any

from absl import app, flags, logging

from ..harness import (
  distributed,
  lock,
  output,
  queue,
  resume,
  settings,
  study,
)
from ..reporting import summary, tables

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'output_dir',
  None,
  'Where results go; runs/STUDY if none, runs/STUDY-quick with --quick.',
)
flags.DEFINE_string(
  'only', '', 'Only the cell of this name, or those whose names contain this.'
)
flags.DEFINE_bool(
  'resume',
  False,
  'Continue the study in --output_dir with its flags; those given must agree.',
)
flags.DEFINE_float(
  'checkpoint_seconds', 60.0, 'Between checkpoints inside a cell.', 0.0
)
flags.DEFINE_bool('check', False, 'Fail unless the claims of the study hold.')
flags.DEFINE_bool('quick', False, 'A run of seconds, to try the study.')
flags.DEFINE_bool('list', False, 'Only print the line that runs each cell.')
flags.DEFINE_bool(
  'committed', False, 'Do not run: take the results beside the page.'
)
flags.DEFINE_string('variant', '', 'A run of the study on other data.')
flags.DEFINE_bool(
  'publish',
  False,
  'Write results, page and pictures into the folder; with --only, those cells'
  ' take the place of what is there.',
)


def main(of: ModuleType, names: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  name = study.name_of(of)
  suffix = '-quick' if FLAGS.quick else ''
  folder = pathlib.Path(FLAGS.output_dir or f'runs/{name}{suffix}')
  try:
    _fill(of, names)
    if FLAGS.resume:
      resume.adopt(folder, name, names)
    config = settings.read(of.Settings)
    if FLAGS.publish or FLAGS.committed:
      if FLAGS.quick:
        raise ValueError('a --quick run is neither published nor committed')
      if FLAGS.committed and FLAGS.only:
        raise ValueError('--committed is about all cells: leave out --only')
      study.check_whole(of, config, FLAGS.variant, only=FLAGS.only)
    if FLAGS.check and FLAGS.only:
      raise ValueError('--check is about all cells: leave out --only')
    if FLAGS.quick:
      usual = study.variant(of, FLAGS.variant)
      given = [n for n in names if getattr(config, n) != getattr(usual, n)]
      config, cells = study.quick(of, config, given)
    else:
      cells = of.define(config)
    if FLAGS.committed:
      rows = study.committed(of, FLAGS.variant)
    else:
      rows = _run(of, config, cells, folder, names)
  except (OSError, ValueError) as error:
    sys.exit(f'{name}: {error}')
  if rows is None:
    return
  if FLAGS.only:
    print(tables.plain(tables.keep(rows)))
    if FLAGS.publish:
      rows = study.kept(of, rows, config)
      try:
        rows = study.merged(of, rows, config, FLAGS.variant)
      except ValueError as error:
        sys.exit(f'{name}: {error}')
      study.publish(of, rows, config, FLAGS.variant)
    return  # Tables and claims are about all cells.
  _say(of, rows, config, folder)


def _fill(of: ModuleType, names: list[str]) -> None:
  """The flags of a variant, where the command line has none."""
  default, variant = of.Settings(), study.variant(of, FLAGS.variant)
  for name in names:
    if not FLAGS[name].present:
      value = getattr(variant, name)
      if value != getattr(default, name):
        FLAGS[name].value = (
          list(map(str, value)) if isinstance(value, tuple) else value
        )


def _run(of: ModuleType, config: Any, cells, folder, names: list[str]):
  """All rows; None if nothing is to be run."""
  cells = study.chosen(cells, FLAGS.only)
  if FLAGS.list:
    print('\n'.join(study.command(of, config, cell) for cell in cells))
    return None
  goes_on = distributed.joins(folder) or FLAGS.resume
  output.check_root(folder, resume=goes_on)
  jobs = study.jobs(cells, config, FLAGS.checkpoint_seconds)
  # Those that are done, or of other processes, need not be traced here.
  study.check([cells[i] for i in queue.left(jobs, folder)], config)
  # To the end of the program, for tables and pictures come last.
  lock.take(folder, share=distributed.share(), resume=goes_on)
  values = {name: FLAGS[name].value for name in sorted(names)}
  values['program'] = study.name_of(of)
  if FLAGS.quick:
    # Its cells have the names of those that a run without it would train.
    values['quick'] = True
  output.open_folder(folder, values)
  rows = queue.work(jobs, folder, 'rounds')
  print(f'CPU time of this call: {time.process_time() / 60:.1f} minutes\n')
  return rows


def _say(of: ModuleType, rows, config: Any, folder: pathlib.Path) -> None:
  if not FLAGS.committed:
    rows = study.kept(of, rows, config)
    output.write_rows(folder / 'kept.csv', rows)
  said = of.summarise(rows, config)
  if FLAGS.quick:  # Most of its claims need cells that it leaves out.
    said = said._replace(claims=summary.of_what_ran(said.claims))
  for table in said.tables:
    print(f'{table.title}\n\n{table.text}\n')
  for claim in said.claims:
    print(f'{claim.verdict}: {claim.says}')
    for check in claim.checks:
      print(f'  {check}')
  if FLAGS.publish:
    study.publish(of, rows, config, FLAGS.variant)
  elif not FLAGS.committed:
    summary.draw(said, folder)
  short = [check for check in said.checks if not check.holds]
  if FLAGS.check and short:
    sys.exit(f'--check: {len(short)} of {len(said.checks)} fell short')


def _start() -> None:
  usage = f'{__doc__}\nStudies: {", ".join(study.names())}'
  if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
    print(usage)
    sys.exit(0 if sys.argv[1:] in ([], ['--help'], ['-h']) else 1)
  name = sys.argv.pop(1)
  try:
    of = study.load(name)
  except ValueError as error:
    sys.exit(str(error))
  sys.modules['__main__'].__doc__ = of.__doc__  # For --help.
  names = settings.define(of.Settings)
  flags.adopt_module_key_flags(settings)
  flags.adopt_module_key_flags(distributed)
  app.run(lambda argv: main(of, names))


if __name__ == '__main__':
  _start()
