"""What an editor and mypy --strict say of a user's file."""

import pathlib
import subprocess
import sys

from tests.typing import marks


def test_right_uses_pass_and_each_wrong_one_is_reported(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'mypy',
      '--strict',
      # As for a user: what is imported is no file of theirs, and not all of it
      # has types.
      '--follow-imports=silent',
      '--ignore-missing-imports',
      '--config-file=',
      f'--cache-dir={tmp_path}',
      *(f'tests/typing/{name}' for name in marks.FILES),
    ],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert marks.reported(done.stdout) == marks.marked(), (
    done.stdout + done.stderr
  )
