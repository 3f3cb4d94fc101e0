import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byzjax.objectives import mixup, proximal
from tests.objectives.local_sgd import context


def _logits_loss(w, batch):
  logits = batch[0] @ w
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch[1]
  ).mean()


def test_it_is_the_cross_entropy_of_blended_labels():
  seen = []

  def spy(w, batch):
    seen.append(batch)
    return _logits_loss(w, batch)

  random = np.random.default_rng(0)
  w = jnp.asarray(random.normal(size=(4, 6)), jnp.float32)
  x = jnp.asarray(random.normal(size=(6, 4)), jnp.float32)
  y = jnp.arange(6)  # labels tell rows apart
  value = mixup(spy, alpha=2.0).loss(w, (x, y), context(None, seed=1))
  (mixed, first), (again, order) = seen
  np.testing.assert_array_equal(first, y)
  np.testing.assert_array_equal(mixed, again)
  assert sorted(order.tolist()) == list(range(6)) and (order != y).any()
  moved = int(jnp.argmax(order != y))
  share = (mixed - x[order])[moved] / (x - x[order])[moved]
  np.testing.assert_allclose(share, share[0], rtol=1e-3)
  t = share[0]
  assert 0.05 < t < 0.95
  np.testing.assert_allclose(mixed, t * x + (1 - t) * x[order], atol=1e-5)
  soft = t * jax.nn.one_hot(y, 6) + (1 - t) * jax.nn.one_hot(order, 6)
  expected = optax.softmax_cross_entropy(mixed @ w, soft).mean()
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_loss_that_is_linear_in_a_row_stays_as_it_is():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
  inner = proximal(lambda w, batch: jnp.mean(batch[0] @ w), mu=2.0)
  w, anchor = jnp.ones(3), jnp.zeros(3)
  for seed in range(3):
    arguments = w, (x, jnp.arange(5)), context(anchor, seed)
    found = jax.value_and_grad(mixup(inner).loss)(*arguments)
    expected = jax.value_and_grad(inner.loss)(*arguments)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
    )


def test_shares_follow_the_beta_distribution():
  objective = mixup(lambda w, batch: batch[0][0], alpha=0.2)
  batch = jnp.array([0.0, 1.0]), jnp.arange(2)

  @jax.jit
  @jax.vmap
  def run(seed):
    return objective.loss(0.0, batch, context(None, seed))

  values = np.asarray(run(jnp.arange(4000)))
  # Row 0 stays 0 unless it is paired with row 1.
  paired = values[values > 0]
  assert abs(len(paired) / 4000 - 0.5) < 0.1
  assert abs(paired.mean() - 0.5) < 0.05
  np.testing.assert_allclose(paired.var(), 1 / (4 * 1.4), rtol=0.05)


def test_refusals():
  with pytest.raises(ValueError, match='mixup needs alpha > 0, got 0'):
    mixup(_logits_loss, alpha=0)
  batch = jnp.array([[10], [200]], jnp.uint8), jnp.arange(2)
  with pytest.raises(ValueError, match='mixup needs inputs .* got uint8'):
    mixup(_logits_loss).loss(jnp.ones((1, 2)), batch, context(None))
