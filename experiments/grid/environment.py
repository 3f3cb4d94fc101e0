"""Where rows come from: the commit, the version of JAX, the device."""

import platform

import jax

from benchmarks import records


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
  found = records.commit('experiments')
  return found if found == 'unknown' else f'g{found}'
