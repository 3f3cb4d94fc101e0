"""What a grid is made of: flags, or the keys of a TOML file."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from ..harness import settings, specs
from ..harness.settings import ImageSettings, option
from . import entries

FLAGS = flags.FLAGS
SUITES = {
  path.stem: path for path in pathlib.Path(__file__).parent.glob('*.toml')
}
# What --quick puts in place of a suite: seconds, and nothing can be learned.
QUICK = {
  'dataset': 'digits',
  'rounds': 3,
  'num_evals': 1,
  'num_seeds': 2,
  'assumed_byzantine': [4],
  'learning_rates': [0.3],
  'aggregators': ['mean', 'krum'],
  'attacks': ['none', 'sign_flip(scale=10.0)'],
}
# Entries separated by semicolons.
_TEXTS = ('attacks', 'aggregators', 'pre_aggregators', 'partitions')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(ImageSettings):
  """What is run; names are texts."""

  attacks: str = option(
    'none; sign_flip(scale=10.0); alie;'
    ' inner_product_manipulation(epsilon=0.5)',
    f'Of {specs.describe(specs.ATTACKS)}; behind a comma a search that holds'
    f' the defence: {specs.describe(specs.SEARCHES)}.',
  )
  aggregators: str = option(
    'mean; coordinate_median; krum; centered_clipping(radius=[0.1, 1.0])',
    f'Of {specs.describe(specs.AGGREGATORS)}; perhaps behind pre-aggregators'
    ' and a comma.',
  )
  pre_aggregators: str = option(
    'none',
    'What stands in front of every one of --aggregators, in turn: none, or of'
    f' {specs.describe(specs.PRE_AGGREGATORS)}.',
  )
  num_byzantine: tuple[int, ...] = option((3,), 'Values of f.')
  assumed_byzantine: tuple[int, ...] = option(
    (),
    'What defences that ask for f are told in its place, each of these in turn.'
    ' Each is a defence of its own.',
  )
  partitions: str = option(
    'iid',
    'How examples are divided among workers:'
    f' {specs.describe(specs.PARTITIONS)}, all with long_tail.',
  )
  momenta: tuple[float, ...] = option(
    (0.9,), 'Decays of the momentum of each worker.'
  )
  learning_rates: tuple[float, ...] = option((0.1, 0.3), 'Of the server.')
  optimizer: str = option('sgd', f'Of {specs.describe(specs.OPTIMIZERS)}.')
  schedule: str = option('constant', f'Of {specs.describe(specs.SCHEDULES)}.')
  num_workers: int = option(15, 'n, attackers included.', low=1)
  rounds: int = option(200, 'Rounds of training.', low=1)
  batch_size: int = option(8, 'Examples per worker and round.', low=1)
  num_evals: int = option(10, 'Evaluations; the last 3 count.', low=1)
  skip_refused: bool = option(
    False, 'Leave out what cannot run, such as a rule for few f.'
  )
  stamp: bool = option(
    False, 'Every row says its commit, its version of JAX and its device.'
  )

  def entries(self, name: str) -> list[str]:
    return specs.split_top(getattr(self, name), ';')


def define_flags() -> None:
  """The flags of the command line."""
  settings.define(Grid)
  flags.DEFINE_enum(
    'suite', None, sorted(SUITES), 'A grid that is ready, to compare with.'
  )
  flags.DEFINE_string(
    'config',
    None,
    'A TOML file whose keys are flags; those given here win, and it wins over'
    ' --suite.',
  )
  flags.DEFINE_bool(
    'quick', False, 'A few cells of the suite, on digits, in seconds.'
  )
  flags.DEFINE_bool('dry_run', False, 'Only say what would run.')
  flags.DEFINE_bool(
    'time', False, 'At the end time a round of every defence, alone.'
  )
  flags.DEFINE_bool(
    'publish', False, 'At the end put the rows on the leaderboard.'
  )
  flags.DEFINE_string('output_dir', None, 'A new folder; runs/grid if none.')
  flags.DEFINE_bool(
    'resume',
    False,
    'Continue the grid in --output_dir with its flags; those given must agree.',
  )
  flags.DEFINE_float(
    'checkpoint_seconds', 60.0, 'Between checkpoints inside a program.', 0.0
  )


def names() -> list[str]:
  """The flags that a grid is made of."""
  return [
    field.name for field in dataclasses.fields(Grid) if 'what' in field.metadata
  ]


def read() -> Grid:
  """The grid of the flags; texts that mean the same are the same."""
  grid = settings.read(Grid)
  same = {name: '; '.join(grid.entries(name)) for name in _TEXTS}
  return dataclasses.replace(grid, **same)


def of_folder(grid: Grid) -> dict[str, Any]:
  """What `config.json` has."""
  values = {name: getattr(grid, name) for name in names()}.items()
  return {
    'program': 'grid',
    **{k: list(v) if isinstance(v, tuple) else v for k, v in values},
  }


def adopt_suite(name: str) -> None:
  """Sets the flags of a suite; the leaderboard has all that was handed in."""
  options = _read(SUITES[name])
  if name == 'leaderboard':
    options['aggregators'] += entries.names()
  _adopt(options, f'--suite={name}')


def of_suite(name: str) -> Grid:
  """The grid of a suite, without flags."""
  options = _read(SUITES[name])

  def value_of(key, value):
    if key in _TEXTS:
      return _text(key, value)
    return tuple(value) if isinstance(value, list) else value

  return Grid(**{k: value_of(k, v) for k, v in options.items()})


def adopt_quick() -> None:
  """Sets what makes a suite small; call it before the suite is adopted."""
  _adopt(QUICK, '--quick')


def adopt_file(path: pathlib.Path) -> None:
  """Sets the flags that the command line does not.

  Raises:
    ValueError: if the file cannot be read, or has what is no flag.
  """
  _adopt(_read(path), f'--config={path}')


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return tomllib.loads(path.read_text())
  except (OSError, tomllib.TOMLDecodeError) as error:
    raise ValueError(f'--config={path}: {error}') from error


def _adopt(options: Mapping[str, Any], source: str) -> None:
  known = sorted([*names(), 'checkpoint_seconds', 'output_dir'])
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(
      f'{source}: unknown keys {", ".join(unknown)}; known are'
      f' {", ".join(known)}'
    )
  for name, value in options.items():
    if FLAGS[name].present:
      continue
    try:
      FLAGS[name].parse(_text(name, value))
    except flags.IllegalFlagValueError as error:
      raise ValueError(f'{source}: {error}') from error


def _text(name: str, value: Any) -> str:
  """A value of a file as the command line has it."""
  if isinstance(value, Sequence) and not isinstance(value, str):
    return ('; ' if name in _TEXTS else ',').join(map(str, value))
  return str(value)
