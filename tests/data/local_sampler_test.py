"""Batches that a worker takes from its own examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data

KEY = jax.random.key(3)
N = 40
# The position of an example is its label, and every pixel of its image.
LABELS = np.arange(N)
IMAGES = np.broadcast_to(LABELS[:, None, None, None], (N, 2, 2, 1))
IMAGES = IMAGES.astype(np.uint8)
PARTITION = data.Partition(
  np.stack(
    [
      np.resize(np.arange(start, start + size), 12)
      for start, size in ((0, 12), (12, 5), (20, 9), (30, 1))
    ]
  ).astype(np.int32),
  np.array([12, 5, 9, 1], np.int32),
)


def run(sampler, num_steps, partition=PARTITION, key=KEY, params=None):
  """Labels [n, num_steps, B] of one round, and its images."""
  params = jnp.zeros(2) if params is None else params

  def of_worker(data_i, key):
    plan = sampler.start(sampler.init(params), params, data_i, key)

    def step(plan, t):
      batch, plan = sampler.draw(plan, data_i, t, jax.random.fold_in(key, t))
      return plan, batch

    return jax.lax.scan(step, plan, jnp.arange(num_steps))[1]

  keys = jax.vmap(jax.random.fold_in, (None, 0))(
    key, jnp.arange(len(partition.sizes))
  )
  mapped = jax.jit(jax.vmap(of_worker))
  images, labels = mapped(data.Partition(*map(jnp.asarray, partition)), keys)
  return np.asarray(images), np.asarray(labels)


def test_draws_are_those_of_sample_batch():
  sampler = data.local_sampler(IMAGES, LABELS, batch_size=6, scale=2.0)
  params = jnp.zeros(2)
  for worker in range(4):
    mine = data.Partition(PARTITION.indices[worker], PARTITION.sizes[worker])
    plan = sampler.start(sampler.init(params), params, mine, KEY)
    (images, labels), _ = sampler.draw(
      plan, mine, jnp.array(0), jax.random.fold_in(KEY, worker)
    )
    expected = data.sample_batch(IMAGES, LABELS, PARTITION, KEY, 6, scale=2.0)
    np.testing.assert_array_equal(images, expected[0][worker])
    np.testing.assert_array_equal(labels, expected[1][worker])
    assert images.dtype == jnp.float32 and labels.dtype == jnp.int32


@pytest.mark.parametrize('shuffled', [False, True])
def test_images_belong_to_labels_and_are_the_workers_own(shuffled):
  sampler = data.local_sampler(
    IMAGES, LABELS, batch_size=4, scale=2.0, shuffled=shuffled
  )
  images, labels = run(sampler, 20)
  assert images.shape == (4, 20, 4, 2, 2, 1) and labels.shape == (4, 20, 4)
  pixels = np.broadcast_to(labels[..., None, None, None] / 2, images.shape)
  np.testing.assert_array_equal(images, pixels)
  for row, size, seen in zip(PARTITION.indices, PARTITION.sizes, labels):
    np.testing.assert_array_equal(np.unique(seen), np.unique(row[:size]))


def test_passes_without_replacement_filled_up_from_their_own_start():
  sampler = data.local_sampler(IMAGES, LABELS, batch_size=4, shuffled=True)
  _, labels = run(sampler, 12)
  for row, size, seen in zip(PARTITION.indices, PARTITION.sizes, labels):
    own, length = np.sort(row[:size]), -(-size // 4)
    passes = seen[: 12 // length * length].reshape(-1, length * 4)
    for one in passes:
      np.testing.assert_array_equal(np.sort(one[:size]), own)
      np.testing.assert_array_equal(one, np.resize(one[:size], one.size))
    assert size == 1 or len(np.unique(passes, axis=0)) == len(passes)


def test_the_first_places_of_a_pass_are_uniform():
  sampler = data.local_sampler(IMAGES, LABELS, batch_size=2, shuffled=True)
  mine = data.Partition(jnp.asarray(PARTITION.indices[1]), jnp.array(5))
  params = jnp.zeros(2)
  plan = sampler.start((), params, mine, KEY)
  keys = jax.random.split(KEY, 4000)
  (_, labels), _ = jax.vmap(lambda k: sampler.draw(plan, mine, 0, k))(keys)
  counts = np.zeros((5, 5))
  np.add.at(counts, tuple((np.asarray(labels) - 12).T), 1)
  assert np.all(np.diag(counts) == 0)
  pairs = counts[~np.eye(5, dtype=bool)]
  # Twenty ordered pairs; five standard deviations of a binomial count.
  assert np.all(np.abs(pairs - 200) < 5 * np.sqrt(200))


def test_inside_shard_map_with_varying_types():
  sampler = data.local_sampler(IMAGES, LABELS, batch_size=4, shuffled=True)
  mesh = jax.make_mesh(
    (4,),
    ('workers',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )

  def of_device(partition, worker):
    def of_worker(data_i, worker):
      plan = sampler.start((), jnp.zeros(2), data_i, KEY)

      def step(plan, t):
        key = jax.random.fold_in(jax.random.fold_in(KEY, worker), t)
        batch, plan = sampler.draw(plan, data_i, t, key)
        return plan, batch[1]

      return jax.lax.scan(step, plan, jnp.arange(3))[1]

    return jax.vmap(of_worker)(partition, worker)

  spec = jax.P('workers')
  labels = jax.jit(
    jax.shard_map(of_device, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
  )(data.Partition(*map(jnp.asarray, PARTITION)), jnp.arange(4))
  np.testing.assert_array_equal(labels, run(sampler, 3)[1])


def test_keeps_no_state():
  sampler = data.local_sampler(IMAGES, LABELS, batch_size=2)
  assert sampler.init(jnp.zeros(2)) == ()
  assert sampler.finish((), jnp.zeros(2)) == ()


@pytest.mark.parametrize(
  'kwargs, found',
  [
    ({'batch_size': 0}, 'batch_size .* at least 1, got 0'),
    ({'batch_size': 2, 'scale': 0.0}, 'scale > 0, got 0.0'),
  ],
)
def test_refusals(kwargs, found):
  with pytest.raises(ValueError, match=f'local_sampler needs {found}'):
    data.local_sampler(IMAGES, LABELS, **kwargs)


def test_refuses_images_without_labels():
  with pytest.raises(ValueError, match=r'local_sampler: images and .*\(39,\)'):
    data.local_sampler(IMAGES, LABELS[1:], batch_size=2)
