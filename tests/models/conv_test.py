import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def value_and_gradients(conv, x, weights):
  graphdef, params = nnx.split(conv, nnx.Param)

  @jax.jit
  def run(params, x):
    def loss(params, x):
      y = nnx.merge(graphdef, params)(x)
      return jnp.vdot(y, weights), y

    (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return y, nnx.to_pure_dict(grads[0]), grads[1]

  return run(params, x)


@pytest.mark.parametrize('implementation', ['im2col', 'lax'])
@pytest.mark.parametrize(
  'height, width, kernel_size, strides, padding',
  [
    (8, 8, (3, 3), 1, 'SAME'),
    (7, 6, (3, 3), 2, 'SAME'),
    (8, 5, (3, 3), (2, 3), 'SAME'),
    (6, 7, (2, 5), 2, 'VALID'),
    (5, 4, (1, 1), 2, 'SAME'),
    (5, 4, (5, 2), 1, 'VALID'),
  ],
)
def test_equals_nnx_conv(
  implementation, height, width, kernel_size, strides, padding
):
  ours = models.Conv(
    3,
    4,
    kernel_size,
    strides=strides,
    padding=padding,
    implementation=implementation,
    rngs=nnx.Rngs(0),
  )
  theirs = nnx.Conv(
    3, 4, kernel_size, strides, padding=padding, rngs=nnx.Rngs(0)
  )
  np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
  ours.bias[...] = theirs.bias[...] = normal(4)
  x = normal(2, height, width, 3)
  shape = jax.eval_shape(theirs, x).shape
  weights = normal(*shape)
  got = value_and_gradients(ours, x, weights)
  expected = value_and_gradients(theirs, x, weights)
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('implementation', ['im2col', 'lax'])
def test_the_batch_may_be_innermost(implementation):
  conv = models.Conv(3, 4, 3, implementation=implementation, rngs=nnx.Rngs(0))
  conv.bias[...] = normal(4)
  x = normal(2, 6, 7, 3)

  @jax.jit
  def run(x):
    inside = conv.chwb(jnp.swapaxes(x, 0, 3), models.max_pool)
    return jnp.swapaxes(inside, 0, 3), models.max_pool(conv(x))

  np.testing.assert_allclose(*run(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_vmap_equals_one_after_another(dtype):
  conv = models.Conv(2, 3, 3, implementation='im2col', rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(conv, nnx.Param)
  params = jax.tree.map(lambda p: p.astype(dtype), params)
  x = normal(3, 2, 5, 4, 2).astype(dtype).at[1, 0, 0, 0].set(jnp.nan)

  def gradient(x):
    def loss(params):
      y = nnx.merge(graphdef, params)(x)
      return (y[1] ** 2).sum(), y

    return jax.grad(loss, has_aux=True)(params)

  at_once, in_turn = jax.jit(
    lambda x: (jax.vmap(gradient)(x), jax.lax.map(gradient, x))
  )(x)
  # A number that is not finite stays in its example.
  isnan = jnp.isnan(at_once[1]).any((2, 3, 4))
  assert isnan.tolist() == [[False, False], [True, False], [False, False]]
  for a, b in zip(jax.tree.leaves(at_once), jax.tree.leaves(in_turn)):
    assert a.dtype == b.dtype == dtype
    tolerance = 1e-5 if dtype == 'float32' else 0.05
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_what_is_for_vmap_is_not_in_a_program_without_it():
  conv = models.Conv(2, 3, 3, implementation='im2col', rngs=nnx.Rngs(0))
  x = jnp.zeros((2, 5, 4, 2))
  compiled = jax.jit(conv.chwb).lower(x).compile().as_text()
  assert 'dot(' in compiled or 'dot_general' in compiled
  assert 'select(' not in compiled


def test_implementation_follows_the_backend(monkeypatch):
  assert models.Conv(1, 1, 3, rngs=nnx.Rngs(0)).implementation == (
    'im2col' if jax.default_backend() == 'cpu' else 'lax'
  )
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert models.Conv(1, 1, 3, rngs=nnx.Rngs(0)).implementation == 'lax'


@pytest.mark.parametrize('implementation', ['im2col', 'lax'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'uint8'])
def test_inputs_of_another_dtype_are_promoted(implementation, dtype):
  conv = models.Conv(2, 3, 3, implementation=implementation, rngs=nnx.Rngs(0))
  y = jax.eval_shape(conv, jnp.ones((1, 4, 4, 2), dtype))
  assert (y.shape, y.dtype) == ((1, 4, 4, 3), jnp.float32)


def test_without_bias():
  conv = models.Conv(2, 3, 3, use_bias=False, rngs=nnx.Rngs(0))
  assert conv.bias is None
  assert len(jax.tree.leaves(models.split(conv)[1])) == 1
  assert not conv(jnp.zeros((1, 4, 4, 2))).any()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'in_features': 0}, 'in_features must be at least 1, got in_features=0'),
    ({'out_features': -1}, 'out_features must be at least 1'),
    ({'kernel_size': (3,)}, r'kernel_size must .* got kernel_size=\(3,\)'),
    ({'strides': 0}, r'strides must be a positive integer .* strides=0'),
    ({'padding': 'FULL'}, r"padding must be one of .* got padding='FULL'"),
    (
      {'implementation': 'fft'},
      r"implementation must be None or one of \('im2col', 'lax'\), got "
      "implementation='fft'",
    ),
  ],
)
def test_refuses_wrong_arguments(arguments, message):
  defaults = {'in_features': 1, 'out_features': 1, 'kernel_size': 3}
  with pytest.raises(ValueError, match=f'Conv: {message}'):
    models.Conv(**{**defaults, **arguments}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('shape', [(4, 4, 2), (1, 4, 4, 3)])
def test_refuses_a_wrong_input(shape):
  conv = models.Conv(2, 3, 3, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r'Conv: x must have shape \[B, H, W, 2'):
    conv(jnp.zeros(shape))
  with pytest.raises(ValueError, match=r'Conv: x must have shape \[2, H, W, B'):
    conv.chwb(jnp.zeros(shape[::-1]))


@pytest.mark.parametrize('implementation', ['im2col', 'lax'])
def test_refuses_an_image_smaller_than_a_kernel_without_padding(implementation):
  conv = models.Conv(
    1,
    1,
    (3, 2),
    padding='VALID',
    implementation=implementation,
    rngs=nnx.Rngs(0),
  )
  with pytest.raises(ValueError, match=r'at least as large as .*\(3, 2\)'):
    conv(jnp.zeros((1, 2, 5, 1)))


@pytest.mark.parametrize('height, width', [(4, 6), (5, 7), (2, 3)])
def test_max_pool_equals_nnx(height, width):
  x = normal(3, height, width, 2)
  weights = normal(3, height // 2, width // 2, 2)

  @jax.jit
  def run(x):
    ours, to_ours = jax.vjp(models.max_pool, x)
    theirs, to_theirs = jax.vjp(lambda x: nnx.max_pool(x, (2, 2), (2, 2)), x)
    return (ours, to_ours(weights)), (theirs, to_theirs(weights))

  jax.tree.map(np.testing.assert_array_equal, *run(x))


def test_max_pool_shares_the_gradient_of_ties_and_spreads_nan():
  ties = jnp.ones((1, 2, 2, 1))
  gradient = jax.grad(lambda x: models.max_pool(x).sum())(ties)
  np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))
  assert jnp.isnan(models.max_pool(ties.at[0, 1, 0, 0].set(jnp.nan))).all()


@pytest.mark.parametrize('shape', [(4, 4, 1), (1, 1, 4, 1)])
def test_max_pool_refuses_a_wrong_input(shape):
  with pytest.raises(ValueError, match='max_pool: x must have shape .* got'):
    models.max_pool(jnp.zeros(shape))
