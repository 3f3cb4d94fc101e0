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


def test_refuses_labels_that_would_be_cut():
  with pytest.raises(ValueError, match='labels must be integers, got float64'):
    data.sample_batch(IMAGES, LABELS / 2, UNEVEN, KEY, 4)


def numbers_of_steps(partition, steps, batch_size, **options):
  """What every worker is given, by its place: int [steps, n, B]."""

  @jax.jit
  def of_step(step):
    return data.shuffled_batch(
      IMAGES, LABELS, partition, KEY, batch_size, step=step, **options
    )

  pairs = [of_step(step) for step in range(steps)]
  numbers = np.stack([chosen(images) for images, _ in pairs])
  np.testing.assert_array_equal(
    np.stack([y for _, y in pairs]), LABELS[numbers]
  )
  return numbers


def test_a_pass_sees_every_example_once_and_the_next_in_another_order():
  partition = data.label_sorted(LABELS, 4)  # 25 examples or 24.
  numbers = numbers_of_steps(partition, 10, 5)
  for i, size in enumerate(partition.sizes):
    mine = sorted(partition.indices[i, :size])
    first, second = numbers[:5, i].reshape(-1), numbers[5:, i].reshape(-1)
    # 24 examples in batches of 5: the last place repeats the first.
    assert sorted(first[:size]) == sorted(second[:size]) == mine
    assert (first[size:] == first[: 25 - size]).all()
    assert list(first) != list(second)


def test_a_pass_can_end_before_all_was_seen():
  partition = data.label_sorted(LABELS, 4)
  numbers = numbers_of_steps(partition, 4, 5, batches_per_pass=2)
  for run in (numbers[:2], numbers[2:]):
    for i in range(4):
      assert len({*run[:, i].reshape(-1)}) == 10
  assert not np.array_equal(numbers[:2], numbers[2:])


def test_a_worker_with_fewer_examples_than_a_batch_repeats_them():
  one = data.Partition(np.array([[3, 8, 3]]), np.array([2]))
  numbers = numbers_of_steps(one, 3, 5)
  assert [sorted({*run[0]}) for run in numbers] == [[3, 8]] * 3
  assert all((run[0, 2:4] == run[0, :2]).all() for run in numbers)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'step': -1}, 'step'),
    ({'step': 0.5}, 'step'),
    ({'batches_per_pass': 0}, 'batches_per_pass'),
  ],
)
def test_refuses_what_is_no_step_and_no_pass(change, message):
  arguments = {'step': 0, **change}
  with pytest.raises(ValueError, match=f'shuffled_batch needs {message}'):
    data.shuffled_batch(IMAGES, LABELS, UNEVEN, KEY, 4, **arguments)
