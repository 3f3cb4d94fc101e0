"""The recurrent network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models


def rnn(*sizes, dtype=np.float32):
  graphdef, shapes = models.split(
    nnx.eval_shape(lambda: models.RNN(sizes, rngs=nnx.Rngs(0)))
  )
  params = jax.tree.map(
    lambda p: np.random.default_rng(p.size).normal(size=p.shape).astype(dtype),
    shapes,
  )
  return graphdef, params


def test_agrees_with_loops():
  graphdef, params = rnn(3, 4, 5, 2, dtype=np.float64)
  x = np.random.default_rng(1).normal(size=(2, 6, 3))
  with jax.enable_x64(True):
    logits = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x))(params, x)
  for example, found in zip(x, logits):
    inputs = example
    for i in range(2):
      w, u, b = (
        params['layers'][i][name][...]
        for name in ('kernel', 'recurrent_kernel', 'bias')
      )
      h, states = np.zeros(len(b)), []
      for x_t in inputs:
        h = np.tanh(x_t @ w + h @ u + b)
        states.append(h)
      inputs = states
    dense = params['dense']
    expected = inputs[-1] @ dense['kernel'][...] + dense['bias'][...]
    np.testing.assert_allclose(found, expected, 1e-12)


def test_images_are_sequences_of_rows():
  graphdef, params = rnn(8, 4, 3)
  model = nnx.merge(graphdef, params)
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 2)).astype(np.float32)
  run = jax.jit(model.__call__)
  np.testing.assert_array_equal(run(x), run(x.reshape(2, 5, 8)))


def test_states_have_the_dtype_of_the_weights():
  graphdef, params = rnn(3, 4, 2)
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  x = np.ones((2, 6, 3), np.float32)
  logits = jax.eval_shape(lambda p, x: nnx.merge(graphdef, p)(x), params, x)
  assert (logits.shape, logits.dtype) == ((2, 2), jnp.bfloat16)


def test_tokens_are_rows_of_the_identity():
  graphdef, params = rnn(7, 4, 3)
  model = nnx.merge(graphdef, params)
  tokens = np.random.default_rng(0).integers(0, 7, (2, 5), np.int32)
  one_hot = np.eye(7, dtype=np.float32)[tokens]
  run = jax.jit(model.__call__)
  np.testing.assert_array_equal(run(tokens), run(one_hot))


def test_initial_weights():
  def make():
    return models.split(models.RNN((300, 64, 10), rngs=nnx.Rngs(0)))[1]

  params = jax.jit(make)()
  layer = params['layers'][0]
  u = np.asarray(layer['recurrent_kernel'][...])
  np.testing.assert_allclose(u @ u.T, np.eye(64), atol=1e-5)
  assert abs(layer['kernel'][...].std() * np.sqrt(300) - 1) < 0.05
  assert not layer['bias'][...].any()


def test_errors():
  for sizes in [(3, 4), (3, 0, 2)]:
    with pytest.raises(ValueError, match='at least three sizes'):
      models.RNN(sizes, rngs=nnx.Rngs(0))
  graphdef, params = rnn(3, 4, 2)
  model = nnx.merge(graphdef, params)
  with pytest.raises(ValueError, match='x must have 3 numbers per step'):
    model(jnp.ones((2, 5, 4)))
  with pytest.raises(ValueError, match=r'integers \[B, T\], got int32\[2\]'):
    model(jnp.ones(2, jnp.int32))
  with pytest.raises(ValueError, match=r'got int32\[2, 5, 3\]'):
    model(jnp.ones((2, 5, 3), jnp.int32))
