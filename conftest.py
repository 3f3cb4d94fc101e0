"""Eight devices on any machine, and the strictness that users of JAX expect."""

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(autouse=True, scope='module')
def _forget_programs(request):
  """Programs of one file are of no use to the next.

  Thousands of them exhaust the mappings that a process may have, and then
  compiling crashes.
  """
  yield
  if request.path.name.endswith('_test.py'):
    jax.clear_caches()
