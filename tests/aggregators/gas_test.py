"""GAS: the order in which coordinates are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
ORDER = np.random.default_rng(1).permutation(6)


def make(permutation):
  return byzjax.gas(
    byzjax.krum(num_byzantine=1),
    num_byzantine=1,
    num_pieces=3,
    permutation=permutation,
  )


def test_a_permutation_of_numpy_of_jax_and_a_traced_one():
  traced = jax.jit(lambda order: make(order)(X))(ORDER)
  for order in (ORDER, jnp.asarray(ORDER)):
    np.testing.assert_allclose(make(order)(X), traced, 1e-5, 1e-6)


@pytest.mark.parametrize(
  'order, error, message',
  [
    (np.zeros(4, int), ValueError, r'each of 0 ... 3 once, got \[0 0 0 0\]'),
    (jnp.array([0, 1, 2, 99]), ValueError, 'each of 0 ... 3 once, got'),
    (np.array([0, 1, 2, -1]), ValueError, 'gas needs permutation >= 0'),
    (np.arange(4.0), ValueError, 'permutation to be an int or an array of int'),
    ([0, 1], TypeError, r'permutation to be an array int\[d\] or None'),
  ],
)
def test_what_is_no_permutation_is_refused(order, error, message):
  with pytest.raises(error, match=message):
    make(order)
