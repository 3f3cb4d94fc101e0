"""Programs that binaries compile are kept for those that come after them."""

import pytest


@pytest.fixture(autouse=True, scope='session')
def _programs(tmp_path_factory):
  """Processes find what those before them compiled; this one does not look."""
  folder = str(tmp_path_factory.mktemp('programs'))
  with pytest.MonkeyPatch.context() as environment:
    environment.setenv('JAX_COMPILATION_CACHE_DIR', folder)
    environment.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    yield
