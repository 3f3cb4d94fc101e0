"""`guard`: data-parallel training with a device that computes wrong numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N = 4


def _guard(rule=None, optimizer=None, **options):
  return byzjax.guard(
    optax.sgd(0.1, momentum=0.9) if optimizer is None else optimizer,
    rule=byzjax.coordinate_median() if rule is None else rule,
    num_microbatches=N,
    **options,
  )


def _gradients(seed=0):
  random = np.random.default_rng(seed)
  return {
    'w': 1 + 0.1 * random.normal(size=(N, 3, 2)).astype(np.float32),
    'b': 1 + 0.1 * random.normal(size=(N, 2)).astype(np.float32),
  }


PARAMS = {'w': jnp.zeros((3, 2)), 'b': jnp.zeros(2)}


def _flipped(gradients, row, bit=30):
  """One bit of one number of a row is turned over."""
  w = gradients['w'].copy()
  w.view(np.uint32)[row, 0, 0] ^= np.uint32(1 << bit)
  return {**gradients, 'w': w}


def test_without_faults_it_is_the_optimizer_on_the_aggregate():
  rule, tx = byzjax.mean(), _guard(byzjax.mean())
  plain = optax.sgd(0.1, momentum=0.9)
  state, alone = tx.init(PARAMS), plain.init(PARAMS)
  for seed in range(3):
    updates, state = tx.update(_gradients(seed), state, PARAMS)
    expected, alone = plain.update(rule(_gradients(seed)), alone, PARAMS)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      updates,
      expected,
    )
  assert not state.num_suspect.any() and state.num_skipped == 0


@pytest.mark.parametrize('bit', [30, 29, 28])
def test_a_flipped_bit_moves_little_and_is_counted(bit):
  tx = _guard()
  clean, _ = tx.update(_gradients(), tx.init(PARAMS), PARAMS)
  state = tx.init(PARAMS)
  for _ in range(3):
    updates, state = tx.update(_flipped(_gradients(), 2, bit), state, PARAMS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
  first, _ = tx.update(_flipped(_gradients(), 2, bit), tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(first['w'], clean['w'], atol=0.03)
  # At 28 the number becomes tiny: wrong, and not far.
  expected = [0, 0, 3 if bit == 30 else 0, 0]
  assert state.num_suspect.tolist() == expected
  mean = _guard(byzjax.mean())
  broken, _ = mean.update(_flipped(_gradients(), 2), mean.init(PARAMS), PARAMS)
  assert np.abs(broken['w']).max() > 1e6


def test_a_far_message_is_suspect_by_the_factor():
  gradients = _gradients()
  gradients['b'][1] += 2.0
  for factor, count in ((3.0, 1), (1e6, 0)):
    tx = _guard(factor=factor)
    _, state = tx.update(gradients, tx.init(PARAMS), PARAMS)
    assert state.num_suspect.tolist() == [0, count, 0, 0]


def test_most_messages_may_be_lost_and_are_counted():
  lost = jax.tree.map(lambda x: np.array(x), _gradients())
  lost['w'][1:] = np.nan
  tx = _guard(byzjax.mean())
  _, state = tx.update(lost, tx.init(PARAMS), PARAMS)
  assert state.num_suspect.tolist() == [0, 1, 1, 1]
  assert state.num_skipped == 0


def test_nothing_finite_moves_nothing():
  tx = _guard(optimizer=optax.adam(0.1))
  _, before = tx.update(_gradients(), tx.init(PARAMS), PARAMS)
  lost = jax.tree.map(lambda x: np.full_like(x, np.nan), _gradients())
  updates, after = jax.jit(tx.update)(lost, before, PARAMS)
  assert not any(np.any(x) for x in jax.tree.leaves(updates))
  jax.tree.map(np.testing.assert_array_equal, before.optimizer, after.optimizer)
  assert after.num_skipped == 1
  assert after.num_suspect.tolist() == [1, 1, 1, 1]


def test_another_number_of_rows_is_refused():
  tx = _guard()
  with pytest.raises(ValueError, match='4 rows, got 3'):
    three = jax.tree.map(lambda x: x[:3], _gradients())
    tx.update(three, tx.init(PARAMS), PARAMS)
