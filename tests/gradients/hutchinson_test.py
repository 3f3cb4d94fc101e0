"""Estimates of the diagonal of a Hessian."""

import jax
import jax.numpy as jnp
import numpy as np

import byzjax

KEY = jax.random.key(3)


def _symmetric(size, seed=0):
  a = np.random.default_rng(seed).normal(size=(size, size))
  return jnp.asarray(a + a.T, jnp.float32)


def _quadratic(w, a):
  return w @ a @ w / 2


def test_diagonal_hessians_are_exact_for_every_draw():
  params = {'a': jnp.linspace(-1, 1, 6).reshape(2, 3), 'b': jnp.ones(40)}

  def loss_fn(w, scale):
    return scale * jnp.sum(jnp.cos(w['a'])) + jnp.sum(w['b'] ** 3)

  estimate = jax.jit(byzjax.hutchinson_diagonal(loss_fn))
  for seed in range(3):
    result = estimate(params, 2.0, jax.random.key(seed))
    np.testing.assert_allclose(result['a'], -2 * np.cos(params['a']), 1e-5)
    np.testing.assert_allclose(result['b'], np.full(40, 6.0), 1e-6)


def test_mean_and_variance_over_draws():
  size, num_draws = 5, 20_000
  a = _symmetric(size)
  estimate = byzjax.hutchinson_diagonal(_quadratic)
  keys = jax.random.split(KEY, num_draws)
  draws = jax.jit(jax.vmap(estimate, (None, None, 0)))(jnp.arange(5.0), a, keys)
  variance = np.sum((a - np.diag(np.diag(a))) ** 2, axis=1)
  error = np.abs(draws.mean(axis=0) - np.diag(a))
  assert (error < 5 * np.sqrt(variance / num_draws)).all()
  np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.1)


def test_draws_do_not_depend_on_where_leaves_end():
  a = _symmetric(70)
  w = jnp.linspace(-1, 1, 70)
  whole = byzjax.hutchinson_diagonal(_quadratic)(w, a, KEY)

  def split_loss(w, a):
    return _quadratic(jnp.concatenate([w['x'].ravel(), w['y']]), a)

  split = byzjax.hutchinson_diagonal(split_loss)(
    {'x': w[:40].reshape(8, 5), 'y': w[40:]}, a, KEY
  )
  joined = jnp.concatenate([split['x'].ravel(), split['y']])
  np.testing.assert_allclose(joined, whole, rtol=1e-6, atol=1e-5)
  other = byzjax.hutchinson_diagonal(_quadratic)(w, a, jax.random.key(4))
  assert np.abs(other - whole).max() > 0.1


def test_dtypes_are_kept():
  def loss_fn(w, batch):
    return jnp.sum(w['half'].astype(jnp.float32) ** 2) + jnp.sum(w['x'] ** 4)

  with jax.enable_x64(True):
    params = {'half': jnp.ones(3, jnp.bfloat16), 'x': jnp.ones(2, jnp.float64)}
    result = byzjax.hutchinson_diagonal(loss_fn)(params, None, KEY)
  assert result['half'].dtype == jnp.bfloat16
  assert result['x'].dtype == np.float64
  np.testing.assert_array_equal(np.float32(result['half']), np.full(3, 2.0))
  np.testing.assert_allclose(result['x'], np.full(2, 12.0), 1e-14)
