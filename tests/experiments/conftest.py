"""Programs that are compiled are kept for those that come after them."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True, scope='session')
def _programs(tmp_path_factory):
  """Processes find what those before them compiled."""
  folder = str(tmp_path_factory.mktemp('programs'))
  with pytest.MonkeyPatch.context() as environment:
    environment.setenv('JAX_COMPILATION_CACHE_DIR', folder)
    environment.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    yield


@pytest.fixture(autouse=True, scope='module')
def _own_programs(_programs):
  """So does this one, for a run that goes on is what it was."""
  jax.config.update(
    'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
  )
  yield
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()
