"""What is particular to rules that take the middle of every coordinate."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import sorting
from tests import reference, reference_rules, reference_weighted, tables
from tests.aggregators import running
from tests.rounds import problem

N, SIZE = running.N, running.SIZE


@functools.cache
def _compiled(rule):
  return jax.jit(
    lambda x, weights: rule.inspect(
      x,
      rule.init(x[0]),
      **({} if weights is None else {'worker_weights': weights}),
    )
  )


def _inspect(rule, x, weights=None):
  return _compiled(rule)(x, weights)


def _aggregate(rule, x, weights=None):
  return np.asarray(_inspect(rule, x, weights)[0])


def _float32(x):
  return np.asarray(x, np.float32)


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


# The most messages for which these rules have a network.
LARGEST = {
  'median': (byzjax.coordinate_median(), sorting.MAX_NETWORK),
  'trimmed_mean': (
    byzjax.trimmed_mean(num_byzantine=12),
    sorting.MAX_NETWORK,
  ),
  'mean_around_median': (
    byzjax.mean_around_median(num_byzantine=51),
    sorting.MAX_FULL_NETWORK,
  ),
}


@pytest.mark.parametrize('name', LARGEST)
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
  x = _float32(tables.random_messages(0, n))
  extra = {'worker_weights': jnp.ones(n)} if weighted else {}
  gradient = jax.grad(lambda x: rule(x, **extra).sum())(x)
  counted = counts(n, np.argsort(np.argsort(x, axis=0), axis=0))
  expected = counted / counted.sum(axis=0)
  np.testing.assert_allclose(gradient, expected, 1e-5, 1e-7)


# Medians and trimmed means.


@pytest.mark.parametrize('n', [1, 2, 7, 8, 130])
def test_the_lower_median(n):
  x = _float32(tables.random_messages(1, n))
  result = _aggregate(byzjax.coordinate_median(middle='lower'), x)
  np.testing.assert_array_equal(result, np.sort(x, axis=0)[(n - 1) // 2])


EQUAL_WEIGHTS = [1.0, 0.1, 1 / 3, 7.0, 1e-30, 1e30]


@pytest.mark.parametrize('weight', EQUAL_WEIGHTS)
@pytest.mark.parametrize('n', [1, 2, 7, 10, 60])
@pytest.mark.parametrize('middle', ['mean', 'lower'])
def test_equal_weights_give_the_bits_of_the_median(n, middle, weight):
  x = _float32(tables.random_messages(2, n))
  x[0, 0] = np.nan
  rule = byzjax.coordinate_median(middle=middle)
  result = _aggregate(rule, x, np.full(n, weight, np.float32))
  np.testing.assert_array_equal(result, _aggregate(rule, x))


@pytest.mark.parametrize('weight', EQUAL_WEIGHTS)
@pytest.mark.parametrize('n, f', [(1, 0), (7, 0), (7, 3), (10, 2), (60, 20)])
def test_equal_weights_give_the_trimmed_mean(n, f, weight):
  x = _float32(tables.random_messages(3, n))
  x[:f] = 3e38
  x[0, 0] = np.nan if f else 0
  rule = byzjax.trimmed_mean(num_byzantine=f)
  result = _aggregate(rule, x, np.full(n, weight, np.float32))
  np.testing.assert_allclose(result, _aggregate(rule, x), 1e-5, 1e-6)


SOME_WEIGHTS = np.array([1, 3, 2, 1, 1, 2, 1, 2, 1.0])


@pytest.mark.parametrize('repeats', [1, 10])  # a network, and too many for it
def test_an_integer_weight_is_as_good_as_so_many_copies(repeats):
  weights = np.tile(SOME_WEIGHTS, repeats)
  x = _float32(tables.random_messages(4, len(weights)))
  copies = np.repeat(x, weights.astype(int), axis=0)
  rule = byzjax.coordinate_median()
  np.testing.assert_array_equal(
    _aggregate(rule, x, weights), _aggregate(rule, copies)
  )
  # The two heaviest of the nine weigh five together.
  heaviest = int(np.sort(weights)[-2:].sum())
  np.testing.assert_allclose(
    _aggregate(byzjax.trimmed_mean(num_byzantine=2), x, weights),
    _aggregate(byzjax.trimmed_mean(num_byzantine=heaviest), copies),
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
  x = _float32(tables.random_messages(5, 9))
  weights = np.where(np.isin(np.arange(9), [0, 4, 8]), 0, SOME_WEIGHTS)
  with_bad = np.where(weights[:, None] == 0, _float32(bad), x)
  rule = MIDDLES[name]
  result = _aggregate(rule, with_bad, weights)
  np.testing.assert_array_equal(result, _aggregate(rule, x, weights))
  np.testing.assert_allclose(
    result, _aggregate(rule, x[weights > 0], weights[weights > 0]), 1e-6
  )


@pytest.mark.parametrize('name', MIDDLES)
def test_no_weight_at_all(name):
  x = _float32(tables.random_messages(5, 9))
  result = _aggregate(MIDDLES[name], x, np.zeros(9))
  expected = np.ones(SIZE) if name == 'majority_vote' else np.zeros(SIZE)
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('n', [11, 60])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -3e38, 1e30], ids=str)
def test_no_weights_let_f_bad_messages_into_a_trimmed_mean(bad, n):
  # A rounding error of a weight, times 1e30, would be enough.
  rule, random = byzjax.trimmed_mean(num_byzantine=3), np.random.default_rng(n)
  for seed in range(20):
    x = _float32(tables.random_messages(seed, n))
    weights = _float32(random.lognormal(sigma=2, size=n))
    # The heaviest workers: as much as it stands.
    heaviest = np.argsort(weights)[-3:]
    x[heaviest] = bad
    honest = np.delete(x, heaviest, axis=0)
    result = _aggregate(rule, x, weights)
    if 2 * weights[heaviest].sum() < weights.sum():
      assert (result >= honest.min(axis=0)).all()
      assert (result <= honest.max(axis=0)).all()
    assert np.isfinite(result).all()


def test_a_trimmed_mean_of_which_nothing_is_left_is_the_median():
  x = _float32(tables.random_messages(6, 7))
  weights = np.array([1, 1, 5, 1, 2, 1, 1.0])
  result = _aggregate(byzjax.trimmed_mean(num_byzantine=2), x, weights)
  np.testing.assert_array_equal(
    result, _aggregate(byzjax.coordinate_median(), x, weights)
  )
  # And just before, it is near to that.
  nearly = np.array([1, 1, 3.499, 1, 1, 1, 1, 1.0])
  x = np.concatenate([x, x[:1] + 1])
  np.testing.assert_allclose(
    _aggregate(byzjax.trimmed_mean(num_byzantine=1), x[:-1], nearly[:-1]),
    reference_weighted.weighted_trimmed_mean(x[:-1], nearly[:-1], 1),
    1e-3,
    1e-3,
  )


# Means around a centre.


@pytest.mark.parametrize('middle', ['mean', 'lower'])
@pytest.mark.parametrize('n', [1, 2, 7, 8])
def test_any_number_of_values_around_the_median(n, middle):
  x = _float32(tables.random_messages(7, n))
  for kept in range(1, n + 1):
    rule = byzjax.mean_around_median(
      num_byzantine=0, num_kept=kept, middle=middle
    )
    np.testing.assert_allclose(
      _aggregate(rule, x),
      reference_rules.mean_around_median(x, 0, kept, middle),
      1e-5,
      1e-6,
    )


@pytest.mark.parametrize('n, f', [(20, 6), (103, 30), (105, 30), (130, 30)])
def test_around_the_centre_of_many_messages(n, f):
  x = _float32(tables.random_messages(8, n))
  x[:f] = 1e6
  for rule, oracle in [
    (byzjax.mean_around_median, reference_rules.mean_around_median),
    (byzjax.phocas, reference_rules.phocas),
  ]:
    result = _aggregate(rule(num_byzantine=f), x)
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
  x = _float32(tables.random_messages(9, 20))
  x[:2], x[2:4] = 1e8, -1e8
  expected = make(num_byzantine=4)
  oracle = getattr(reference_rules, make.__name__)
  np.testing.assert_allclose(_aggregate(expected, x), oracle(x, 4), 1e-5, 1e-6)


# Bulyan.


@pytest.mark.parametrize(
  'kwargs',
  [
    {},
    {'num_selected': 6},
    {'num_averaged': 1},
    {'num_averaged': 5},
    {'num_neighbors': 3},
    {'num_neighbors': 10, 'num_selected': 11},
    {'distance_power': 1},
    {'distance_power': 4},
  ],
  ids=str,
)
def test_options_of_bulyan(kwargs):
  x = _float32(tables.random_messages(10))
  x[3:5] *= 10
  result = _aggregate(byzjax.bulyan(num_byzantine=2, **kwargs), x)
  renamed = {
    {'distance_power': 'power'}.get(name, name): value
    for name, value in kwargs.items()
  }
  expected = reference_rules.bulyan(x, 2, **renamed)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


def _bulyan_of_means(x, f, num_selected, num_kept):
  """Each run adds the mean of multi-Krum; who is closest to it leaves."""
  remaining, means = np.float64(x), []
  for _ in range(num_selected):
    r = len(remaining)
    scores = reference.krum_scores(remaining, f)
    best = np.argsort(scores, kind='stable')[: r - f - 2]
    means.append(remaining[best].mean(axis=0))
    distances = np.linalg.norm(remaining[best] - means[-1], axis=1)
    remaining = np.delete(remaining, best[np.argmin(distances)], axis=0)
  trimmed = (num_selected - num_kept) // 2
  return reference.trimmed_mean(np.array(means), trimmed)


@pytest.mark.parametrize('f', [1, 2])
@pytest.mark.parametrize('counts', [(None, None), (6, 2)], ids=str)
def test_bulyan_over_multi_krum(f, counts):
  x = _float32(tables.random_messages(11))
  x[:f] = 5
  rule = byzjax.bulyan(
    num_byzantine=f,
    num_selected=counts[0],
    num_averaged=counts[1],
    first_stage='multi_krum',
    second_stage='trimmed_mean',
  )
  theta = counts[0] or N - 2 * f - 2
  expected = _bulyan_of_means(x, f, theta, counts[1] or theta - 2 * f)
  np.testing.assert_allclose(_aggregate(rule, x), expected, 1e-5, 1e-6)


def test_what_bulyan_tells():
  x = _float32(tables.random_messages(12))
  x[2], x[7] = np.nan, 1e6
  aggregate, _, info = _inspect(byzjax.bulyan(num_byzantine=2), x)
  np.testing.assert_array_equal(info.mask, np.arange(N) != 2)
  assert np.asarray(info.kept).sum() == N - 4
  assert not info.kept[2] and not info.kept[7]
  # The NaN message counts as infinitely far from all.
  far = np.where(np.isnan(x), -1e6, x)
  np.testing.assert_array_equal(
    info.kept,
    np.isin(np.arange(N), reference_rules.bulyan_selection(far, 2)),
  )
  usable = np.delete(np.arange(N), 2)
  np.testing.assert_allclose(
    np.asarray(info.scores)[usable],
    reference.krum_scores(far, 2)[usable],
    1e-4,
  )
  assert info.scores[2] == np.inf
  np.testing.assert_allclose(
    aggregate, reference_rules.bulyan(far, 2), 1e-5, 1e-6
  )


@pytest.mark.parametrize('stage', ['krum', 'multi_krum'])
def test_bulyan_of_too_few_usable_messages_is_zero(stage):
  x = _float32(tables.random_messages(13))
  rule = byzjax.bulyan(num_byzantine=2, first_stage=stage)
  x[:4] = np.nan
  assert (_aggregate(rule, x) != 0).all()
  x[: 5 if stage == 'krum' else 7] = np.nan
  np.testing.assert_array_equal(_aggregate(rule, x), np.zeros(SIZE))


def test_bulyan_bounds_what_hides_in_one_coordinate():
  # A message that is as close as the others, but for one coordinate: Krum
  # takes it, off by as much as all coordinates of honest messages together.
  random = np.random.default_rng(0)
  x = _float32(random.normal(size=(11, 4000)))
  x[:2] = x[2:].mean(axis=0)
  x[:2, 0] += 40
  krum = _aggregate(byzjax.krum(num_byzantine=2), x)
  bulyan = _aggregate(byzjax.bulyan(num_byzantine=2), x)
  assert krum[0] > 30
  honest = x[2:, 0]
  assert honest.min() <= bulyan[0] <= honest.max()


# Majority vote.


def _votes(seed=0, n=9):
  """Messages with zeros of either sign in them, and ties among an even n."""
  random = np.random.default_rng(seed)
  return _float32(
    random.integers(-1, 2, (n, 40)) * random.gamma(1, size=(n, 40))
  )


@pytest.mark.parametrize('zeros', ['plus', 'abstain'])
@pytest.mark.parametrize('n', [1, 2, 9, 10, 130])
def test_votes_agree_with_the_oracle(n, zeros):
  x = _votes(n=n)
  rule = byzjax.majority_vote(zeros=zeros)
  expected = reference_rules.majority_vote(x, zeros)
  np.testing.assert_array_equal(_aggregate(rule, x), expected)
  # Equal weights tie where equal votes do.
  weights = np.full(n, 0.1, np.float32)
  np.testing.assert_array_equal(_aggregate(rule, x, weights), expected)
  if zeros == 'plus':
    assert np.isin(expected, [-1, 1]).all()


@pytest.mark.parametrize('zeros', ['plus', 'abstain'])
def test_only_signs_count(zeros):
  x, random = _votes(1), np.random.default_rng(1)
  rule = byzjax.majority_vote(zeros=zeros)
  result = _aggregate(rule, x)
  scaled = x * _float32(10 ** random.uniform(-20, 20, x.shape))
  np.testing.assert_array_equal(_aggregate(rule, scaled), result)
  shuffled = x[random.permutation(len(x))]
  np.testing.assert_array_equal(_aggregate(rule, shuffled), result)


def test_what_has_no_sign():
  x = _float32([[np.nan, np.nan, -0.0, np.inf], [-1, np.nan, -0.0, -np.inf]])
  plus, abstain = byzjax.majority_vote(), byzjax.majority_vote(zeros='abstain')
  np.testing.assert_array_equal(_aggregate(plus, x), [1, 1, 1, 1])
  np.testing.assert_array_equal(_aggregate(abstain, x), [-1, 0, 0, 0])


@pytest.mark.parametrize('f', [1, 2, 4])
def test_f_workers_change_no_vote_that_is_clear(f):
  x = _float32(np.random.default_rng(2).normal(size=(9, 200)))
  margin = np.sign(x[f:]).sum(axis=0)
  x[:f] = -1e30 * margin
  result = _aggregate(byzjax.majority_vote(), x)
  clear = np.abs(margin) > f
  assert clear.any() and (~clear).any()
  np.testing.assert_array_equal(result[clear], np.sign(margin)[clear])
  # Nor can fewer do what these did.
  changed = (np.abs(margin) < f) & (margin != 0)
  np.testing.assert_array_equal(result[changed], -np.sign(margin)[changed])


def test_weighted_votes():
  x, weights = _votes(3), np.arange(1.0, 10)
  result = _aggregate(byzjax.majority_vote(), x, weights)
  copies = np.repeat(x, np.arange(1, 10), axis=0)
  np.testing.assert_array_equal(
    result, reference_rules.majority_vote(copies, 'plus')
  )


def test_votes_keep_dtypes_and_work_sharded():
  x = _votes(4, n=8)
  messages = {'half': jnp.asarray(x[:, :7], jnp.bfloat16), 'single': x[:, 7:]}
  rule = byzjax.majority_vote()
  expected = reference_rules.majority_vote(x)
  sharded = byzjax.worker_sharded(rule, 'workers')

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=problem.mesh(4),
    in_specs=jax.P('workers'),
    out_specs=jax.P(),
  )
  def aggregate(messages):
    params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)
    return sharded.update(messages, sharded.init(params))[0]

  for result in (rule(messages), aggregate(messages)):
    assert result['half'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(_float32(result['half']), expected[:7])
    np.testing.assert_array_equal(result['single'], expected[7:])


# AKSEL.


@pytest.mark.parametrize('middle', ['mean', 'lower'])
@pytest.mark.parametrize('n, m', [(8, None), (8, 4), (9, None), (9, 1)])
def test_aksel_keeps_the_messages_closest_to_the_median(n, m, middle):
  x = _float32(tables.random_messages(14, n))
  x[:3] += 5
  rule = byzjax.aksel(num_byzantine=3, num_selected=m, middle=middle)
  result, _, info = _inspect(rule, x)
  expected = reference_rules.aksel(x, 3, m, middle)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)
  distances = np.array(reference_rules.aksel_distances(x, middle))
  np.testing.assert_allclose(info.scores, distances**2, 1e-5)
  assert (np.asarray(info.kept) == (np.asarray(info.weights) > 0)).all()
  assert np.asarray(info.kept).sum() == (m or n - 3)
  if m == 1:
    np.testing.assert_array_equal(result, x[np.argmin(distances)])


def test_aksel_keeps_whole_messages():
  # A liar in one coordinate is left out of all.
  x = np.ones((5, 3), np.float32)
  x[0] = [9, 2, 2]
  result, _, info = _inspect(byzjax.aksel(num_byzantine=1), x)
  np.testing.assert_array_equal(result, np.ones(3))
  np.testing.assert_array_equal(info.kept, np.arange(5) > 0)


# Arguments.

WRONG = [
  (byzjax.coordinate_median, {'middle': 'upper'}, 'middle'),
  (byzjax.mean_around_median, {'num_byzantine': -1}, 'num_byzantine'),
  (
    byzjax.mean_around_median,
    {'num_byzantine': 1, 'num_kept': 0},
    'num_kept .* at least 1',
  ),
  (
    byzjax.mean_around_median,
    {'num_byzantine': 1, 'middle': 'both'},
    'middle',
  ),
  (byzjax.phocas, {'num_byzantine': 1.0}, 'num_byzantine'),
  (byzjax.bulyan, {'num_byzantine': 1, 'first_stage': 'k'}, 'first_stage'),
  (byzjax.bulyan, {'num_byzantine': 1, 'second_stage': ''}, 'second_stage'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_averaged': 0}, 'num_averaged'),
  (byzjax.majority_vote, {'zeros': 'minus'}, 'zeros'),
  (byzjax.aksel, {'num_byzantine': 1, 'num_selected': 0}, 'num_selected'),
  (byzjax.aksel, {'num_byzantine': 1, 'middle': 1}, 'middle'),
]


@pytest.mark.parametrize('factory, kwargs, match', WRONG)
def test_wrong_arguments_are_named(factory, kwargs, match):
  with pytest.raises(ValueError, match=f'{factory.__name__} needs {match}'):
    factory(**kwargs)


WRONG_FOR_SEVEN = [
  (byzjax.mean_around_median, {'num_byzantine': 4}, 'got 7 and 4'),
  (
    byzjax.mean_around_median,
    {'num_byzantine': 2, 'num_kept': 6},
    'got 6 and 7 - 2',
  ),
  (byzjax.phocas, {'num_byzantine': 4}, 'got 7 and 4'),
  (byzjax.aksel, {'num_byzantine': 4}, 'got 7 and 4'),
  (byzjax.aksel, {'num_byzantine': 2, 'num_selected': 6}, 'got 6 and 7 - 2'),
  (byzjax.bulyan, {'num_byzantine': 2}, 'got 7 and 2'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_selected': 8}, 'got 8'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_selected': 2}, 'got 2'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_averaged': 5}, 'got 5'),
  (byzjax.bulyan, {'num_byzantine': 1, 'num_neighbors': 7}, 'got 7'),
  (
    byzjax.bulyan,
    {'num_byzantine': 1, 'num_averaged': 2, 'second_stage': 'trimmed_mean'},
    'got 5 and 2',
  ),
  (
    byzjax.bulyan,
    {'num_byzantine': 1, 'num_selected': 5, 'first_stage': 'multi_krum'},
    'got 5',
  ),
]


@pytest.mark.parametrize('factory, kwargs, match', WRONG_FOR_SEVEN)
def test_arguments_that_do_not_fit_the_messages(factory, kwargs, match):
  with pytest.raises(ValueError, match=f'{factory.__name__} needs .*{match}'):
    factory(**kwargs)(jnp.zeros((7, 3)))


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.mean_around_median(num_byzantine=1),
    byzjax.phocas(num_byzantine=1),
    byzjax.bulyan(num_byzantine=1),
    byzjax.aksel(num_byzantine=1),
  ],
  ids=lambda rule: rule.name,
)
def test_without_a_weighted_version(rule):
  with pytest.raises(ValueError, match=f'{rule.name} has no version'):
    rule(jnp.zeros((7, 3)), worker_weights=jnp.ones(7))
