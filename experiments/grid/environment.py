"""Where rows come from: the commit, the version of JAX, the device."""

import pathlib
import platform
import subprocess

import jax

ROOT = pathlib.Path(__file__).parents[2]


def stamp() -> dict[str, str]:
  """Columns of a row."""
  # The g is git's own, and keeps a commit of digits from being a number.
  found = commit('experiments')
  return {
    'commit': found if found == 'unknown' else f'g{found}',
    'jax': jax.__version__,
    'device': f'{jax.devices()[0].device_kind} ({platform.machine()})',
  }


def commit(programs: str) -> str:
  """The commit of the clone, with a plus if files differ from it.

  Those of the library and of the folder with the programs are looked at.
  Outside a clone it is unknown.
  """

  def git(*args: str) -> str:
    done = subprocess.run(
      ['git', *args], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()

  try:
    # An environment may lie inside somebody else's repository.
    git('ls-files', '--error-unmatch', f'{programs}/__init__.py')
    changed = git('status', '--porcelain', '--', 'byzjax', f'{programs}/*.py')
    return git('rev-parse', '--short=10', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
