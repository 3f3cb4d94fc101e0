"""The folder of a run: config, metrics, checkpoints, and how to resume."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

# Flags that a config has, so that nobody need repeat them, and that may differ.
_MAY_DIFFER = ('data_dir',)
_METADATA = 2**20  # Bytes of a checkpoint beside its arrays, at most.


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Ends the program in one line if the system does not let it write.

  That two processes want one file is left to who knows what it means.
  """
  try:
    yield
  except BlockingIOError:
    raise
  except OSError as error:
    sys.exit(f'cannot write {path}: {error.strerror or error}')


def check_root(folder: pathlib.Path, *, resume: bool) -> None:
  """Raises ValueError unless a new run may write here, or one can go on."""
  there = next(path for path in (folder, *folder.parents) if path.exists())
  if not there.is_dir():
    below = '' if there == folder else f': {there}'
    raise ValueError(f'--output_dir={folder}{below} is not a folder')
  if not os.access(there, os.W_OK | os.X_OK):
    raise ValueError(f'--output_dir={folder}: cannot write to {there}')
  if resume and not (folder / 'config.json').exists():
    runs = sorted(path.parent for path in folder.glob('*/config.json'))
    hint = f'; one that can go on is in {runs[0]}' if runs else ''
    raise ValueError(
      f'--resume: there is no config.json of a run in {folder}{hint}'
    )
  if not resume and _in_use(folder):
    raise ValueError(
      f'--output_dir={folder} is not empty: choose another folder, or continue'
      ' the run in it with --resume'
    )


def _in_use(folder: pathlib.Path) -> bool:
  # What a run that was killed at its beginning leaves is not a run.
  return any(
    path.suffix != '.tmp' and not path.name.startswith('.lock')
    for path in folder.rglob('*')
    if not path.is_dir()
  )


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The flags of the run in the folder.

  Raises:
    ValueError: if the file is damaged.
  """
  path = folder / 'config.json'
  try:
    config = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'--resume: {path} is damaged: {error}') from error
  if not isinstance(config, dict):
    raise ValueError(f'--resume: {path} is damaged: it is not a JSON object')
  return config


def check_program(
  folder: pathlib.Path, config: dict[str, Any], program: str | None
) -> None:
  """Raises ValueError unless the config in the folder is of this program."""
  other = config.get('program')
  if other is None and program is not None:
    raise ValueError(
      f'--resume: the config.json in {folder} is of an older version and does'
      f' not name its program; if that is {program}, add "program": "{program}"'
    )
  if other != program:
    raise ValueError(f'--resume: {folder} has a run of {other}, not {program}')


def check_same(
  folder: pathlib.Path, config: dict[str, Any], may_grow: str | None = None
) -> dict[str, Any]:
  """The config of the run in the folder, which has these flags.

  Raises:
    ValueError: if it has other flags, but for those that may be larger here.
  """
  before = read_config(folder)
  check_program(folder, before, config.get('program'))
  differing = [
    f'--{key} is {before.get(key)!r} there and {config.get(key)!r} here'
    + (' (it may only grow)' if key == may_grow else '')
    for key in sorted({*before, *config} - {*_MAY_DIFFER})
    if before.get(key) != config.get(key)
    and not (key == may_grow and config[key] > before.get(key, math.inf))
  ]
  if differing:
    who = 'every process' if jax.process_index() > 0 else '--resume'
    raise ValueError(
      f'{who} needs the flags of the run in {folder}, but'
      f' {", ".join(differing)}'
    )
  return before


def open_folder(
  folder: pathlib.Path, config: dict[str, Any], may_grow: str | None = None
) -> None:
  """Makes the folder and writes `config.json`, or checks the one it finds.

  Raises:
    ValueError: if the folder was written by a run with other flags, by
      something else, or not by process 0. Nothing is overwritten, but for the
      number of the one flag that may grow.
  """
  path = folder / 'config.json'
  config = json.loads(json.dumps(config))  # As it is read: tuples are lists.
  of_several = jax.process_index() > 0
  if path.exists():
    before = check_same(folder, config, None if of_several else may_grow)
    if may_grow and config[may_grow] != before[may_grow]:
      _write_config(path, before | {may_grow: config[may_grow]})
  elif of_several:
    raise ValueError(
      f'process 0 has written {path}, but it is not here: all processes need'
      ' the same --output_dir, and must see it'
    )
  elif _in_use(folder):
    raise ValueError(
      f'--resume: {folder} holds files but no config.json of a run'
    )
  else:
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
    _write_config(path, config)


def _write_config(path: pathlib.Path, config: dict[str, Any]) -> None:
  write_text(path, json.dumps(config, indent=2) + '\n')


def slug(text: str) -> str:
  """The text as the name of a folder."""
  return re.sub(r'[^\w.=-]+', '_', text).strip('_')


def write_rows(path: pathlib.Path, rows: Sequence[dict]) -> None:
  """All rows so far, in one atomic step; what a row lacks is `nan`."""
  text = io.StringIO()
  columns = dict.fromkeys(name for row in rows for name in row)
  writer = csv.DictWriter(
    text, list(columns), restval='nan', lineterminator='\n'
  )
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def read_rows(path: pathlib.Path) -> list[dict]:
  """The rows of a file that `write_rows` has written, as text."""
  with path.open() as file:
    return list(csv.DictReader(file))


def read_whole_rows(path: pathlib.Path) -> tuple[list[dict], bool]:
  """The rows of a file, less a last one that is torn; and whether one was.

  Raises:
    ValueError: if another row is not as long as the first line.
  """
  *lines, end = path.read_text().split('\n')
  rows = list(csv.DictReader(lines))

  def is_torn(row):
    return None in row or None in row.values()

  # What was cut behind a number still looks like a number.
  torn = bool(end) or not lines
  if rows and not torn and is_torn(rows[-1]):
    rows, torn = rows[:-1], True
  if any(map(is_torn, rows)):
    raise ValueError(f'{path} is damaged: a row is not as long as the first')
  return rows, torn


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """The name to write a file to, which then takes its place in one step."""
  temporary = path.with_suffix(f'.{os.getpid()}.tmp')
  with writing(path):
    try:
      yield temporary
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def write_text(path: pathlib.Path, text: str) -> None:
  """The whole file in one atomic step; of several processes, by the first."""
  if jax.process_index() > 0:
    return
  with replacing(path) as temporary:
    temporary.write_text(text)


def rows_up_to(
  path: pathlib.Path, stops: Sequence[int], num_runs: int
) -> list[dict]:
  """The rows of the first of these rounds, as written.

  All that are whole: of a round, those of all runs, or none.

  Raises:
    ValueError: if the file is damaged.
  """
  rows = read_whole_rows(path)[0] if path.exists() else []
  whole: list[dict] = []
  for stop in stops:
    of_round = rows[len(whole) : len(whole) + num_runs]
    if [row.get('round') for row in of_round] != [str(stop)] * num_runs:
      break
    whole += of_round
  return numbers(whole)


def numbers(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
  """Rows of a csv file, with numbers where something is one."""

  def number(text):
    try:
      return int(text) if text.lstrip('-').isdigit() else float(text)
    except ValueError:
      return text

  return [{k: number(v) for k, v in row.items()} for row in rows]


def save_checkpoint(folder: pathlib.Path, step: int, state: Any) -> None:
  """Writes the state of round `step`; the one before is kept beside it."""
  path = folder.absolute() / 'checkpoints' / f'{step:08d}'
  verbosity = logging.get_verbosity()
  with writing(path):
    _check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    try:
      # It would log what it raises, with where.
      logging.set_verbosity(logging.FATAL)
      with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
    except ValueError as error:  # How it says that a disk is full.
      cause = re.search(r'([^:]*) \[os_error_code=', str(error))
      if not cause:
        raise
      raise OSError(cause[1].strip()) from error
    finally:
      logging.set_verbosity(verbosity)
    if jax.process_index() == 0:
      for _, old in _checkpoints(folder)[:-2]:
        shutil.rmtree(old)


def _check_room(folder: pathlib.Path, size: int) -> None:
  # Threads of the checkpointer print tracebacks when the disk is full.
  usage = shutil.disk_usage(folder)
  if usage.total and usage.free < size + _METADATA:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def restore_checkpoint(
  folder: pathlib.Path,
  like: Any,
  accepts: Callable[[int], bool] = lambda step: True,
) -> tuple[int, Any] | None:
  """The newest checkpoint as `(round, state)`, or None if there is none.

  Shapes, dtypes and devices are those of the arrays of `like`. Those that are
  not accepted do not count, and are removed, for the run comes by them again.

  Raises:
    ValueError: if it cannot be read, with what to delete to fall back.
  """
  checkpoints = _checkpoints(folder)
  accepted = [step for step, _ in checkpoints if accepts(step)]
  newest = accepted[-1] if accepted else 0
  restored = None
  if accepted:
    path = dict(checkpoints)[newest]
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      like,
    )
    try:
      with ocp.StandardCheckpointer() as checkpointer:
        restored = newest, checkpointer.restore(path, like)
    except Exception as error:
      other = 'the one before it' if accepted[1:] else 'round 0'
      raise ValueError(
        f'--resume: the checkpoint {path} cannot be read; delete that folder to'
        f' continue from {other}.'
        f' ({type(error).__name__}: {str(error).splitlines()[0]})'
      ) from error
  if jax.process_index() == 0:
    for step, path in checkpoints:
      if step > newest:
        shutil.rmtree(path)
  return restored


def steps(folder: pathlib.Path) -> list[int]:
  """The rounds of the checkpoints that are complete, in order."""
  return [step for step, _ in _checkpoints(folder)]


def _checkpoints(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
  # Orbax writes under another name and renames, so digits mean complete.
  root = folder.absolute() / 'checkpoints'
  paths = root.iterdir() if root.exists() else ()
  return sorted((int(p.name), p) for p in paths if p.name.isdigit())
