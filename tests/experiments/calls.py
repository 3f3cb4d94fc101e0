"""Programs, called in this process as a shell would call them."""

import contextlib
import io

from absl import flags
from absl.testing import flagsaver

from experiments import train
from experiments.grid import run as grid_run
from experiments.grid import settings as grid_settings


def call(module, define_flags, *arguments):
  """What it prints; its flags are gone afterwards."""
  printed = io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stdout(printed):
    define_flags()
    module.main(flags.FLAGS([module.__name__, *arguments]))
  return printed.getvalue()


def call_train(*arguments):
  return call(train, train.define_flags, *arguments)


def call_grid(*arguments):
  return call(grid_run, grid_settings.define_flags, *arguments)


def words(output_dir, **options):
  """Options as a command line has them."""
  named = [f'--{name}={value}' for name, value in options.items()]
  return [f'--output_dir={output_dir}', *named]
