"""What the studies share: a cell as one program, results that resume, claims.

A *cell* is one row of a study's table: an attack, a rule, whatever changes the
program. Its runs, for all seeds and all values of what may be traced (learning
rates, momenta, radii), are one program and several rows of `results.csv`.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags, logging

from byzjax import data, models
from experiments import distributed, lock, output, queue, report, resume
from experiments.cell import (
  Cell,
  Options,
  Setting,
  check_cell,
  num_runs,
  run_cell,
)

__all__ = [
  'Cell',
  'Setting',
  'claim',
  'finish',
  'floats',
  'num_parameters',
  'run',
]

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'dataset', 'digits', 'digits, or an image set of --data_dir such as mnist.'
)
flags.DEFINE_string('data_dir', None, 'Folder with data sets in TFDS format.')
flags.DEFINE_enum('model', 'mlp', ['cnn', 'mlp', 'resnet20'], 'The network.')
flags.DEFINE_bool('augment', False, 'Random crops and mirror images.')
flags.DEFINE_integer('num_seeds', 3, 'Seeds 0, 1, ... in one program.', 1)
flags.DEFINE_string('output_dir', None, 'Where results go; runs/STUDY if none.')
flags.DEFINE_string('only', '', 'Only the cells whose name contains this.')
flags.DEFINE_bool(
  'resume',
  False,
  'Continue the study in --output_dir with its flags; those given must agree.',
)
flags.DEFINE_float(
  'checkpoint_seconds', 60.0, 'Between checkpoints inside a cell.', 0.0
)
flags.DEFINE_bool('check', False, 'Fail unless the claims of the study hold.')

# What may differ between a study and its continuation.
_NOT_CONFIG = (
  'check',
  'checkpoint_seconds',
  'only',
  'output_dir',
  'resume',
)


def floats(flag: str) -> list[float]:
  """The numbers of a flag that is a list."""
  texts: list[str] = getattr(FLAGS, flag)
  return [float(text) for text in texts]


def run(
  study: str,
  make_cells: Callable[[], Sequence[Any]],
  run_one: Callable[[Any, Sequence[int]], report.Rows] | None = None,
) -> tuple[pathlib.Path, report.Rows]:
  """Runs the cells that `results.csv` lacks; returns the folder and all rows.

  A study that is not on images has cells of its own, with `name` and `labels`,
  and gives `(cell, seeds) -> rows`.

  Exits with the message of a ValueError, from making the cells or from a rule
  that refuses its arguments, before anything has run.
  """
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  folder = pathlib.Path(FLAGS.output_dir or f'runs/{study}')
  shared = FLAGS.get_key_flags_for_module(sys.modules[__name__])
  own = FLAGS.get_key_flags_for_module(sys.argv[0])
  names = {flag.name for flag in (*shared, *own)} - {*_NOT_CONFIG}
  try:
    if FLAGS.resume:
      resume.adopt(folder, study, names)
    config = {'program': study, **{k: FLAGS[k].value for k in sorted(names)}}
    cells = [cell for cell in make_cells() if FLAGS.only in cell.name]
    if not cells:
      raise ValueError(f'--only={FLAGS.only} matches no cell')
    goes_on = distributed.joins(folder) or FLAGS.resume
    output.check_root(folder, resume=goes_on)
    if run_one is None:
      jobs, unit = _on_images(cells), 'rounds'
    else:
      jobs, unit = _on_own_data(cells, run_one), 'cells'
    # To the end of the program, for tables and pictures come last.
    lock.take(folder, share=distributed.share(), resume=goes_on)
    output.open_folder(folder, config)
  except (OSError, ValueError) as error:
    sys.exit(f'{study}: {error}')
  return folder, queue.work(jobs, folder, unit)


def _on_images(cells: Sequence[Cell]) -> list[queue.Job]:
  """On the data of the flags; all cells are checked."""
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  options = Options(
    FLAGS.model,
    range(FLAGS.num_seeds),
    FLAGS.augment,
    FLAGS.checkpoint_seconds,
  )
  for cell in cells:
    check_cell(cell, dataset, options)

  def job_of(cell):
    def run_job(folder, advance):
      return run_cell(cell, dataset, folder, options, advance)

    size = cell.rounds * num_runs(cell, options)
    return queue.Job(cell.name, cell.labels, size, run_job)

  return [job_of(cell) for cell in cells]


def _on_own_data(cells: Sequence[Any], run_one) -> list[queue.Job]:
  seeds = range(FLAGS.num_seeds)

  def job_of(cell):
    def run_job(folder, advance):
      del folder, advance
      return run_one(cell, seeds)

    return queue.Job(cell.name, cell.labels, 1, run_job)

  return [job_of(cell) for cell in cells]


def num_parameters() -> int:
  """Of the model of the flags."""
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  shape = dataset.train_images.shape[1:]
  _, params = models.split(
    models.make(FLAGS.model, shape, dataset.num_classes, seed=0)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def claim(text: str, value: float, needed: float) -> bool:
  """Prints whether a measured number is at least what is needed."""
  holds = bool(value >= needed)
  verdict = 'holds' if holds else 'FELL SHORT'
  print(f'{verdict:10} {text}: {value:.1f}, needs {needed:g}')
  return holds


def finish(claims: Sequence[bool]) -> None:
  """Exits with an error on `--check` unless all claims hold."""
  if FLAGS.check and not all(claims):
    sys.exit(f'--check: {claims.count(False)} of {len(claims)} fell short')
