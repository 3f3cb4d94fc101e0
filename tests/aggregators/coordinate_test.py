"""What is particular to means and medians of single coordinates."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import sorting
from tests import reference_rules, reference_weighted, tables
from tests.aggregators import instances

SIZE = tables.SIZE


# The network.

SPECIAL = [-np.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38, np.inf]


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_any_nan_sorts_above_infinity(dtype):
  values = np.array(SPECIAL, dtype)
  with jax.enable_x64(True):
    for nan in (np.nan, -np.nan):
      column = np.array([nan, *values[::-1], nan], dtype)
      rows = [jnp.asarray(value)[None] for value in column]
      result = sorting.sorted_rows(rows, tuple(range(len(rows))))
      result = np.concatenate(result)
      np.testing.assert_array_equal(result[:-2], values)
      np.testing.assert_array_equal(np.signbit(result[:-2]), np.signbit(values))
      assert np.isnan(result[-2:]).all()
      assert result.dtype == dtype


# The most messages for which the network of a rule compiles well.
LARGEST = {
  'median': (byzjax.coordinate_median(), sorting.MAX_NETWORK),
  'trimmed_mean': (
    byzjax.trimmed_mean(num_byzantine=12),
    sorting.MAX_NETWORK,
  ),
  'mean_around_median': (
    byzjax.mean_around_median(num_byzantine=51),
    104,
  ),
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name == 'trimmed_mean' else pytest.mark.slow)
    for name in LARGEST
  ],
)
def test_the_largest_network_is_one_kernel_of_not_too_many_operations(name):
  # With more than about 4000 XLA stops to vectorise, and the kernel is 5 to 100
  # times slower.
  rule, n = LARGEST[name]
  x = jax.ShapeDtypeStruct((n, 64), jnp.float32)
  text = jax.jit(lambda x: rule.update(x, ())[0]).lower(x).compile().as_text()
  (kernel,) = re.findall(r'^%fused_computation.*?^}', text, re.M | re.S)
  assert len(re.findall('^ .* = ', kernel, re.M)) <= 3910


RANKS = {
  'median': (
    byzjax.coordinate_median(),
    lambda n, rank: np.isin(rank, [(n - 1) // 2, n // 2]),
  ),
  'trimmed_mean': (
    byzjax.trimmed_mean(num_byzantine=2),
    lambda n, rank: (rank >= 2) & (rank < n - 2),
  ),
}


@pytest.mark.parametrize('n', [7, 8, 130])
@pytest.mark.parametrize('name', ['median', 'trimmed_mean'])
@pytest.mark.parametrize('weighted', [False, True])
def test_derivatives_go_to_the_values_that_count(name, n, weighted):
  rule, counts = RANKS[name]
  x = np.float32(tables.random_messages(0, n))
  extra = {'worker_weights': jnp.ones(n)} if weighted else {}
  gradient = jax.grad(lambda x: rule(x, **extra).sum())(x)
  counted = counts(n, np.argsort(np.argsort(x, axis=0), axis=0))
  expected = counted / counted.sum(axis=0)
  np.testing.assert_allclose(gradient, expected, 1e-5, 1e-7)


# Medians and trimmed means.


@pytest.mark.parametrize('n', [1, 2, 7, 8, 130])
def test_the_lower_median(n):
  x = np.float32(tables.random_messages(1, n))
  result = instances.aggregate(byzjax.coordinate_median(middle='lower'), x)
  np.testing.assert_array_equal(result, np.sort(x, axis=0)[(n - 1) // 2])


EQUAL_WEIGHTS = [1.0, 0.1, 1 / 3, 7.0, 1e-30, 1e30]


@pytest.mark.parametrize('weight', EQUAL_WEIGHTS)
@pytest.mark.parametrize('n', [1, 2, 7, 10, 60])
@pytest.mark.parametrize('middle', ['mean', 'lower'])
def test_equal_weights_give_the_bits_of_the_median(n, middle, weight):
  x = np.float32(tables.random_messages(2, n))
  x[0, 0] = np.nan
  rule = byzjax.coordinate_median(middle=middle)
  result = instances.aggregate(rule, x, np.full(n, weight, np.float32))
  np.testing.assert_array_equal(result, instances.aggregate(rule, x))


@pytest.mark.parametrize('weight', EQUAL_WEIGHTS)
@pytest.mark.parametrize('n, f', [(1, 0), (7, 0), (7, 3), (10, 2), (60, 20)])
def test_equal_weights_give_the_trimmed_mean(n, f, weight):
  x = np.float32(tables.random_messages(3, n))
  x[:f] = 3e38
  x[0, 0] = np.nan if f else 0
  rule = byzjax.trimmed_mean(num_byzantine=f)
  result = instances.aggregate(rule, x, np.full(n, weight, np.float32))
  np.testing.assert_allclose(result, instances.aggregate(rule, x), 1e-5, 1e-6)


SOME_WEIGHTS = np.array([1, 3, 2, 1, 1, 2, 1, 2, 1.0])


@pytest.mark.parametrize('repeats', [1, 10])  # a network, and too many for it
def test_an_integer_weight_is_as_good_as_so_many_copies(repeats):
  weights = np.tile(SOME_WEIGHTS, repeats)
  x = np.float32(tables.random_messages(4, len(weights)))
  copies = np.repeat(x, weights.astype(int), axis=0)
  rule = byzjax.coordinate_median()
  np.testing.assert_array_equal(
    instances.aggregate(rule, x, weights), instances.aggregate(rule, copies)
  )
  # The two heaviest of the nine weigh five together.
  heaviest = int(np.sort(weights)[-2:].sum())
  np.testing.assert_allclose(
    instances.aggregate(byzjax.trimmed_mean(num_byzantine=2), x, weights),
    instances.aggregate(byzjax.trimmed_mean(num_byzantine=heaviest), copies),
    1e-5,
    1e-6,
  )


MIDDLES = {
  'median': byzjax.coordinate_median(),
  'trimmed_mean': byzjax.trimmed_mean(num_byzantine=2),
  'majority_vote': byzjax.majority_vote(),
}


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 3e38], ids=str)
@pytest.mark.parametrize('name', MIDDLES)
def test_a_worker_of_no_weight_does_not_matter(name, bad):
  x = np.float32(tables.random_messages(5, 9))
  weights = np.where(np.isin(np.arange(9), [0, 4, 8]), 0, SOME_WEIGHTS)
  with_bad = np.where(weights[:, None] == 0, np.float32(bad), x)
  rule = MIDDLES[name]
  result = instances.aggregate(rule, with_bad, weights)
  np.testing.assert_array_equal(result, instances.aggregate(rule, x, weights))
  np.testing.assert_allclose(
    result,
    instances.aggregate(rule, x[weights > 0], weights[weights > 0]),
    1e-6,
  )


@pytest.mark.parametrize('name', MIDDLES)
def test_no_weight_at_all(name):
  x = np.float32(tables.random_messages(5, 9))
  result = instances.aggregate(MIDDLES[name], x, np.zeros(9))
  expected = np.ones(SIZE) if name == 'majority_vote' else np.zeros(SIZE)
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('n', [11, 60])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -3e38, 1e30], ids=str)
def test_no_weights_let_f_bad_messages_into_a_trimmed_mean(bad, n):
  # A rounding error of a weight, times 1e30, would be enough.
  rule, random = byzjax.trimmed_mean(num_byzantine=3), np.random.default_rng(n)
  for seed in range(20):
    x = np.float32(tables.random_messages(seed, n))
    weights = np.float32(random.lognormal(sigma=2, size=n))
    # The heaviest workers: as much as it stands.
    heaviest = np.argsort(weights)[-3:]
    x[heaviest] = bad
    honest = np.delete(x, heaviest, axis=0)
    result = instances.aggregate(rule, x, weights)
    if 2 * weights[heaviest].sum() < weights.sum():
      assert (result >= honest.min(axis=0)).all()
      assert (result <= honest.max(axis=0)).all()
    assert np.isfinite(result).all()


def test_a_trimmed_mean_of_which_nothing_is_left_is_the_median():
  x = np.float32(tables.random_messages(6, 7))
  weights = np.array([1, 1, 5, 1, 2, 1, 1.0])
  result = instances.aggregate(byzjax.trimmed_mean(num_byzantine=2), x, weights)
  np.testing.assert_array_equal(
    result, instances.aggregate(byzjax.coordinate_median(), x, weights)
  )
  # And just before, it is near to that.
  nearly = np.array([1, 1, 3.499, 1, 1, 1, 1, 1.0])
  x = np.concatenate([x, x[:1] + 1])
  np.testing.assert_allclose(
    instances.aggregate(
      byzjax.trimmed_mean(num_byzantine=1), x[:-1], nearly[:-1]
    ),
    reference_weighted.weighted_trimmed_mean(x[:-1], nearly[:-1], 1),
    1e-3,
    1e-3,
  )


# Means around a centre.


@pytest.mark.parametrize('middle', ['mean', 'lower'])
@pytest.mark.parametrize('n', [1, 2, 7, 8])
def test_any_number_of_values_around_the_median(n, middle):
  x = np.float32(tables.random_messages(7, n))
  for kept in range(1, n + 1):
    rule = byzjax.mean_around_median(
      num_byzantine=0, num_kept=kept, middle=middle
    )
    np.testing.assert_allclose(
      instances.aggregate(rule, x),
      reference_rules.mean_around_median(x, 0, kept, middle),
      1e-5,
      1e-6,
    )


@pytest.mark.parametrize(
  'n, f',
  [
    (20, 6),
    pytest.param(103, 30, marks=pytest.mark.slow),
    (105, 30),
    pytest.param(130, 30, marks=pytest.mark.slow),
  ],
)
def test_around_the_centre_of_many_messages(n, f):
  x = np.float32(tables.random_messages(8, n))
  x[:f] = 1e6
  for rule, oracle in [
    (byzjax.mean_around_median, reference_rules.mean_around_median),
    (byzjax.phocas, reference_rules.phocas),
  ]:
    result = instances.aggregate(rule(num_byzantine=f), x)
    np.testing.assert_allclose(result, oracle(x, f), 1e-5, 1e-5)


def test_known_answers_around_the_median():
  rule = byzjax.mean_around_median(num_byzantine=1)
  assert rule(jnp.array([0.0, 1, 2, 3, 100])) == 1.5
  x = [(1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (10, -10), (10, -10)]
  rule = byzjax.mean_around_median(num_byzantine=2)
  np.testing.assert_array_equal(rule(jnp.array(x, jnp.float32)), [1, 1])


def test_of_equally_distant_values_the_smaller_is_taken():
  x = jnp.array([-1.0, 0, 1, 5, -3])
  for kept, expected in [(2, -0.5), (3, 0), (4, -0.75)]:
    rule = byzjax.mean_around_median(num_byzantine=1, num_kept=kept)
    assert rule(x) == expected


@pytest.mark.parametrize(
  'make', [byzjax.mean_around_median, byzjax.phocas], ids=lambda f: f.__name__
)
def test_what_is_far_away_takes_no_digits(make):
  x = np.float32(tables.random_messages(9, 20))
  x[:2], x[2:4] = 1e8, -1e8
  expected = make(num_byzantine=4)
  oracle = getattr(reference_rules, make.__name__)
  np.testing.assert_allclose(
    instances.aggregate(expected, x), oracle(x, 4), 1e-5, 1e-6
  )
