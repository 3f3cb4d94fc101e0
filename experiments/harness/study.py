"""How a study runs: from its settings to its rows, and what they say.

A study is a module `experiments.studies.<name>.study` with

  Settings               a frozen dataclass, whose options are its flags
  define(settings)       its cells
  summarise(rows, settings)  what its rows say, a `Summary`

and, if it wants them,

  keep(rows, settings)   the rows that are committed; `tables.keep` by default
  QUICK, QUICK_CELLS     options and parts of names of cells of a run of
                         seconds, for --quick; its summary is of those cells
  VARIANTS               {name: options}, runs on other data beside the default
"""

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from byzjax import data

from .. import studies
from ..reporting import summary, tables
from . import loop, output, programs, queue, settings
from .cells import Cell, OwnCell, Program, Rows


def names() -> list[str]:
  """All studies."""
  (root,) = map(pathlib.Path, studies.__path__)
  return sorted(path.parent.name for path in root.glob('*/study.py'))


def load(name: str) -> ModuleType:
  """The study of a name.

  Raises:
    ValueError: if there is none; says which there are.
  """
  if name not in names():
    raise ValueError(f'no study {name!r}; there are {", ".join(names())}')
  return importlib.import_module(f'{studies.__name__}.{name}.study')


def folder_of(study: ModuleType) -> pathlib.Path:
  """Where its page and its committed results are."""
  return pathlib.Path(str(study.__file__)).parent


def name_of(study: ModuleType) -> str:
  return folder_of(study).name


def quick(
  study: ModuleType, config: Any, given: Sequence[str] = ()
) -> tuple[Any, list[Cell | OwnCell]]:
  """Settings and cells of a run of seconds: nothing can be learned from it.

  Settings that are given stay as they are.

  Raises:
    ValueError: if these settings have none of its cells.
  """
  small = {'num_seeds': 1, **study.QUICK}
  config = dataclasses.replace(
    config, **{k: v for k, v in small.items() if k not in given}
  )
  cells = [
    cell
    for cell in study.define(config)
    if any(part in cell.name for part in study.QUICK_CELLS)
  ]
  if not cells:
    raise ValueError(
      '--quick: no cell of these settings is one of the quick ones,'
      f' {"; ".join(study.QUICK_CELLS)}; name one by --only, without --quick'
    )
  return config, cells


def variant(study: ModuleType, name: str) -> Any:
  """The settings of a variant; of the study itself without a name.

  Raises:
    ValueError: if there is no such variant.
  """
  known = {'': {}, **getattr(study, 'VARIANTS', {})}
  if name not in known:
    raise ValueError(f'--variant={name}: known are {", ".join(known)[2:]}')
  return study.Settings(**known[name])


def variants(study: ModuleType) -> list[str]:
  """The names of the runs whose rows are committed; the study's own is ''."""
  known = ['', *getattr(study, 'VARIANTS', {})]
  return [name for name in known if rows_of(study, name).exists()]


def rows_of(study: ModuleType, name: str = '') -> pathlib.Path:
  """The file of committed rows, which need not be there yet."""
  return folder_of(study) / f'{name or "results"}.csv'


def program_of(
  cell: Cell | OwnCell, config: Any, dataset: data.Dataset | None
) -> Program | None:
  """The program of a cell; None if it only makes rows."""
  if isinstance(cell, OwnCell):
    return cell.make_program and cell.make_program(config.seeds)
  dataset = cell.load() if cell.load else dataset
  assert dataset is not None
  options = programs.Options(
    config.model, config.seeds, config.augment, config.validation
  )
  return programs.of_images(cell, dataset, options)


# Large images take a minute.
_load = functools.cache(data.load)


def dataset_of(cells: Sequence[Cell | OwnCell], config: Any):
  """The images of the cells, if one is on those of the settings."""
  if any(isinstance(cell, Cell) and not cell.load for cell in cells):
    return _load(config.dataset, config.data_dir)
  return None


def check(cells: Sequence[Cell | OwnCell], config: Any) -> None:
  """Traces all cells, so that what refuses its arguments does so up front.

  Raises:
    ValueError: if a rule or a round refuses its arguments; names the cell.
  """
  dataset = dataset_of(cells, config)
  for cell in cells:
    try:
      if program := program_of(cell, config, dataset):
        program.trace()
    except ValueError as error:
      raise ValueError(f'{cell.name}: {error}') from error


def jobs(
  cells: Sequence[Cell | OwnCell], config: Any, checkpoint_seconds: float
) -> list[queue.Job]:
  """A job of the queue for every cell; its arrays are made when it runs."""
  dataset = dataset_of(cells, config)

  def job_of(cell) -> queue.Job:
    size = cell.rounds
    if isinstance(cell, Cell):
      size *= len(cell.partitions) * len(cell.values) * config.num_seeds

    def run(folder, advance):
      program = program_of(cell, config, dataset)
      if program is None:
        return cell.make_rows(config.seeds)
      last = program.stops[-1]
      return loop.run(
        program,
        folder,
        save_seconds=checkpoint_seconds,
        advance=lambda rounds, rows: advance(round(size * rounds / last)),
      )

    return queue.Job(cell.name, cell.labels, size, run)

  return [job_of(cell) for cell in cells]


def kept(study: ModuleType, rows: Rows, config: Any) -> Rows:
  """The rows that its summary is made of, and that are committed."""
  keep = getattr(study, 'keep', lambda rows, config: tables.keep(rows))
  return tables.rounded(keep(rows, config))


def committed(study: ModuleType, name: str = '') -> Rows:
  """The rows that lie beside its page.

  Raises:
    ValueError: if there are none yet.
  """
  path = rows_of(study, name)
  if not path.exists():
    raise ValueError(f'no rows are committed in {path}: run it with --publish')
  return output.numbers(output.read_rows(path))


def check_whole(
  study: ModuleType, config: Any, name: str = '', *, only: str = ''
) -> None:
  """Raises ValueError unless these are the settings of what is committed.

  Only the folder of the data may differ and, for a part of the cells, where a
  study has it, the first seed.
  """
  expected = variant(study, name)
  free = ('data_dir', 'first_seed') if only else ('data_dir',)
  config = dataclasses.replace(
    config, **{x: getattr(expected, x) for x in free if hasattr(config, x)}
  )
  if config != expected:
    flags = ' '.join(settings.arguments(config)) or 'the defaults'
    raise ValueError(
      '--publish and --committed are about the settings of the study, or of'
      f' --variant, and need them as they are; got {flags}'
    )


def chosen(cells: Sequence[Cell | OwnCell], only: str):
  """The cell of this name, or else those whose names contain the text.

  Raises:
    ValueError: if there is none.
  """
  found = [cell for cell in cells if cell.name == only]
  found = found or [cell for cell in cells if only in cell.name]
  if not found:
    raise ValueError(f'--only={only} matches no cell')
  return found


def merged(study: ModuleType, rows: Rows, config: Any, name: str = '') -> Rows:
  """The committed rows with those of some cells and seeds in their place.

  Raises:
    ValueError: if the kept rows do not say of which cell they are.
  """
  cells = study.define(config)
  labels = list(cells[0].labels)
  lacking = [label for label in labels if label not in rows[0]]
  if lacking:
    raise ValueError(
      f'--publish with --only needs rows that name their cell; this study keeps'
      f' none of {", ".join(lacking)}: publish all of its cells at once'
    )
  order = {tuple(map(str, c.labels.values())): i for i, c in enumerate(cells)}

  def cell_of(row) -> tuple[str, ...]:
    return tuple(str(row[label]) for label in labels)

  def run_of(row) -> tuple[str, ...]:
    return (*cell_of(row), str(row['seed']))

  old = committed(study, name) if rows_of(study, name).exists() else []
  again = {run_of(row) for row in rows}
  rows = [row for row in old if run_of(row) not in again] + rows
  return sorted(rows, key=lambda row: order.get(cell_of(row), len(order)))


def publish(study: ModuleType, rows: Rows, config: Any, name: str = '') -> None:
  """Writes rows, page and pictures of a study into its folder."""
  folder = folder_of(study)
  output.write_rows(rows_of(study, name), rows)
  said = study.summarise(rows, config)
  summary.draw(said, folder)
  page = folder / 'README.md'
  page.write_text(summary.page(page.read_text(), said, name))


def command(study: ModuleType, config: Any, cell: Cell | OwnCell) -> str:
  """The line that runs a cell alone."""
  return summary.command(
    'studies',
    name_of(study),
    *settings.arguments(config),
    f'--only={cell.name}',
  )
