"""One run at a time in a folder, by locks that end with who holds them.

The files stay; what is locked is not that they are there. So a run that is
killed blocks nobody.
"""

import errno
import fcntl
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import jax

from . import output

_TRIES = 10


def take(
  *folders: pathlib.Path, share: tuple[int, int] = (0, 1), resume: bool
) -> list[int]:
  """Keeps others out of the folders until `release`, or to the end.

  A process of several that share a queue, `share`, keeps out only itself and
  those of another number. Of the processes of one program, the first locks.

  Raises:
    ValueError: if another process is there, or began or ended a run in the
      first folder since one looked.
  """
  if jax.process_index() > 0:
    return []
  taken: list[int] = []
  try:
    for folder in folders:
      with output.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _take(folder, share, taken)
    output.check_root(folders[0], resume=resume)
  except BaseException as error:
    release(taken)
    if not isinstance(error, BlockingIOError):
      raise
    raise ValueError(
      f'another process writes to {folder}: wait for its end, or choose another'
      ' --output_dir'
    ) from error
  return taken


def _take(
  folder: pathlib.Path, share: tuple[int, int], taken: list[int]
) -> None:
  process, num_processes = share
  if num_processes == 1:
    taken.append(_lock(folder / '.lock', fcntl.LOCK_EX))
    return
  taken.append(_lock(folder / '.lock', fcntl.LOCK_SH))
  taken.append(_lock(folder / f'.lock.{process}', fcntl.LOCK_EX))
  own = folder / f'.lock.of_{num_processes}'
  taken.append(_lock(own, fcntl.LOCK_SH))
  # Processes of another number divide the jobs in another way.
  for path in set(folder.glob('.lock.of_*')) - {own}:
    release([_lock(path, fcntl.LOCK_EX)])


def release(taken: Sequence[int]) -> None:
  """Lets others in."""
  for descriptor in taken:
    os.close(descriptor)


def _lock(path: pathlib.Path, how: int) -> int:
  """A descriptor of the file, locked as long as it is open."""
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  # Not at once, for others may be looking.
  for left in reversed(range(_TRIES)):
    try:
      fcntl.flock(descriptor, how | fcntl.LOCK_NB)
      return descriptor
    except OSError as error:
      if error.errno not in (errno.EAGAIN, errno.EACCES):
        break  # A file system without locks.
      if not left:
        os.close(descriptor)
        raise BlockingIOError(str(path)) from error
    time.sleep(0.1)
  print(
    f'{path.parent} cannot be locked: see to it that no other process writes'
    ' there',
    file=sys.stderr,
  )
  return descriptor
