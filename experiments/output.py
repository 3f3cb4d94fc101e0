"""The folder of a run: config, metrics, checkpoints, and how to resume."""

import csv
import io
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp


def check_root(folder: pathlib.Path, *, resume: bool) -> None:
  """Raises ValueError unless a new run may write here, or one can go on."""
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'--output_dir={folder} is not a folder')
  if resume and not any(folder.rglob('config.json')):
    raise ValueError(f'--resume: there is no config.json of a run in {folder}')
  if not resume and _in_use(folder):
    raise ValueError(
      f'--output_dir={folder} is not empty: choose another folder, or continue'
      ' the run in it with --resume'
    )


def _in_use(folder: pathlib.Path) -> bool:
  # A file that was being written when its run was killed is not a run.
  files = folder.iterdir() if folder.exists() else ()
  return any(path.suffix != '.tmp' for path in files)


def open_folder(folder: pathlib.Path, config: dict[str, Any]) -> None:
  """Makes the folder and writes `config.json`, or checks the one it finds.

  Raises:
    ValueError: if the folder was written by a run with other flags, by
      something else, or not by process 0. Nothing is overwritten.
  """
  path = folder / 'config.json'
  of_several = jax.process_index() > 0
  if path.exists():
    try:
      found = json.loads(path.read_text())
    except ValueError as error:
      raise ValueError(f'--resume: {path} is damaged: {error}') from error
    differing = {
      key: f'{found.get(key)!r} there, {config.get(key)!r} here'
      for key in sorted({*found, *config})
      if found.get(key) != config.get(key)
    }
    if differing:
      who = 'every process' if of_several else '--resume'
      raise ValueError(
        f'{who} needs the flags of the run in {folder}, but {differing}'
      )
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
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(config, indent=2) + '\n')


def slug(text: str) -> str:
  """The text as the name of a folder."""
  return re.sub(r'[^\w.=-]+', '_', text).strip('_')


def write_rows(path: pathlib.Path, rows: Sequence[dict]) -> None:
  """All rows so far, with the columns of the first, in one atomic step."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def read_rows(path: pathlib.Path) -> list[dict]:
  """The rows of a file that `write_rows` has written, as text."""
  with path.open() as file:
    return list(csv.DictReader(file))


def metric_rows(
  done: int, seeds: Sequence[int], metrics: Any, info: Any
) -> list[dict]:
  """A row of `metrics.csv` for each seed; NaN where there is no info yet."""

  def row(i, seed):
    row = {'round': done, 'seed': seed}
    row |= {k: float(v[i]) for k, v in metrics._asdict().items()}
    for column, field in (
      ('train_loss', 'loss'),
      ('aggregation_error', 'aggregation_error'),
      ('num_nonfinite', 'num_nonfinite'),
    ):
      row[column] = float(getattr(info, field)[i]) if info else math.nan
    return row

  return [row(i, seed) for i, seed in enumerate(seeds)]


def write_text(path: pathlib.Path, text: str) -> None:
  """The whole file in one atomic step; of several processes, by the first."""
  if jax.process_index() > 0:
    return
  temporary = path.with_suffix(f'.{os.getpid()}.tmp')
  temporary.write_text(text)
  os.replace(temporary, path)


def write_metrics(folder: pathlib.Path, rows: Sequence[dict]) -> None:
  """All rows so far as `metrics.csv`, in one atomic step."""
  write_rows(folder / 'metrics.csv', rows)


def read_metrics(folder: pathlib.Path, up_to_round: int) -> list[dict]:
  """The rows of `metrics.csv` up to a round, as they were written.

  Raises:
    ValueError: if the file is missing or lacks rows of that round.
  """
  path = folder / 'metrics.csv'
  rows = read_rows(path) if path.exists() else []
  rows = [row for row in rows if int(row['round']) <= up_to_round]
  if not rows or int(rows[-1]['round']) != up_to_round:
    raise ValueError(
      f'--resume: there is a checkpoint of round {up_to_round}, but {path} has'
      ' no rows of it'
    )
  return rows


def save_checkpoint(folder: pathlib.Path, step: int, state: Any) -> None:
  """Writes the state of round `step`; the one before is kept beside it."""
  root = folder.absolute() / 'checkpoints'
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(root / f'{step:08d}', state)
  if jax.process_index() == 0:
    for old in _checkpoints(folder)[:-2]:
      shutil.rmtree(old)


def restore_checkpoint(
  folder: pathlib.Path, like: Any
) -> tuple[int, Any] | None:
  """The newest checkpoint as `(round, state)`, or None if there is none.

  Shapes, dtypes and devices are those of the arrays of `like`.

  Raises:
    ValueError: if it cannot be read, with what to delete to fall back.
  """
  checkpoints = _checkpoints(folder)
  if not checkpoints:
    return None
  newest = checkpoints[-1]
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
  )
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return int(newest.name), checkpointer.restore(newest, like)
  except Exception as error:
    raise ValueError(
      f'--resume: the checkpoint {newest} cannot be read; delete that folder to'
      f' continue from {"the one before it" if checkpoints[1:] else "round 0"}.'
      f' ({type(error).__name__}: {str(error).splitlines()[0]})'
    ) from error


def _checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
  # Orbax writes under another name and renames, so digits mean complete.
  root = folder.absolute() / 'checkpoints'
  found = root.iterdir() if root.exists() else ()
  return sorted(path for path in found if path.name.isdigit())
