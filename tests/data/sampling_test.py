import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 97).astype(np.int32)
IMAGES = RNG.integers(0, 256, (97, 3, 2, 1)).astype(np.uint8)
# The position of an example is written into its first two pixels.
IMAGES[:, 0, 0, 0] = np.arange(97)
KEY = jax.random.key(7)
UNEVEN = data.dirichlet_by_class(LABELS, 8, alpha=1.0)


@functools.partial(jax.jit, static_argnames='batch_size')
def sample(partition, key, batch_size=16):
  return data.sample_batch(IMAGES, LABELS, partition, key, batch_size)


def chosen(images):
  return np.asarray(images[..., 0, 0, 0]).astype(int)


def test_shapes_dtypes_and_scale():
  images, labels = data.sample_batch(
    IMAGES, LABELS, UNEVEN, KEY, 5, scale=255.0
  )
  assert images.shape == (8, 5, 3, 2, 1) and images.dtype == jnp.float32
  assert labels.shape == (8, 5) and labels.dtype == jnp.int32
  picked = np.rint(chosen(images * 255)).astype(int)
  expected = IMAGES[picked].astype(np.float32) / 255
  np.testing.assert_allclose(images, expected, rtol=1e-6)
  np.testing.assert_array_equal(labels, LABELS[picked])


def test_uniform_over_the_examples_of_the_worker():
  images, labels = sample(UNEVEN, KEY, 4000)
  picked = chosen(images)
  np.testing.assert_array_equal(labels, LABELS[picked])
  assert np.ptp(UNEVEN.sizes) > 3
  for row, indices, size in zip(picked, UNEVEN.indices, UNEVEN.sizes):
    counts = np.bincount(row, minlength=97)
    mine = np.zeros(97, bool)
    mine[indices[:size]] = True
    assert counts[~mine].sum() == 0
    # Five standard deviations of a binomial count.
    bound = 5 * np.sqrt(4000 / size) + 1e-9
    assert np.all(np.abs(counts[mine] - 4000 / size) < bound)


def test_a_worker_draws_the_same_among_four_and_among_eight():
  few = data.Partition(UNEVEN.indices[:4], UNEVEN.sizes[:4])
  images, labels = sample(UNEVEN, KEY)
  few_images, few_labels = sample(few, KEY)
  np.testing.assert_array_equal(few_images[3], images[3])
  np.testing.assert_array_equal(few_labels, labels[:4])


def test_workers_draw_independently():
  shared = data.Partition(np.tile(np.arange(97), (3, 1)), np.full(3, 97))
  picked = chosen(sample(shared, KEY)[0])
  assert len({tuple(row) for row in picked}) == 3


def test_same_in_vmap_and_scan():
  keys = jax.random.split(KEY, 3)
  single = np.stack([sample(UNEVEN, key)[0] for key in keys])
  mapped, _ = jax.vmap(sample, (None, 0))(UNEVEN, keys)
  np.testing.assert_array_equal(mapped, single)
  _, (scanned, _) = jax.lax.scan(
    lambda carry, key: (carry, sample(UNEVEN, key)), None, keys
  )
  np.testing.assert_array_equal(scanned, single)
  assert len(np.unique(single, axis=0)) == 3


@pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')
@pytest.mark.parametrize(
  'axis_type', [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]
)
def test_same_when_workers_are_spread_over_devices(axis_type):
  mesh = jax.make_mesh((8,), ('workers',), axis_types=(axis_type,))
  over_workers = jax.NamedSharding(mesh, jax.P('workers'))
  spread = jax.tree.map(lambda x: jax.device_put(x, over_workers), UNEVEN)
  images, labels = sample(spread, KEY)
  assert images.sharding.mesh.axis_types == mesh.axis_types
  assert images.sharding.is_equivalent_to(over_workers, images.ndim)
  expected_images, expected_labels = sample(UNEVEN, KEY)
  np.testing.assert_array_equal(images, expected_images)
  np.testing.assert_array_equal(labels, expected_labels)


def test_refuses_an_empty_batch():
  with pytest.raises(
    ValueError, match='sample_batch needs batch_size to be .* at least 1, got 0'
  ):
    data.sample_batch(IMAGES, LABELS, UNEVEN, KEY, 0)


def test_refuses_a_wrong_scale():
  with pytest.raises(ValueError, match='sample_batch needs scale > 0, got 0.0'):
    data.sample_batch(IMAGES, LABELS, UNEVEN, KEY, 4, scale=0.0)


def test_refuses_images_without_labels():
  with pytest.raises(
    ValueError, match=r'sample_batch: images and labels must .*\(96,\)'
  ):
    data.sample_batch(IMAGES, LABELS[1:], UNEVEN, KEY, 4)
