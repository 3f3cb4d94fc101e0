import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byzjax import models

RNG = np.random.default_rng(0)


class WithBatchNorm(nnx.Module):
  def __init__(self):
    self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))


class WithDropout(nnx.Module):
  def __init__(self):
    self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))


def numpy_losses(mlp, x, labels):
  h = np.asarray(x, np.float64).reshape(len(x), -1)
  for i, layer in enumerate(mlp.layers):
    h = np.maximum(h, 0) if i else h
    h = h @ np.asarray(layer.kernel[...], np.float64)
    h = h + np.asarray(layer.bias[...], np.float64)
  log_sum = np.log(np.exp(h).sum(axis=1))
  return log_sum - h[np.arange(len(x)), labels], h.argmax(axis=1) == labels


def test_split_and_merge_give_the_same_model():
  model = models.make('mlp', (2, 2, 1), 3, seed=0)
  graphdef, params = models.split(model)
  hash(graphdef)
  x = jnp.ones((2, 2, 2, 1))
  np.testing.assert_array_equal(nnx.merge(graphdef, params)(x), model(x))


def test_split_refuses_batch_norm():
  with pytest.raises(
    ValueError,
    match='split: model must hold its whole state in nnx.Param, got BatchStat '
    'in WithBatchNorm.*leak from worker to worker',
  ):
    models.split(WithBatchNorm())


def test_split_refuses_dropout():
  with pytest.raises(ValueError, match='split: .* RngCount, RngKey in WithDr'):
    models.split(WithDropout())


def test_loss_equals_numpy_and_maps_over_workers():
  mlp = models.make('mlp', (3, 2, 1), 4, seed=1)
  graphdef, params = models.split(mlp)
  loss_fn = models.cross_entropy_loss(graphdef)
  images = RNG.normal(size=(3, 5, 3, 2, 1)).astype(np.float32)
  labels = RNG.integers(0, 4, (3, 5))
  batch = (jnp.asarray(images), jnp.asarray(labels))
  losses, grads = jax.jit(
    jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0))
  )(params, batch)
  expected = [numpy_losses(mlp, x, y)[0].mean() for x, y in zip(images, labels)]
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  for g, p in zip(jax.tree.leaves(grads), jax.tree.leaves(params)):
    assert g.shape == (3, *p.shape)


@pytest.mark.parametrize('batch_size', [1, 7, 23, 1000])
def test_evaluate_equals_numpy(batch_size):
  mlp = models.make('mlp', (3, 2, 1), 5, seed=1)
  graphdef, params = models.split(mlp)
  images = RNG.integers(0, 17, (23, 3, 2, 1)).astype(np.uint8)
  # Class 2 is missing, class 4 has one example.
  labels = np.array([0] * 12 + [1] * 6 + [3] * 4 + [4], np.int32)
  metrics = jax.jit(
    lambda params: models.evaluate(
      graphdef,
      params,
      jnp.asarray(images),
      jnp.asarray(labels),
      num_classes=5,
      scale=16.0,
      batch_size=batch_size,
    )
  )(params)
  losses, is_right = numpy_losses(mlp, images / 16.0, labels)
  per_class = [is_right[labels == k].mean() for k in (0, 1, 3, 4)]
  assert np.mean(per_class) != is_right.mean()
  np.testing.assert_allclose(metrics.loss, losses.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics.accuracy, is_right.mean(), rtol=1e-6)
  np.testing.assert_allclose(
    metrics.balanced_accuracy, np.mean(per_class), rtol=1e-6
  )
  for value in metrics:
    assert value.shape == () and value.dtype == jnp.float32


def test_losses_of_half_precision_are_float32():
  graphdef, params = models.split(models.make('mlp', (2, 2, 1), 3, seed=0))
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  images, labels = jnp.ones((2, 2, 2, 1), jnp.bfloat16), jnp.arange(2)
  logits = nnx.merge(graphdef, half)(images)
  assert logits.dtype == jnp.bfloat16
  loss = models.cross_entropy_loss(graphdef)(half, (images, labels))
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, -log_p[[0, 1], [0, 1]].mean(), rtol=1e-6)


def test_evaluate_maps_over_seeds():
  graphdef, _ = models.split(models.make('mlp', (2, 2, 1), 3, seed=0))
  images = jnp.asarray(RNG.normal(size=(10, 2, 2, 1)), jnp.float32)
  labels = jnp.arange(10) % 3

  @jax.jit
  def run(params):
    return models.evaluate(
      graphdef, params, images, labels, num_classes=3, scale=1.0, batch_size=4
    )

  params = [
    models.split(models.make('mlp', (2, 2, 1), 3, seed=s))[1] for s in range(3)
  ]
  mapped = jax.vmap(run)(jax.tree.map(lambda *x: jnp.stack(x), *params))
  single = jax.tree.map(lambda *x: jnp.stack(x), *map(run, params))
  for a, b in zip(mapped, single):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  assert np.ptp(mapped.loss) > 0


def test_evaluate_reports_a_diverged_model():
  graphdef, params = models.split(models.make('mlp', (2, 2, 1), 3, seed=0))
  params = jax.tree.map(lambda x: x * jnp.nan, params)
  images, labels = jnp.ones((5, 2, 2, 1)), jnp.arange(5) % 3
  metrics = models.evaluate(
    graphdef, params, images, labels, num_classes=3, scale=1.0, batch_size=4
  )
  assert jnp.isnan(metrics.loss)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'labels': jnp.zeros(3, int)}, r'images and labels must .*\(3,\)'),
    (
      {'images': jnp.zeros((0, 2, 2, 1)), 'labels': jnp.zeros(0, int)},
      r'images and labels must .* at least 1, got .*\(0,\)',
    ),
    ({'num_classes': 0}, 'num_classes must .* got num_classes=0'),
    ({'batch_size': 0}, 'batch_size must .* got batch_size=0'),
    ({'scale': 0.0}, 'scale must be positive, got scale=0.0'),
  ],
)
def test_evaluate_refuses_wrong_arguments(arguments, message):
  graphdef, params = models.split(models.make('mlp', (2, 2, 1), 3, seed=0))
  defaults = {
    'images': jnp.zeros((4, 2, 2, 1)),
    'labels': jnp.zeros(4, int),
    'num_classes': 3,
    'scale': 1.0,
  }
  with pytest.raises(ValueError, match=f'evaluate: {message}'):
    models.evaluate(graphdef, params, **{**defaults, **arguments})
