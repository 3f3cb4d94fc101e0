"""Eight devices on any machine, and the strictness that users of JAX expect."""

import os

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_configure(config):
  """Compiles without LLVM's optimisation, in processes of tests too.

  Compiling is most of the suite's time. The slow tests run what users run.
  """
  if 'not slow' in config.option.markexpr:
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_backend_optimization_level=0'


@pytest.fixture(autouse=True, scope='module')
def _forget_programs(request):
  """Programs of one file are of no use to the next.

  Thousands of them exhaust the mappings that a process may have, and then
  compiling crashes.
  """
  yield
  if request.path.name.endswith('_test.py'):
    jax.clear_caches()
