import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]


def num_params(model):
  return sum(x.size for x in jax.tree.leaves(models.split(model)[1]))


def abstract(name, image_shape, num_classes=10):
  return nnx.eval_shape(
    lambda: models.make(name, image_shape, num_classes, seed=0)
  )


@pytest.mark.parametrize(
  'make',
  [
    lambda: models.make('cnn', (8, 8, 1), 10, seed=0),
    lambda: models.make('dropout_cnn', (8, 8, 1), 10, seed=0),
    lambda: models.make('mlp', (8, 8, 1), 10, seed=0),
    lambda: models.make('resnet20', (8, 8, 1), 10, seed=0),
    lambda: models.RNN((8, 4, 10), rngs=nnx.Rngs(0)),
    lambda: models.Transformer(
      9, num_layers=1, width=4, num_heads=1, length=5, rngs=nnx.Rngs(0)
    ),
  ],
)
def test_weights_are_float32_with_x64_too(make):
  with jax.enable_x64(True):
    params = models.split(nnx.eval_shape(make))[1]
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'float32'}


@pytest.mark.parametrize('name', ['cnn', 'dropout_cnn', 'mlp', 'resnet20'])
@pytest.mark.parametrize('image_shape', SHAPES)
def test_maps_images_to_logits(name, image_shape):
  graphdef, params = models.split(abstract(name, image_shape, 7))
  logits = jax.eval_shape(
    lambda params, x: nnx.merge(graphdef, params)(x),
    params,
    jax.ShapeDtypeStruct((5, *image_shape), jnp.float32),
  )
  assert logits.shape == (5, 7)
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize('image_shape', SHAPES)
def test_numbers_of_parameters(image_shape):
  height, width, channels = image_shape
  size = math.prod(image_shape)
  assert num_params(abstract('mlp', image_shape)) == 33 * 10 + (size + 1) * 32
  stage1 = (9 * channels + 1) * 16
  stage2 = (9 * 16 + 1) * 32
  flat = (height // 4) * (width // 4) * 32
  assert num_params(abstract('cnn', image_shape)) == (
    stage1 + stage2 + (flat + 1) * 64 + 65 * 10
  )


def test_resnet20_has_the_parameters_of_the_paper():
  _, params = models.split(abstract('resnet20', (32, 32, 3)))
  flat = nnx.to_flat_state(params)
  norms = sum(x.size for path, x in flat if any('norm' in str(p) for p in path))
  kernels = [x for path, x in flat if path[-1] == 'kernel']
  # 0.27M in the paper: 268,346 in 20 layers, and a scale and an offset for each
  # of the 688 normalised channels.
  assert len(kernels) == 20
  assert norms == 2 * 688
  assert sum(x.size for _, x in flat) - norms == 268_346


def test_mlp_follows_its_formula():
  mlp = models.MLP((6, 4, 3, 2), rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
  h = x.reshape(5, 6).astype(np.float64)
  for i, layer in enumerate(mlp.layers):
    assert not layer.bias[...].any()
    h = np.maximum(h, 0) if i else h
    h = h @ np.asarray(layer.kernel[...], np.float64)
  np.testing.assert_allclose(jax.jit(mlp)(x), h, rtol=1e-5, atol=1e-6)


def numpy_weights(model):
  """The model split, with weights that need no compilation."""
  graphdef, params = models.split(nnx.eval_shape(model))
  rng = np.random.default_rng(0)
  return graphdef, jax.tree.map(
    lambda p: rng.normal(scale=0.3, size=p.shape).astype(np.float32), params
  )


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, x):
  return nnx.merge(graphdef, params)(x)


def test_cnn_implementations_agree():
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  im2col, lax = [
    forward(
      *numpy_weights(
        lambda i=i: models.CNN((8, 8, 1), 4, implementation=i, rngs=nnx.Rngs(0))
      ),
      x,
    )
    for i in ('im2col', 'lax')
  ]
  np.testing.assert_allclose(im2col, lax, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('activation', [jax.nn.relu, jnp.sin])
def test_cnn_follows_its_formula(activation):
  # Also where pooling before the activation would give something else.
  graphdef, params = numpy_weights(
    lambda: models.CNN((9, 8, 2), 4, activation=activation, rngs=nnx.Rngs(0))
  )
  x = np.random.default_rng(0).normal(size=(3, 9, 8, 2)).astype(np.float32)

  @jax.jit
  def both(params, x):
    cnn = nnx.merge(graphdef, params)
    h = models.max_pool(activation(cnn.conv1(x)))
    h = models.max_pool(activation(cnn.conv2(h)))
    h = activation(cnn.dense1(h.reshape(3, -1)))
    return cnn(x), cnn.dense2(h)

  np.testing.assert_allclose(*both(params, x), rtol=1e-4, atol=1e-5)


def resnet_by_flax(model, x):
  """The formula of ResNet-20, with the channels last."""
  x = jax.nn.relu(model.norm(model.conv(x)))
  for block in model.blocks:
    y = jax.nn.relu(block.norm1(block.conv1(x)))
    y = block.norm2(block.conv2(y))
    x = x[:, :: block.strides, :: block.strides]
    new = [(0, y.shape[-1] - x.shape[-1])]
    x = jax.nn.relu(jnp.pad(x, [(0, 0)] * 3 + new) + y)
  return model.dense(x.mean((1, 2)))


def test_resnet20_follows_its_formula_for_each_example_by_itself():
  graphdef, weights = numpy_weights(
    # The implementation that compiles faster.
    lambda: models.ResNet20(
      (6, 7, 1), 3, implementation='lax', rngs=nnx.Rngs(0)
    )
  )
  x = np.random.default_rng(0).normal(size=(2, 6, 7, 1)).astype(np.float32)
  changed_x = np.stack([x[0], 100 * x[1] ** 2])

  @jax.jit
  def both(params, x):
    model = nnx.merge(graphdef, params)
    return model(x), resnet_by_flax(model, x)

  logits, expected = both(weights, x)
  changed, _ = both(weights, changed_x)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(changed[0], logits[0])
  assert jnp.abs(changed[1] - logits[1]).max() > 1e-3


def test_make_is_a_function_of_the_seed():
  def params(seed):
    return models.split(models.make('mlp', (8, 8, 1), 3, seed=seed))[1]

  first, again, other = map(jax.tree.leaves, map(params, (1, 1, 2)))
  for a, b in zip(first, again):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(first[-1], other[-1])


def test_make_refuses_an_unknown_name():
  with pytest.raises(
    ValueError,
    match='make: name must be one of cnn, dropout_cnn, mlp, resnet20, got '
    "name='vgg'",
  ):
    models.make('vgg', (8, 8, 1), 10, seed=0)


@pytest.mark.parametrize('sizes', [(4,), (4, 0, 2)])
def test_mlp_refuses_wrong_sizes(sizes):
  with pytest.raises(ValueError, match='MLP: sizes must hold at least two'):
    models.MLP(sizes, rngs=nnx.Rngs(0))


def test_mlp_refuses_another_number_of_inputs():
  mlp = models.MLP((4, 2), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r'MLP: x must have 4 .*\(3, 5\)'):
    mlp(jnp.zeros((3, 5)))


@pytest.mark.parametrize(
  'model, image_shape, num_classes, message',
  [
    (models.CNN, (3, 8, 1), 2, r'image_shape must .* got image_shape=\(3, 8'),
    (models.CNN, (8, 8), 2, r'image_shape must be \(H, W, C\)'),
    (models.CNN, (8, 8, 1), 0, 'num_classes must .* got num_classes=0'),
    (models.ResNet20, (8, 8, 0), 2, r'image_shape must be \(H, W, C\)'),
    (models.ResNet20, (8, 8, 1), 0, 'num_classes must .* got num_classes=0'),
  ],
)
def test_refuses_wrong_shapes(model, image_shape, num_classes, message):
  with pytest.raises(ValueError, match=f'{model.__name__}: {message}'):
    model(image_shape, num_classes, rngs=nnx.Rngs(0))
