"""What rules and rounds stand on: flat rows, sums over workers, layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax._src import flat, layouts, reductions

TREE = {
  'a': jnp.arange(6.0).reshape(2, 3),
  'b': jnp.asarray(7.0, jnp.bfloat16),
  'c': jnp.zeros((0, 4)),
}


@pytest.mark.parametrize('multiple', [1, 5, 256])
def test_flat_rows_and_back(multiple):
  layout = flat.row_layout(TREE, multiple)
  vector = layout.ravel(TREE)
  assert layout.size == 7 and vector.dtype == jnp.float32
  assert vector.shape == (-(-7 // multiple) * multiple,)
  np.testing.assert_array_equal(vector[:7], np.float32([*range(6), 7]))
  assert not vector[7:].any()
  back = layout.unravel(vector)
  rows = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), TREE)
  matrix = layout.ravel_rows(rows)
  np.testing.assert_array_equal(matrix[1], 2 * vector)
  rows_back = layout.unravel_rows(matrix)
  for a, b in ((back, TREE), (rows_back, rows)):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
      assert x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)


def test_float64_stays_float64():
  with jax.enable_x64(True):
    layout = flat.row_layout({'a': jnp.ones(2), 'b': jnp.ones(2, jnp.bfloat16)})
    assert layout.dtype == jnp.float64
    assert flat.row_layout(jnp.ones(2, jnp.float32)).dtype == jnp.float32


X = np.random.default_rng(0).normal(size=(150, 9)).astype(np.float32)


@pytest.mark.parametrize('n', [1, 7, 128, 129, 150])
def test_weighted_sum_does_not_read_rows_of_weight_zero(n):
  # Beyond 128 rows it is a loop; both forms must skip.
  weights, x = np.linspace(-1, 1, n), X[:n].copy()
  weights[n // 2] = 0
  expected = weights @ x
  x[n // 2] = np.nan
  result = jax.jit(reductions.weighted_sum)(jnp.float32(weights), x)
  np.testing.assert_allclose(result, expected, 1e-4, 1e-5)


@pytest.mark.parametrize('n', [7, 150])
def test_mean_and_deviation_of_some_rows(n):
  mask, x = np.arange(n) % 3 != 0, X[:n].copy()
  kept = np.float64(x[mask])
  x[~mask] = np.inf
  x = jnp.asarray(x)
  mean = jax.jit(reductions.rows_mean)(x, mask)
  np.testing.assert_allclose(mean, kept.mean(axis=0), 1e-5, 1e-6)
  for ddof in (0, 1):
    std = reductions.rows_std(x, jnp.asarray(mask), mean, ddof=ddof)
    np.testing.assert_allclose(std, kept.std(axis=0, ddof=ddof), 1e-5)
  nobody = reductions.rows_mean(x, jnp.zeros(n, bool))
  np.testing.assert_array_equal(nobody, np.zeros(9))


def test_blocked_sums_equal_one_sum():
  # Several blocks, a remainder, and a centre: the loop has all its parts.
  x = np.random.default_rng(0).normal(size=(20, 12_877))
  center = np.linspace(-1, 1, x.shape[1])
  y = x - center
  arguments = jnp.float32(x), jnp.float32(center)
  norms = jax.jit(lambda x, c: reductions.squared_norms(x, center=c))
  np.testing.assert_allclose(norms(*arguments), (y * y).sum(axis=1), 1e-5)
  mask = np.arange(20) != 4
  gram = jax.jit(reductions.centered_gram)(*arguments, mask)
  expected = np.where(mask[:, None] & mask[None], y @ y.T, 0)
  np.testing.assert_allclose(gram, expected, 1e-5, 0.02)
  assert not gram[4].any() and not gram[:, 4].any()


@pytest.mark.parametrize('num_shards', range(1, 9))
@pytest.mark.parametrize('size', [1, 255, 257, 5000])
def test_padding_splits_evenly_and_in_whole_blocks(size, num_shards):
  padded = layouts.padded_size(size, num_shards)
  assert size <= padded < size + 2 * max(256, 32 * num_shards)
  assert padded % num_shards == 0
  # Noise is drawn in blocks of 32 coordinates.
  assert padded // num_shards % 32 == 0


@pytest.mark.parametrize('devices', [1, 2, 4, 8])
def test_worker_sharded_on_a_tree_carries_its_state(devices):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('workers',))
  inner = byzjax.centered_clipping(radius=1.0)
  rule = byzjax.worker_sharded(inner, 'workers')
  messages = {
    'w': jnp.float32(X[:8, :6].reshape(8, 2, 3)),
    'b': jnp.asarray(X[:8, 6:]),
  }
  params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)

  @jax.jit
  @jax.shard_map(mesh=mesh, in_specs=jax.P('workers'), out_specs=jax.P())
  def twice(messages):
    first, state = rule.update(messages, rule.init(params))
    second, _ = rule.update(messages, state)
    return first, second

  first, state = inner.update(messages, inner.init(params))
  second, _ = inner.update(messages, state)
  results = jax.tree.leaves(twice(messages))
  for a, b in zip(results, jax.tree.leaves((first, second))):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(a, b, 1e-5, 1e-6)


def test_a_sharded_attack_needs_to_know_who_attacks():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('workers',))
  rule = byzjax.worker_sharded(byzjax.mean(), 'workers', byzjax.alie(z=1.0))

  @jax.shard_map(mesh=mesh, in_specs=jax.P('workers'), out_specs=jax.P())
  def aggregate(x):
    return rule.update(x, rule.init(x[0]))[0]

  with pytest.raises(ValueError, match='attack needs is_byzantine, got None'):
    aggregate(jnp.ones((4, 3)))


def test_an_aggregator_is_an_optax_transform():
  rule = byzjax.krum(num_byzantine=1)
  assert isinstance(rule, optax.GradientTransformationExtraArgs)
  init, update = rule
  x = jnp.asarray(X[:7])
  np.testing.assert_array_equal(update(x, init(x[0]))[0], rule(x))
