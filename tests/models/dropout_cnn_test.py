"""The network with dropout: its numbers are those of the published runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import byzjax
from byzjax import models

SHAPE = (8, 8, 1)


def network(image_shape=SHAPE, num_classes=10, **arguments):
  """The structure, and weights that need no compilation."""
  graphdef, shapes = models.split(
    nnx.eval_shape(
      lambda: models.DropoutCNN(
        image_shape, num_classes, **arguments, rngs=nnx.Rngs(0)
      )
    )
  )
  rng = np.random.default_rng(0)
  return graphdef, jax.tree.map(
    lambda p: rng.normal(scale=0.1, size=p.shape).astype(np.float32), shapes
  )


def normal(*shape):
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_has_the_sizes_of_the_published_network():
  _, params = network((28, 28, 1))
  assert sum(x.size for x in jax.tree.leaves(params)) == 1_199_882
  shapes = [params[name]['kernel'].shape for name in sorted(params)]
  assert shapes == [(3, 3, 1, 32), (3, 3, 32, 64), (9216, 128), (128, 10)]


def test_initial_weights_are_uniform_as_in_pytorch():
  params = models.split(models.make('dropout_cnn', SHAPE, 10, seed=0))[1]
  for layer in params.values():
    kernel = np.asarray(layer['kernel'][...])
    bound = kernel[..., 0].size ** -0.5
    for weights in (kernel, np.asarray(layer['bias'][...])):
      assert np.abs(weights).max() <= bound
      assert np.abs(weights).max() > 0.8 * bound
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.06)


@pytest.mark.parametrize('implementation', ['im2col', 'lax'])
def test_without_random_numbers_dropout_is_off(implementation):
  graphdef, params = network(implementation=implementation)
  x = normal(3, 8, 8, 1)

  def plain(params, x):
    for name in ('conv1', 'conv2'):
      x = jax.lax.conv_general_dilated(
        x,
        params[name]['kernel'][...],
        (1, 1),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x += params[name]['bias'][...][None, None, None]
      x = jax.nn.relu(x) if name == 'conv1' else nnx.max_pool(x, (2, 2), (2, 2))
    for name in ('dense1', 'dense2'):
      x = x.reshape(len(x), -1) @ params[name]['kernel'][...]
      x += params[name]['bias'][...][None]
      x = jax.nn.relu(x) if name == 'dense1' else x
    return x

  @jax.jit
  def both(params, x):
    return nnx.merge(graphdef, params)(x), plain(params, x)

  np.testing.assert_allclose(*both(params, x), rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def features(graphdef, params, x):
  """With dropout, and without."""
  model = nnx.merge(graphdef, params)
  return model.features(x, nnx.Rngs(dropout=1)), model.features(x)


def shares_left(graphdef, params, x):
  dropped, whole = features(graphdef, params, x)
  return np.asarray(dropped / whole)


def test_the_first_dropout_drops_a_quarter_of_the_channels():
  graphdef, params = network(dropout_rates=(0.25, 0.0))
  # Weights with which a feature is one number of one of 32 channels.
  kernel = np.zeros((4, 64, 4, 32), np.float32)
  for pixel in range(4):
    kernel[pixel, :32, pixel] = np.eye(32)
  params['dense1']['kernel'] = jnp.asarray(kernel.reshape(256, 128))
  params['dense1']['bias'] = jnp.zeros(128)
  params['conv2']['bias'] = jnp.full(64, 100.0)  # So that ReLU changes nothing.
  x = normal(200, *SHAPE)
  ratio = shares_left(graphdef, params, x).reshape(200, 4, 32)
  np.testing.assert_allclose(ratio, np.round(ratio * 0.75) / 0.75, rtol=1e-5)
  assert np.ptp(ratio, axis=1).max() < 1e-5  # All of a channel, or none.
  assert abs(np.mean(ratio[:, 0] == 0) - 0.25) < 0.02


def test_the_second_dropout_drops_half_of_the_features():
  graphdef, params = network(dropout_rates=(0.0, 0.5))
  params['dense1']['bias'] = jnp.full(128, 100.0)
  x = normal(100, *SHAPE)
  ratio = shares_left(graphdef, params, x)
  assert set(np.unique(np.round(ratio, 4))) == {0.0, 2.0}
  assert abs(np.mean(ratio == 0) - 0.5) < 0.02


def test_a_round_gives_each_worker_and_step_its_own_dropout():
  graphdef, params = network()
  assert models.has_dropout(graphdef)
  loss_fn = models.cross_entropy_loss(graphdef, needs_key=True)
  training = byzjax.robust_round(
    lambda *given: (loss_fn(*given),) * 2,
    needs_key=True,
    has_aux=True,
    num_workers=3,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.0),
  )
  one = normal(4, *SHAPE), np.arange(4)
  batch = jax.tree.map(lambda x: jnp.stack([x] * 3), one)
  step = jax.jit(training.step)
  state, first = step(training.init(params), batch, jax.random.key(0))
  _, second = step(state, batch, jax.random.key(0))
  _, again = step(training.init(params), batch, jax.random.key(0))
  losses = np.concatenate([first.aux, second.aux])
  assert np.isfinite(losses).all() and len(np.unique(losses)) == 6
  np.testing.assert_array_equal(again.aux, first.aux)


def test_the_loss_with_a_key_is_that_of_training():
  graphdef, params = network(dropout_rates=(0.5, 0.5))
  batch = normal(4, *SHAPE), np.arange(4)
  loss = jax.jit(models.cross_entropy_loss(graphdef))(params, batch)
  training = jax.jit(models.cross_entropy_loss(graphdef, needs_key=True))
  a, again, b = [training(params, batch, jax.random.key(i)) for i in (0, 0, 1)]
  assert a == again and len({float(loss), float(a), float(b)}) == 3


def test_other_models_have_no_dropout():
  for name in ('cnn', 'mlp', 'resnet20'):
    model = nnx.eval_shape(
      lambda name=name: models.make(name, (8, 8, 1), 5, seed=0)
    )
    assert not models.has_dropout(models.split(model)[0])


@pytest.mark.parametrize(
  'image_shape, num_classes, dropout_rates, message',
  [
    ((5, 8, 1), 2, (0.1, 0.1), r'image_shape must .* got image_shape=\(5, 8'),
    ((8, 8), 2, (0.1, 0.1), r'image_shape must be \(H, W, C\)'),
    ((8, 8, 1), 0, (0.1, 0.1), 'num_classes must .* got num_classes=0'),
    ((8, 8, 1), 2, (0.1, 1.0), r'dropout_rates must .* got .*\(0.1, 1.0\)'),
    ((8, 8, 1), 2, (0.1,), 'dropout_rates must be two numbers'),
  ],
)
def test_refuses_wrong_arguments(
  image_shape, num_classes, dropout_rates, message
):
  with pytest.raises(ValueError, match=f'DropoutCNN: {message}'):
    models.DropoutCNN(
      image_shape, num_classes, dropout_rates=dropout_rates, rngs=nnx.Rngs(0)
    )
