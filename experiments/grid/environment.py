"""Where rows come from: the commit, the version of JAX, the device."""

import pathlib
import platform
import subprocess

import jax

_ROOT = pathlib.Path(__file__).parents[2]


def stamp() -> dict[str, str]:
  """Columns of a row."""
  return {
    'commit': commit(),
    'jax': jax.__version__,
    'device': f'{jax.devices()[0].device_kind} ({platform.machine()})',
  }


def commit() -> str:
  """The commit behind a g, with a plus if what runs differs from it.

  The g is git's own, and keeps a commit of digits from being a number.
  """

  def git(*words: str) -> str:
    done = subprocess.run(
      ['git', *words], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()

  try:
    changed = git('status', '--porcelain', '--', 'byzjax', 'experiments/*.py')
    return 'g' + git('rev-parse', '--short=10', 'HEAD') + '+' * bool(changed)
  except (OSError, subprocess.CalledProcessError):
    return 'unknown'
