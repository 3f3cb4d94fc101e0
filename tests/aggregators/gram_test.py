"""The Gram matrix: its accuracy, its masks, and rules composed in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import grams
from tests import reference, tables

N, SIZE = tables.NUM_WORKERS, tables.SIZE


def _squared_distances(x):
  x = np.float64(x)
  return ((x[:, None] - x[None]) ** 2).sum(axis=-1)


@pytest.mark.parametrize('outlier', [None, 1e4, 1e8])
@pytest.mark.parametrize('offset', [0.0, 10.0, 1e3])
def test_honest_distances_survive_an_offset_and_an_outlier(offset, outlier):
  # Several blocks and a remainder: the loop over blocks centres as well.
  x = np.random.default_rng(0).normal(size=(20, 20_000)) + offset
  if outlier is not None:
    x[3] = outlier
  x = np.float32(x)
  gram, _ = jax.jit(grams.gram_of)(jnp.asarray(x))
  honest = np.delete(np.arange(20), 3)[:, None]
  result = np.float64(grams.squared_distances(gram))[honest, honest.T]
  expected = _squared_distances(x)[honest, honest.T]
  off_diagonal = ~np.eye(19, dtype=bool)
  error = np.abs(result - expected)[off_diagonal] / expected[off_diagonal]
  assert error.max() < 1e-5


@pytest.mark.parametrize('name', ['krum', 'multi_krum', 'geometric_median'])
def test_rules_survive_an_offset_and_an_outlier(name):
  rule = tables.RULE[name]
  x = 1e3 + tables.random_messages(0)
  x[2] = -1e8
  x = np.float32(x)
  expected = rule.oracle(np.float64(x), None, 4, None)
  result = np.float64(jax.jit(rule.make(4, 1.0).__call__)(jnp.asarray(x)))
  # To a rounding of 1e3, not to a fraction of the spread of 1.
  np.testing.assert_allclose(result, expected, rtol=2e-7)


def test_geometric_median_of_a_spread_far_below_the_outliers():
  # A masked message must not hide which message is in the middle.
  x = tables.random_messages(0)
  x[0], x[1:4] = np.nan, 1e8
  rule = byzjax.geometric_median(num_iterations=32)
  result = jax.jit(rule.__call__)(jnp.asarray(x, jnp.float32))
  expected = reference.geometric_median(np.float32(x[1:]))
  np.testing.assert_allclose(result, expected, 1e-4, 1e-4)


@pytest.mark.parametrize('f', [1, 3, 5])
def test_geometric_median_reaches_the_least_sum_of_distances(f):
  x = np.float32(tables.random_messages(f))
  x[:f] += 100
  result = jax.jit(byzjax.geometric_median().__call__)(jnp.asarray(x))
  least = reference.sum_of_distances(x, reference.geometric_median(x))
  np.testing.assert_allclose(
    reference.sum_of_distances(x, np.float64(result)), least, rtol=1e-6
  )


@pytest.mark.parametrize('num_iterations', [1, 3, 8])
@pytest.mark.parametrize('start', ['mean', 'zeros'])
def test_geometric_median_stopped_early_as_published(num_iterations, start):
  x = np.float32(tables.random_messages(1))
  rule = byzjax.geometric_median(
    num_iterations=num_iterations, smoothing=0.1, start=start
  )
  z0 = np.zeros(SIZE) if start == 'zeros' else reference.mean(x)
  expected = reference.smoothed_weiszfeld(x, z0, num_iterations, 0.1)
  np.testing.assert_allclose(jax.jit(rule.__call__)(x), expected, 1e-5, 1e-6)


@pytest.mark.parametrize(
  'kwargs',
  [
    {'num_neighbors': 7},
    {'num_neighbors': 10},
    {'distance_power': 1},
    {'distance_power': 4},
    {'num_selected': 1},
    {'num_selected': 5, 'num_neighbors': 3},
  ],
  ids=str,
)
def test_multi_krum_options(kwargs):
  x = np.float32(tables.random_messages(2))
  rule = byzjax.multi_krum(num_byzantine=3, **kwargs)
  renamed = {
    {'distance_power': 'power'}.get(name, name): value
    for name, value in kwargs.items()
  }
  expected = reference.multi_krum(x, 3, **renamed)
  np.testing.assert_allclose(jax.jit(rule.__call__)(x), expected, 1e-5, 1e-6)


def test_krum_returns_a_message_bit_for_bit_and_ties_go_to_the_lowest():
  x = np.float32(tables.random_messages(3))
  result = jax.jit(byzjax.krum(num_byzantine=4).__call__)(x)
  assert (x == np.asarray(result)).all(axis=1).sum() == 1
  # On a ring all scores are equal, and integers leave no rounding.
  ring = jnp.array([[5, 0], [4, 3], [3, 4], [0, 5], [-3, 4], [-4, 3], [-5, 0]])
  ring = jnp.concatenate([ring, -ring[1:-1]]).astype(jnp.float32)
  square = jnp.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
  rule = byzjax.krum(num_byzantine=0)
  np.testing.assert_array_equal(rule(square), square[0])
  scores = reference.krum_scores(ring, 0)
  np.testing.assert_array_equal(rule(ring), ring[int(np.argmin(scores))])


def test_krum_scores_far_neighbours_when_usable_ones_are_short():
  # Nine of eleven are bad: each of the two left lacks near neighbours.
  x = np.float32(tables.random_messages(4))
  x[2:] = np.nan
  for power in (1, 2, 4):
    rule = byzjax.krum(num_byzantine=4, distance_power=power)
    result = np.asarray(jax.jit(rule.__call__)(x))
    assert any((result == row).all() for row in x[:2]), power


@pytest.mark.parametrize('bad', [None, np.nan, 1e6])
@pytest.mark.parametrize(
  'rule',
  [
    byzjax.krum(num_byzantine=4),
    byzjax.multi_krum(num_byzantine=4),
    byzjax.geometric_median(),
    byzjax.centered_clipping(radius=1.0),
    byzjax.centered_clipping(radius=1.0, num_iterations=3),
    byzjax.mean(),
  ],
  ids=['krum', 'multi_krum', 'geometric_median', 'cc1', 'cc3', 'mean'],
)
def test_mixing_in_gram_space_is_mixing_and_then_the_rule(rule, bad):
  x = np.float32(tables.random_messages(5))
  if bad is not None:
    x[:3] = bad
  mixer = byzjax.nearest_neighbor_mixing(num_byzantine=4)

  @jax.jit
  def both(x):
    state = rule.init(x[0])
    mixed, _ = mixer.apply(x, ())
    composed = byzjax.pre_aggregate(mixer, rule)
    return (
      composed.update(x, composed.init(x[0]))[0],
      rule.update(mixed, state)[0],
    )

  composed, one_by_one = both(x)
  scale = 1.0 if bad != 1e6 else 1e6 / N  # honest mixtures are near the mean
  atol = 1e-5 if rule.gram_rule.selects or bad != 1e6 else 1e-6 * scale
  np.testing.assert_allclose(composed, one_by_one, 1e-5, atol)


def test_mixing_agrees_with_the_oracle_row_by_row():
  x = np.float32(tables.random_messages(6))
  for f in (0, 2, 5):
    mixer = byzjax.nearest_neighbor_mixing(num_byzantine=f)
    mixed, _ = mixer.apply(jnp.asarray(x), mixer.init(None))
    expected = reference.nearest_neighbor_mixing(x, f)
    np.testing.assert_allclose(mixed, expected, 1e-5, 1e-6)


def test_mixing_leaves_masked_messages_out_and_masks_their_mixtures():
  x = np.float32(tables.random_messages(6))
  x[[0, 5]] = np.inf
  mixer = byzjax.nearest_neighbor_mixing(num_byzantine=2)
  mixed = np.asarray(mixer.apply(jnp.asarray(x), ())[0])
  usable = np.delete(np.arange(N), [0, 5])
  assert np.isnan(mixed[[0, 5]]).all()
  # All nine usable messages are each other's nine nearest.
  mean = np.tile(x[usable].mean(axis=0), (9, 1))
  np.testing.assert_allclose(mixed[usable], mean, 1e-5, 1e-6)


@pytest.mark.parametrize('n, s', [(11, 2), (12, 3), (5, 1), (4, 9)])
def test_buckets_are_means_of_a_random_partition(n, s):
  mixer = byzjax.bucketing(bucket_size=s)
  matrices = [
    np.asarray(mixer.apply(jnp.eye(n), (), key=jax.random.key(seed))[0])
    for seed in (0, 0, 1)
  ]
  matrix = matrices[0]
  sizes = (matrix > 0).sum(axis=1)
  expected_sizes = [min(s, n - i) for i in range(0, n, s)]
  assert sizes.tolist() == expected_sizes
  assert ((matrix > 0).sum(axis=0) == 1).all()
  expected = (matrix > 0) / sizes[:, None]
  np.testing.assert_allclose(matrix, expected, 1e-6, 1e-7)
  np.testing.assert_array_equal(matrices[1], matrix)
  if n > s > 1:
    assert (matrices[2] != matrix).any()  # another key, another partition


def test_a_bucket_leaves_masked_messages_out():
  x = np.ones((4, 3), np.float32)
  x[0] = np.nan
  mixer = byzjax.bucketing(bucket_size=4)
  mixed, _ = mixer.apply(jnp.asarray(x), (), key=jax.random.key(0))
  np.testing.assert_array_equal(mixed, np.ones((1, 3)))


def test_stages_draw_independently():
  # Two permutations from one key would cancel or repeat each other.
  rule = byzjax.pre_aggregate(
    byzjax.bucketing(bucket_size=2),
    byzjax.bucketing(bucket_size=2),
    byzjax.krum(num_byzantine=0),
  )
  weights = rule.inspect(
    jnp.eye(12), rule.init(jnp.zeros(12)), key=jax.random.key(0)
  )[2].weights
  assert (np.asarray(weights) > 0).sum() == 4


def test_rules_of_ones_own():
  uniform = byzjax.from_weights(lambda gram: gram.mask / gram.mask.sum())
  largest = byzjax.from_column(lambda x: x[0])
  x = np.float32(tables.random_messages(7))
  x[3] = np.nan
  expected = np.delete(x, 3, axis=0).mean(axis=0)
  np.testing.assert_allclose(uniform(jnp.asarray(x)), expected, 1e-5, 1e-6)
  np.testing.assert_array_equal(largest(jnp.asarray(x)), x[0])
  x[0, 2] = np.nan
  assert largest(jnp.asarray(x))[2] == 0


def test_sanitize():
  x = tables.random_messages(8)
  x[2, 5], x[4, 0] = np.nan, -np.inf
  messages, mask = byzjax.sanitize(tables.to_tree(x, jnp.bfloat16))
  np.testing.assert_array_equal(mask, np.isfinite(x).all(axis=1))
  clean = tables.to_matrix(messages, (N,))
  assert (clean[[2, 4]] == 0).all()
  kept = np.delete(np.arange(N), [2, 4])
  expected = tables.to_matrix(tables.to_tree(x, jnp.bfloat16), (N,))
  np.testing.assert_array_equal(clean[kept], expected[kept])


def test_the_smoothing_of_the_geometric_median_is_an_absolute_distance():
  n, f, nu = 11, 3, 1e-6
  x = np.random.default_rng(5).normal(size=(n, 20)) / np.sqrt(20)
  x[:f] += 100 / np.sqrt(20)
  rule = jax.jit(
    lambda x, smoothing: byzjax.geometric_median(smoothing=smoothing)(x)
  )

  def median_of(size, smoothing=nu):
    return rule(jnp.asarray(size * x, jnp.float32), smoothing) / size

  expected, honest = median_of(1.0), x[f:].mean(axis=0)
  # Distances of about 1 between honest messages: far above nu.
  assert np.linalg.norm(expected - honest) < 0.5
  np.testing.assert_allclose(median_of(1e-5), expected, 1e-4, 1e-5)
  # Honest distances below it: a mean that attackers move by nu f / (n - f).
  moved = np.linalg.norm(median_of(1e-7) - honest) * 1e-7
  np.testing.assert_allclose(moved, nu * f / (n - f), 1e-2)
  # All distances below it: the mean, attackers and all.
  np.testing.assert_allclose(median_of(1e-9), x.mean(axis=0), 1e-4, 1e-4)
  np.testing.assert_allclose(median_of(1e-8, 1e-15), expected, 1e-4, 1e-5)


def _with_the_first_centre_of_an_attacker(rank):
  """Models far from zero and close together; one message is `-x_i` of one."""
  random = np.random.default_rng(1)
  mean = random.normal(size=3000)
  mean *= 1e5 / np.linalg.norm(mean)
  x = np.float32(mean + 1e-2 * random.normal(size=(11, 3000)))
  nearest = np.argsort(np.linalg.norm(np.float64(x[3:]), axis=1))
  x[0] = -x[3 + nearest[rank]]
  x[1:3] += np.float32(random.normal(size=(2, 3000)))
  return x


_gram_of = jax.jit(grams.gram_of)


@pytest.mark.parametrize('rank', range(8))
def test_distances_survive_a_message_of_the_median_norm(rank):
  x = _with_the_first_centre_of_an_attacker(rank)
  gram, _ = _gram_of(jnp.asarray(x))
  result = np.float64(grams.squared_distances(gram))[3:, 3:]
  np.testing.assert_allclose(result, _squared_distances(x[3:]), 1e-5)


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.krum(num_byzantine=3),
    byzjax.minimum_diameter_averaging(num_byzantine=3),
    byzjax.geometric_median(),
    byzjax.bulyan(num_byzantine=2),
    byzjax.gas(byzjax.krum(num_byzantine=3), num_byzantine=3, num_pieces=3),
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=3),
      byzjax.trimmed_mean(num_byzantine=3),
    ),
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=3),
      byzjax.geometric_median(),
    ),
  ],
  ids=lambda rule: rule.name,
)
def test_rules_survive_a_message_of_the_median_norm(rule):
  aggregate = jax.jit(
    lambda x: rule.update(x, rule.init(x[0]), key=jax.random.key(0))[0]
  )
  for rank in range(8):
    x = _with_the_first_centre_of_an_attacker(rank)
    honest = np.float64(x[3:])
    error = np.linalg.norm(aggregate(jnp.asarray(x)) - honest.mean(axis=0))
    spread = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    assert error < 2 * spread


@pytest.mark.parametrize('size', [1e5, 1e12])
def test_many_liars_of_little_weight_do_not_choose_the_centre(size):
  random = np.random.default_rng(2)
  x = np.float32(random.normal(size=(9, 50)))
  x[:6] = size * random.normal(size=(6, 50))
  weights = jnp.array([0.05] * 6 + [1.0] * 3)  # A tenth of all together.
  rule = byzjax.geometric_median()
  result = jax.jit(rule.__call__)(jnp.asarray(x), worker_weights=weights)
  honest = x[6:]
  spread = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
  assert np.linalg.norm(result - honest.mean(axis=0)) < spread
