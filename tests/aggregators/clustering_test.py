"""The clustering rules: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference, reference_rules, tables
from tests.aggregators import calls

N, SIZE = tables.NUM_WORKERS, tables.SIZE
KEY = jax.random.key(3)


# Clustering.


LINKAGES = ['average', 'complete', 'single']


@pytest.mark.parametrize('linkage', LINKAGES)
def test_clusters_are_those_of_the_definition(linkage):
  for seed in range(20):
    x = np.random.default_rng(seed).normal(size=(9, 3)) + [0.5, 0, 0]
    kept = calls.kept(byzjax.clustering, x, linkage=linkage)
    assert kept == reference_rules.largest_cluster(x, linkage), seed


def test_linkages_differ():
  chains = [
    calls.kept(byzjax.clustering, x, linkage=linkage)
    for linkage in LINKAGES
    for x in np.random.default_rng(0).normal(size=(5, 9, 3))
  ]
  assert chains[:5] != chains[5:10] != chains[10:] != chains[:5]


def test_two_directions_are_told_apart_and_the_larger_is_averaged():
  # A similarity that is taken for a distance would group the unlike.
  x = tables.random_messages(9) / 10
  x[:, 0] += 3
  x[6:] *= -1
  for linkage in LINKAGES:
    kept = calls.kept(byzjax.clustering, x, linkage=linkage)
    assert kept == [*range(6)]


def test_clusters_of_equal_size_go_to_the_lowest_index():
  x = np.array([[1.0, 0], [-1, 0], [-1, 0.1], [1, 0.1]])
  assert calls.kept(byzjax.clustering, x) == [0, 3]
  assert calls.kept(byzjax.clustering, x[1:]) == [0, 1]
  assert calls.kept(byzjax.clustering, x[:2]) == [0]
  assert calls.kept(byzjax.clustering, x[:1]) == [0]


def test_a_message_of_zeros_is_at_right_angles_to_all():
  for seed in range(5):
    x = np.random.default_rng(seed).normal(size=(9, 3))
    x[[1, 4, 5]] = 0
    kept = calls.kept(byzjax.clustering, x, linkage='average')
    assert kept == reference_rules.largest_cluster(x, 'average'), seed
  np.testing.assert_array_equal(calls.aggregate(byzjax.clustering, 0 * x), 0)


def test_masked_messages_are_in_no_cluster_and_no_distance():
  x = np.random.default_rng(1).normal(size=(9, 3)) + [0.5, 0, 0]
  bad = x.copy()
  bad[[0, 4]] = [[np.nan, 0, 0], [np.inf, 1, 1]]
  good = np.delete(np.arange(9), [0, 4])
  for linkage in LINKAGES:
    kept = calls.kept(byzjax.clustering, bad, linkage=linkage)
    expected = good[reference_rules.largest_cluster(x[good], linkage)]
    assert kept == expected.tolist()


def test_lengths_do_not_matter_however_different():
  x = np.random.default_rng(2).normal(size=(9, 3)) + [0.5, 0, 0]
  lengths = np.array([1e-12, 1e12, 1, 1e-6, 1e6, 3, 1e9, 1e-9, 1e3])
  kept = calls.kept(byzjax.clustering, x * lengths[:, None])
  assert kept == reference_rules.largest_cluster(x, 'complete')


def test_small_angles_keep_their_digits():
  # Two groups, at angles of 1e-4 to each other: 1 - cos is 5e-9, less than the
  # rounding of a cosine in float32.
  random = np.random.default_rng(3)
  common = random.normal(size=200)
  common /= np.linalg.norm(common)
  across = random.normal(size=200)
  across -= (across @ common) * common
  across *= 1e-4 / np.linalg.norm(across)
  group = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1])
  x = common + group[:, None] * across
  x += 1e-7 * random.normal(size=x.shape)
  assert calls.kept(byzjax.clustering, x) == [0, 3, 4, 6, 7]


def test_clustering_behind_mixing():
  x = tables.random_messages(4)
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=3),
    byzjax.clustering(linkage='average'),
  )
  expected = reference_rules.clustering(
    reference.nearest_neighbor_mixing(x, 3), 'average'
  )
  result = rule(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.clustering(),
    byzjax.flame(noise=0),
    byzjax.fools_gold(num_workers=None, reduce='sum'),
  ],
  ids=lambda rule: rule.name,
)
@pytest.mark.parametrize('far', [1.0, -3e8])
def test_directions_behind_a_stage_are_those_of_the_messages(rule, far):
  # From inner products of messages of such different lengths nothing is left.
  x = 3 + np.float32(tables.random_messages(7))
  x[-2:] = far * x[:-2].mean(0)
  only_permutes = byzjax.bucketing(bucket_size=1)
  result = byzjax.pre_aggregate(only_permutes, rule)(
    jnp.asarray(x), key=jax.random.key(0)
  )
  np.testing.assert_allclose(result, rule(jnp.asarray(x)), 1e-5, 1e-6)


# Clipped clustering.


def _norms(x):
  return np.linalg.norm(x, axis=1).tolist()


def test_norms_of_all_rounds_are_remembered():
  past, state = [], None
  for step in range(3):
    # Ever shorter, as gradients are: so the median is one of the past.
    x = tables.random_messages(20 + step) / (step + 1)
    result, state, info = calls.inspect(byzjax.clipped_clustering, x, state)
    expected = reference_rules.clipped_clustering(x, past)
    np.testing.assert_allclose(result, expected, 1e-5, 1e-6)
    past += _norms(x)
    limit = np.median(past)
    factors = np.minimum(1, limit / np.array(_norms(x)))
    np.testing.assert_allclose(info.factors, factors, 1e-5)
  assert isinstance(state, byzjax.ClippedClusteringState)
  assert np.isfinite(state.norms).sum() == 3 * N


def test_the_oldest_norms_are_forgotten():
  options, past, state = {'num_remembered': N + 4}, [], None
  for step in range(4):
    x = 3.0**step * tables.random_messages(30 + step)
    result, state, _ = calls.inspect(
      byzjax.clipped_clustering, x, state, **options
    )
    expected = reference_rules.clipped_clustering(x, past)
    np.testing.assert_allclose(result, expected, 1e-5, 1e-6)
    past = (_norms(x) + past)[: N + 4]
    np.testing.assert_allclose(state.norms[: len(past)], past, 1e-5)


def test_without_memory_every_round_is_the_first():
  x, y = tables.random_messages(40), 10 * tables.random_messages(41)
  _, state, _ = calls.inspect(byzjax.clipped_clustering, x, num_remembered=0)
  result, _, _ = calls.inspect(
    byzjax.clipped_clustering, y, state, num_remembered=0
  )
  expected = reference_rules.clipped_clustering(y)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-5)


def test_masked_messages_take_no_place_in_the_memory():
  x, options = tables.random_messages(42), {'num_remembered': N}
  _, state, _ = calls.inspect(byzjax.clipped_clustering, x, **options)
  bad = x.copy()
  bad[2:] = np.nan
  _, state, _ = calls.inspect(byzjax.clipped_clustering, bad, state, **options)
  expected = (_norms(x[:2]) + _norms(x))[:N]
  np.testing.assert_allclose(state.norms, expected, 1e-5)


def test_the_aggregate_is_no_longer_than_max_norm():
  x = 100 * tables.random_messages(43)
  result = calls.aggregate(byzjax.clipped_clustering, x, max_norm=0.5)
  np.testing.assert_allclose(
    result,
    0.5 * _unit_mean(x, reference_rules.largest_cluster(x, 'average')),
    1e-5,
    1e-6,
  )


def _unit_mean(x, rows):
  return reference.mean([row / np.linalg.norm(row) for row in x[rows]])


def test_the_limit_may_be_traced():
  x = jnp.asarray(tables.random_messages(44), jnp.float32)

  def length(limit):
    rule = byzjax.clipped_clustering(max_norm=limit)
    return jnp.linalg.norm(rule.update(x, rule.init(x[0]))[0])

  lengths = jax.jit(jax.vmap(length))(jnp.array([0.0, 0.1, 0.2]))
  np.testing.assert_allclose(lengths / lengths[1], [0, 1, 2], 1e-5, 1e-6)
