"""Eight devices on any machine, and the strictness that users of JAX expect."""

import os
import tempfile

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_configure(config):
  """Compiles in a third of the time, in processes of tests too.

  Compiling is most of the suite's time. The slow tests run what users run.
  """
  # A jaxlib that does not know a flag aborts, so newer ones compile as usual.
  if 'not slow' in config.option.markexpr and jax.__version_info__ < (0, 11):
    flags = (
      os.environ.get('XLA_FLAGS', ''),
      '--xla_backend_optimization_level=0',
      '--xla_cpu_use_fusion_emitters=false',
      '--xla_cpu_parallel_codegen_split_count=1',
    )
    os.environ['XLA_FLAGS'] = ' '.join(flags)


@pytest.fixture(autouse=True, scope='session')
def _keep_programs():
  """What was compiled once is found again, by processes of tests too."""
  with tempfile.TemporaryDirectory() as folder:
    options = {
      'jax_compilation_cache_dir': folder,
      'jax_persistent_cache_min_compile_time_secs': 0,
    }
    with pytest.MonkeyPatch.context() as environment:
      for name, value in options.items():
        jax.config.update(name, value)
        environment.setenv(name.upper(), str(value))
      yield


@pytest.fixture(autouse=True, scope='module')
def _forget_programs(request):
  """Programs of one file are not held in memory for the next.

  Thousands of them exhaust the mappings that a process may have, and then
  compiling crashes.
  """
  yield
  if request.path.name.endswith('_test.py'):
    jax.clear_caches()
