"""One run at a time in a folder, and a killed one blocks nobody."""

import errno
import fcntl
import pathlib
import subprocess
import sys

import pytest

from experiments.harness import lock

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import pathlib, sys
from experiments.harness import lock
lock.take(pathlib.Path(sys.argv[1]), resume=False)
print('taken', flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(lock, '_TRIES', 1)


def test_another_process_is_kept_out_until_it_is_killed(tmp_path):
  folder = tmp_path / 'new'
  with subprocess.Popen(
    [sys.executable, '-c', HOLDER, folder],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as holder:
    assert holder.stdout.readline() == b'taken\n'
    with pytest.raises(ValueError, match='another process writes to .*new'):
      lock.take(folder, resume=False)
    holder.kill()
  lock.release(lock.take(folder, resume=False))


def test_the_processes_of_a_queue_share_a_folder(tmp_path):
  one, another = (
    lock.take(tmp_path, share=(i, 2), resume=False) for i in range(2)
  )
  # The same process again, one that does all, and one of another number.
  for share in ((1, 2), (0, 1), (2, 3)):
    with pytest.raises(ValueError, match='another process writes'):
      lock.take(tmp_path, share=share, resume=False)
  lock.release(one)
  with pytest.raises(ValueError, match='another process writes'):
    lock.take(tmp_path, resume=False)
  lock.release(another)
  for share in ((0, 1), (2, 3), (0, 2)):
    lock.release(lock.take(tmp_path, share=share, resume=False))


def test_a_run_that_ended_since_one_looked_is_not_overwritten(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='is not empty'):
    lock.take(tmp_path, resume=False)
  lock.release(lock.take(tmp_path, resume=True))


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
  def flock(descriptor, how):
    raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(fcntl, 'flock', flock)
  lock.release(lock.take(tmp_path, resume=False))
  assert 'cannot be locked' in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(SystemExit, match='cannot write .*: Not a directory'):
    lock.take(tmp_path / 'file' / 'new', resume=False)
