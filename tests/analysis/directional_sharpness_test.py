"""Curvature along directions, against dense Hessians and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import analysis

SHAPES = {'a': (2, 3), 'b': (3,), 'c': (3, 2)}


def _tree(seed, dtype=np.float64):
  random = np.random.default_rng(seed)
  return {
    k: jnp.asarray(random.normal(size=s), dtype) for k, s in SHAPES.items()
  }


def _flat(tree):
  return np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(tree)])


def _network_loss(params, batch):
  inputs, targets = batch
  hidden = jnp.tanh(inputs @ params['a'] + params['b'][None])
  return jnp.mean((hidden @ params['c'] - targets) ** 2)


def _batch(dtype=np.float64):
  random = np.random.default_rng(9)
  inputs, targets = random.normal(size=(2, 4, 2))
  return jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype)


def _quadratic(x, hessian):
  return x @ hessian @ x / 2


def _quadratic_sharpness():
  return jax.jit(analysis.directional_sharpness(_quadratic))


def _symmetric(size, seed=0):
  a = np.random.default_rng(seed).normal(size=(size, size))
  return a + a.T


# Sharpness.


def test_is_the_quotient_of_the_dense_hessian():
  with jax.enable_x64(True):
    params, batch = _tree(0), _batch()
    x, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(
      jax.hessian(lambda x: _network_loss(unravel(x), batch))(x)
    )
    directions = [_tree(seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *directions)
    sharpness = analysis.directional_sharpness(_network_loss)
    result = jax.jit(jax.vmap(sharpness, (None, None, 0)))(
      params, batch, stacked
    )
  assert result.dtype == np.float64
  for v, found in zip(map(_flat, directions), result):
    np.testing.assert_allclose(found, v @ hessian @ v / (v @ v), 1e-9)


def test_bounds_eigenvectors_scale_and_sign():
  a = _symmetric(7)
  values, vectors = np.linalg.eigh(a)
  with jax.enable_x64(True):
    sharpness = jax.jit(
      jax.vmap(
        analysis.directional_sharpness(_quadratic), in_axes=(None, None, 0)
      )
    )
    x = jnp.arange(7.0)
    at_vectors = sharpness(x, a, vectors.T)
    np.testing.assert_allclose(at_vectors, values, rtol=1e-9, atol=1e-12)
    v = np.random.default_rng(1).normal(size=(7, 7))
    found = np.asarray(sharpness(x, a, v))
    assert (found > values[0]).all() and (found < values[-1]).all()
    scales = 10.0 ** np.array([-150, -20, -3, 0, 3, 20, 150])
    np.testing.assert_allclose(sharpness(x, a, -scales[:, None] * v), found)


def test_single_precision_bears_any_length_and_zero_has_no_direction():
  a = jnp.asarray(_symmetric(4), jnp.float32)
  v = jnp.array([1.0, -2.0, 0.5, 3.0])
  sharpness = _quadratic_sharpness()
  expected = float(v @ a @ v / (v @ v))
  for scale in (1e-36, 1.0, 1e36):
    found = sharpness(jnp.ones(4), a, scale * v)
    np.testing.assert_allclose(found, expected, 1e-5)
  assert np.isnan(sharpness(jnp.ones(4), a, jnp.zeros(4)))


def test_half_precision_is_computed_in_single():
  params = _tree(0, jnp.bfloat16)
  direction = _tree(1, jnp.bfloat16)
  batch = _batch(np.float32)
  sharpness = jax.jit(analysis.directional_sharpness(_network_loss))
  found = sharpness(params, batch, direction)
  wide = optax.tree.cast((params, direction), jnp.float32)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, sharpness(wide[0], batch, wide[1]))


# What clipping does to it.


def _clipped(x, fraction):
  return byzjax.clip_coordinates(fraction=fraction).update(x, ())[0]


def test_clipping_lowers_it_where_the_gradient_is_where_curvature_is():
  with jax.enable_x64(True):
    curvature = jnp.where(jnp.arange(40) < 4, 100.0, 1.0)
    x = jnp.asarray(np.random.default_rng(2).normal(size=40))
    sharpness = _quadratic_sharpness()
    hessian = jnp.diag(curvature)
    gradient = hessian @ x
    found = [
      float(sharpness(x, hessian, _clipped(gradient, p)))
      for p in (0, 0.05, 0.1)
    ]
    # By the formula, and lower with each coordinate that is cut.
    for p, s in zip((0, 0.05, 0.1), found):
      v = np.asarray(_clipped(gradient, p))
      np.testing.assert_allclose(s, v**2 @ np.asarray(curvature) / (v @ v))
    assert found[0] > found[1] > 2 * found[2]
    # Where all coordinates curve alike, nothing changes.
    alike = 3 * jnp.eye(40)
    for p in (0, 0.5):
      v = _clipped(gradient, p)
      np.testing.assert_allclose(sharpness(x, alike, v), 3.0, 1e-12)


# The loss along a direction.


def test_loss_along_is_the_local_model_of_a_quadratic():
  a = _symmetric(6) + 8 * np.eye(6)
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(3).normal(size=6))
    v = jnp.asarray(np.random.default_rng(4).normal(size=6))
    hessian = jnp.asarray(a)
    s = float(_quadratic_sharpness()(x, hessian, v))
    slope = float(x @ hessian @ v) / float(jnp.linalg.norm(v))
    best = -slope / s
    distances = jnp.array([0.0, best / 2, best, 3.0])
    found = np.asarray(
      analysis.loss_along_direction(_quadratic)(x, hessian, v, distances)
    )
  d = np.asarray(distances)
  np.testing.assert_allclose(found, found[0] + slope * d + s * d**2 / 2, 1e-10)
  # No step along v gains more than this.
  np.testing.assert_allclose(found[0] - found[2], slope**2 / (2 * s), 1e-8)


def test_loss_along_a_tree_is_the_loss_at_those_points():
  with jax.enable_x64(True):
    params, batch, v = _tree(0), _batch(), _tree(1)
    norm = np.linalg.norm(_flat(v))
    found = jax.jit(analysis.loss_along_direction(_network_loss))(
      params, batch, v, jnp.array([0.5, -2.0])
    )
    for distance, loss in zip((0.5, -2.0), found):
      moved = jax.tree.map(lambda p, u, d=distance: p + d * u / norm, params, v)
      np.testing.assert_allclose(loss, _network_loss(moved, batch), 1e-12)
    still = analysis.loss_along_direction(_network_loss)(
      params, batch, jax.tree.map(jnp.zeros_like, v), jnp.array([1.0])
    )
    np.testing.assert_allclose(still[0], _network_loss(params, batch), 1e-14)


@pytest.mark.parametrize('shape', [(), (1,), (4, 3), (5,)])
@pytest.mark.parametrize(
  'make', [analysis.directional_sharpness, analysis.loss_along_direction]
)
def test_a_direction_of_another_shape_is_refused(make, shape):
  of = make(lambda x, batch: jnp.sum(x**2))
  more = (jnp.arange(2.0),) if make is analysis.loss_along_direction else ()
  with pytest.raises(ValueError, match=f'{make.__name__} needs direction'):
    of(jnp.ones(3), None, jnp.ones(shape), *more)
