import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data
from byzjax.objectives import project, projection, random_sample_means

KEY = jax.random.key(5)


def test_each_is_the_mean_of_examples_of_one_worker():
  labels = np.arange(60) % 5
  partition = data.label_sorted(labels, 5)
  images = np.full((60, 2, 3, 1), 7, np.uint8) * labels[:, None, None, None]
  pseudo = random_sample_means(
    images.astype(np.uint8), partition, KEY, num_pseudo=500, scale=7.0
  )
  assert pseudo.shape == (500, 2, 3, 1) and pseudo.dtype == jnp.float32
  values, counts = np.unique(pseudo[:, 0, 0, 0], return_counts=True)
  np.testing.assert_allclose(values, np.arange(5), atol=1e-6)
  # Each worker is drawn 500 times with probability 1/5.
  assert np.abs(counts - 100).max() < 5 * np.sqrt(500 * 0.2 * 0.8)
  assert jnp.ptp(pseudo, axis=(1, 2, 3)).max() < 1e-6


def test_mean_and_variance_are_those_of_means_of_ten():
  images = np.random.default_rng(0).gamma(2.0, size=(300, 1, 1, 1))
  partition = data.iid(np.zeros(300, int), 1)
  pseudo = random_sample_means(
    images.astype(np.float32), partition, KEY, num_pseudo=4000
  )
  variance = images.var() / 10
  np.testing.assert_allclose(
    pseudo.mean(), images.mean(), atol=5 * np.sqrt(variance / 4000)
  )
  np.testing.assert_allclose(pseudo.var(), variance, rtol=0.15)


def test_examples_beyond_the_size_of_a_worker_are_never_drawn():
  images = jnp.array([1.0, 2.0, jnp.nan]).reshape(3, 1, 1, 1)
  partition = np.array([[0, 2, 2], [0, 1, 2]]), np.array([1, 2])
  pseudo = random_sample_means(images, partition, KEY, num_pseudo=200)
  assert jnp.isfinite(pseudo).all()
  assert pseudo.min() == 1 and pseudo.max() > 1.5


def test_one_key_gives_everybody_the_same():
  images = np.random.default_rng(1).normal(size=(50, 2, 2, 1))
  partition = data.iid(np.zeros(50, int), 2)
  first = random_sample_means(images, partition, KEY)
  again = jax.jit(lambda key: random_sample_means(images, partition, key))(KEY)
  other = random_sample_means(images, partition, jax.random.key(6))
  assert first.shape == (32, 2, 2, 1)
  np.testing.assert_allclose(first, again, rtol=1e-6, atol=1e-7)
  assert jnp.abs(first - other).max() > 0.1


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'num_pseudo': 0}, 'random_sample_means needs num_pseudo to be'),
    ({'num_averaged': 0}, 'num_averaged to be a Python int'),
    ({'scale': 0.0}, 'scale > 0, got 0.0'),
  ],
)
def test_refusals(arguments, message):
  partition = data.iid(np.zeros(3, int), 1)
  with pytest.raises(ValueError, match=message):
    random_sample_means(np.zeros((3, 1, 1, 1)), partition, KEY, **arguments)


def test_a_worker_without_examples_is_refused():
  partition = np.array([[0, 1], [2, 2]]), np.array([2, 0])
  with pytest.raises(ValueError, match=r'sizes of partition >= 1, got \[2 0\]'):
    random_sample_means(np.zeros((3, 1, 1, 1)), partition, KEY)


def test_the_projection_follows_its_formula():
  head = projection(KEY, num_features=6, width=5, out=4)
  head = jax.tree.map(lambda x: x + 0.1, head)
  z = np.random.default_rng(2).normal(size=(7, 6))
  h = z
  for i, layer in enumerate(head):
    h = np.maximum(h, 0) if i else h
    h = h @ np.asarray(layer['kernel'], float) + np.asarray(layer['bias'])
  np.testing.assert_allclose(
    project(head, z.astype(np.float32)), h, rtol=1e-4, atol=1e-5
  )


def test_the_projection_begins_with_unit_gain():
  head = projection(KEY, num_features=100)
  shapes = [layer['kernel'].shape for layer in head]
  assert shapes == [(100, 200), (200, 200), (200, 100)]
  for layer in head:
    gain = jnp.var(layer['kernel']) * layer['kernel'].shape[0]
    np.testing.assert_allclose(gain, 1, atol=0.05)
    assert not layer['bias'].any()


@pytest.mark.parametrize('name', ['num_features', 'width', 'out'])
def test_the_projection_refuses_empty_layers(name):
  with pytest.raises(ValueError, match=f'projection needs {name} to be'):
    projection(KEY, **({'num_features': 3} | {name: 0}))
