"""Jobs one after the other, into a `results.csv` that can be completed.

With `--num_processes` and `--process_id`, every process has its share of the
jobs and a file of its own, and the last one puts the files together. They do
not talk: one that is killed stops nobody.
"""

import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tqdm

from . import distributed, output
from .cells import Rows


class Job(NamedTuple):
  """What makes some rows of the results.

  Attributes:
    name: for the bar and for a folder; all names differ.
    key: columns and their values that only rows of this job have.
    size: how far it moves the bar.
    run: `(folder, advance) -> rows`; the folder is for checkpoints, and
      `advance(k)` says that k more of the size are done.
  """

  name: str
  key: Mapping[str, Any]
  size: int
  run: Callable[[pathlib.Path, Callable[[int], Any]], Rows]


def left(jobs: Sequence[Job], folder: pathlib.Path) -> list[int]:
  """The numbers of the jobs that `work` would run in this process."""
  process, num_processes = distributed.share()
  done = _read(jobs, folder)
  return [i for i in range(process, len(jobs), num_processes) if i not in done]


def work(jobs: Sequence[Job], folder: pathlib.Path, unit: str = 'jobs') -> Rows:
  """All rows: those in `results.csv`, and those of the jobs that it lacks.

  The time left that the bar shows is at the average rate of this call. Of
  several processes, those that leave jobs to others end here.
  """
  process, num_processes = distributed.share()
  path = folder / 'results.csv'
  own = folder / f'results.{process}.csv' if num_processes > 1 else path
  done = _read(jobs, folder)
  mine = range(process, len(jobs), num_processes)
  # What others have done stays in their files.
  rows = _read(jobs, folder, [own]) if num_processes > 1 else dict(done)
  with tqdm.tqdm(
    total=sum(jobs[i].size for i in mine),
    initial=sum(jobs[i].size for i in mine if i in done),
    unit=unit,
    smoothing=0,
    dynamic_ncols=True,
  ) as bar:
    for i in left(jobs, folder):
      job = jobs[i]
      bar.set_description(f'{i + 1} of {len(jobs)}')
      bar.set_postfix_str(job.name)
      # Of its own, for the program may be killed before it is removed.
      unfinished = folder / 'unfinished' / output.slug(job.name)
      before = bar.n
      rows[i] = job.run(unfinished, bar.update)
      output.write_rows(own, _in_order(rows))
      shutil.rmtree(unfinished, ignore_errors=True)
      bar.update(before + job.size - bar.n)
  if num_processes > 1:
    rows = _read(jobs, folder)
    others = sum(i not in rows for i in range(len(jobs)))
    if others:
      print(
        f'Process {process} is done; left to others: {others} of {len(jobs)}'
      )
      sys.exit(0)
  if parts := _parts(folder):
    output.write_rows(path, _in_order(rows))
    for part in parts:
      part.unlink(missing_ok=True)
  return _in_order(rows)


def _parts(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob('results.*.csv'))


def _read(
  jobs: Sequence[Job],
  folder: pathlib.Path,
  paths: Sequence[pathlib.Path] | None = None,
) -> dict[int, Rows]:
  """The rows of each job in the files; of all, without paths.

  A job has the rows from one with its key up to the next job. Those before
  all, of jobs that this call leaves out, are at -1. One whose last row is torn
  has none.
  """
  place = {tuple(map(str, job.key.values())): i for i, job in enumerate(jobs)}
  by_job: dict[int, Rows] = {}
  for path in paths or [folder / 'results.csv', *_parts(folder)]:
    if not path.exists():
      continue
    here: dict[int, Rows] = {}
    i = -1
    try:
      whole, torn = output.read_whole_rows(path)
    except ValueError as error:
      sys.exit(f'--resume: {error}')
    for row in output.numbers(whole):
      i = place.get(tuple(str(row[k]) for k in jobs[0].key), i)
      here.setdefault(i, []).append(row)
    if torn and i == -1 and whole:
      sys.exit(
        f'--resume: the last row of {path} is torn; first complete the cells'
        ' that this call leaves out'
      )
    if torn:
      here.pop(i, None)  # The job that it is of is done again.
    # Parts that were put together, and not removed any more, are no news.
    by_job = {**here, **by_job}
  return by_job


def _in_order(rows: Mapping[int, Rows]) -> Rows:
  return [row for i in sorted(rows) for row in rows[i]]
