"""Rules that search for a subset: exact, first of the ties, bounded in cost."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax.aggregators import _minimum_diameter_averaging as mda
from byzjax.aggregators import _smallest_max_eigenvalue_averaging as smea
from tests import reference, reference_rules, subset_rows, tables

N = tables.NUM_WORKERS
RULES = {
  'mda': functools.partial(byzjax.minimum_diameter_averaging, num_byzantine=4),
  'smea': functools.partial(
    byzjax.smallest_max_eigenvalue_averaging, num_byzantine=4
  ),
  'monna': functools.partial(byzjax.monna, num_byzantine=4, reference_worker=5),
}
all_rules = pytest.mark.parametrize('make', RULES.values(), ids=RULES)


@functools.cache
def _compiled(make):
  rule = make()
  return jax.jit(lambda x: rule.inspect(x, rule.init(x[0])))


def _aggregate(make, x):
  return np.float64(_compiled(make)(jnp.asarray(x, jnp.float32))[0])


def _kept(make, x):
  info = _compiled(make)(jnp.asarray(x, jnp.float32))[2]
  return np.flatnonzero(info.kept).tolist()


# Minimum diameter averaging.


def _first_best(n, size, cost, tolerance=0.0):
  subsets = list(itertools.combinations(range(n), size))
  costs = np.array([cost(subset) for subset in subsets])
  best = costs.min()
  return subsets[int(np.argmax(costs <= best + tolerance * abs(best)))]


@functools.cache
def _least_diameter(n, size):
  @jax.jit
  def search(distances):
    mask = jnp.ones(n, bool)
    return mda.least_diameter_subset(distances, mask, size)

  return search


SIZES = [(1, 1), (2, 2), (3, 2), (5, 3), (8, 8), (8, 6), (10, 6), (12, 7)]


@pytest.mark.parametrize('n, size', SIZES)
def test_mda_is_the_first_of_all_subsets_with_the_least_diameter(n, size):
  random = np.random.default_rng(n)
  for trial in range(26):
    if trial % 3 == 0:  # no geometry at all, and many ties
      distances = random.integers(0, 4, size=(n, n)).astype(float)
      distances = np.triu(distances, 1) + np.triu(distances, 1).T
    else:
      d = 1 + trial % 4
      x = random.normal(size=(n, d))
      if trial % 3 == 1:
        x = np.round(x)  # ties
      distances = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
    distances = np.float32(distances)
    chosen = _least_diameter(n, size)(distances)

    def diameter(subset, distances=distances):
      return distances[np.ix_(subset, subset)].max()

    expected = _first_best(n, size, diameter)
    assert tuple(np.flatnonzero(chosen)) == expected


def test_mda_covers_are_found_exactly_when_there_are_some():
  random = np.random.default_rng(0)
  n, budgets = 9, range(-1, 6)
  search = jax.jit(
    lambda edges, budget: mda.has_cover(edges, jnp.ones(n, bool), budget, 5)
  )
  for density in (0.1, 0.2, 0.3, 0.5, 0.8):
    for _ in range(5):
      edges = np.triu(random.random((n, n)) < density, 1)
      edges |= edges.T
      smallest = next(
        size
        for size in range(n + 1)
        for cover in itertools.combinations(range(n), size)
        if not np.delete(np.delete(edges, cover, 0), cover, 1).any()
      )
      for budget in budgets:
        assert search(edges, budget) == (smallest <= budget)


def test_mda_attains_the_same_diameter_in_any_order():
  x = tables.random_messages(0)
  order = np.random.default_rng(0).permutation(N)
  kept, permuted = _kept(RULES['mda'], x), _kept(RULES['mda'], x[order])
  np.testing.assert_allclose(
    reference_rules.diameter(x[order], permuted),
    reference_rules.diameter(x, kept),
  )


def test_mda_of_many_messages():
  # C(50, 20) = 5e13 subsets. A planted one of 30 is closer than any other.
  random = np.random.default_rng(0)
  x = random.normal(size=(50, 20))
  x /= np.linalg.norm(x, axis=1)[:, None]
  x[random.permutation(50)[:20]] *= 10
  near = np.linalg.norm(x, axis=1) < 2
  rule = byzjax.minimum_diameter_averaging(num_byzantine=20)
  np.testing.assert_allclose(
    rule(jnp.asarray(x, jnp.float32)), x[near].mean(axis=0), 1e-5, 1e-6
  )


# Smallest maximum eigenvalue averaging.


def test_smea_ranks_subsets_in_lexicographic_order():
  for n, size in ((1, 1), (5, 2), (7, 7), (9, 5), (40, 39)):
    subsets = list(itertools.combinations(range(n), size))
    members = smea.subset_of_rank(jnp.arange(len(subsets)), n, size)
    for subset, row in zip(subsets, np.asarray(members)):
      assert tuple(np.flatnonzero(row)) == subset


@functools.cache
def _least_scatter(n, size):
  @jax.jit
  def search(inner):
    return smea.least_scatter_subset(inner, jnp.ones(n, bool), size)

  return search


@pytest.mark.parametrize('n, size', [(1, 1), (3, 2), (8, 8), (9, 6), (15, 11)])
def test_smea_is_the_first_of_all_subsets_with_the_least_eigenvalue(n, size):
  random = np.random.default_rng(n)
  for trial in range(6):
    x = random.normal(size=(n, 1 + 3 * (trial // 2)))
    if trial % 2:
      x = np.round(2 * x)  # ties
    centered = np.float32(x - x[0])

    def cost(subset, x=centered):
      return reference_rules.max_eigenvalue(x, subset)

    chosen = _least_scatter(n, size)(jnp.asarray(centered @ centered.T))
    expected = _first_best(n, size, cost, tolerance=1e-6)
    assert tuple(np.flatnonzero(chosen)) == expected


def test_smea_where_every_subset_is_as_good():
  # On a simplex no bound is above the least eigenvalue: all are computed.
  assert _kept(RULES['smea'], np.eye(N)) == list(range(N - 4))
  assert _kept(RULES['smea'], np.ones((N, 3))) == list(range(N - 4))


@pytest.mark.parametrize('num_coordinates', [1, 3, 200])
def test_smea_bounds_are_close_and_below(num_coordinates):
  random = np.random.default_rng(num_coordinates)
  x = np.float32(random.normal(size=(N, num_coordinates)))
  x[:2] *= 1e4
  x[3:8] = x[3]  # subsets without any variance
  subsets = list(itertools.combinations(range(N), 5))
  members = smea.subset_of_rank(jnp.arange(len(subsets)), N, 5)
  inner = jnp.asarray((x - x[4]) @ (x - x[4]).T)
  bounds = jax.jit(functools.partial(smea.lower_bounds, size=5))(
    inner, members.astype(jnp.float32)
  )
  eigenvalues = np.array(
    [5 * reference_rules.max_eigenvalue(x, subset) for subset in subsets]
  )
  # Four steps find all there is to five messages.
  np.testing.assert_allclose(bounds, eigenvalues, 1e-4, 1e-4)
  assert (bounds <= eigenvalues * (1 + 1e-5) + 1e-5).all()


# What they share.


@pytest.mark.parametrize('num_masked', [1, 3, 4])
@pytest.mark.parametrize(
  'make, oracle',
  [
    (RULES['mda'], reference_rules.minimum_diameter_averaging),
    (RULES['smea'], reference_rules.smallest_max_eigenvalue_averaging),
    (RULES['monna'], None),
  ],
  ids=RULES,
)
def test_masked_messages_use_up_f(make, oracle, num_masked):
  x = tables.random_messages(3)
  usable = np.sort(np.random.default_rng(0).permutation(N)[num_masked:])
  usable = np.union1d(usable, [5])
  x[np.setdiff1d(np.arange(N), usable)] = np.nan
  f = len(usable) - (N - 4)
  if oracle is None:
    node = int(np.flatnonzero(usable == 5)[0])
    expected = reference_rules.monna(x[usable], f, node)
  else:
    expected = oracle(x[usable], f)
  result = _aggregate(make, x)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@all_rules
def test_fewer_usable_messages_than_n_minus_f_are_averaged(make):
  x = tables.random_messages(4)
  x[[0, 2, 3, 7, 9, 10]] = np.inf
  assert _kept(make, x) == [1, 4, 5, 6, 8]
  result = _aggregate(make, x)
  expected = x[[1, 4, 5, 6, 8]].mean(axis=0)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@pytest.mark.parametrize('n', [1, 2, 5])
@all_rules
def test_nothing_is_left_out_without_byzantine_messages(make, n):
  options = {'reference_worker': 0} if make is RULES['monna'] else {}
  rule = make(num_byzantine=0, **options)
  x = np.float32(tables.random_messages(5, n))
  expected = reference.mean(x)
  np.testing.assert_allclose(rule(jnp.asarray(x)), expected, 1e-5, 1e-6)


@all_rules
def test_gradients_are_those_of_the_mean_of_what_was_kept(make):
  x = np.float32(tables.random_messages(6))
  rule = make()
  gradient_of = jax.jit(jax.grad(lambda x: jnp.sum(rule(x))))
  for bad in (1.0, 1e15, np.nan):
    x[:2] = bad
    gradient = gradient_of(x)
    expected = np.zeros(N)
    expected[_kept(make, x)] = 1 / (N - 4)
    np.testing.assert_allclose(
      gradient, np.tile(expected[:, None], (1, tables.SIZE)), 1e-6
    )


@all_rules
def test_mixing_in_gram_space_is_mixing_and_then_the_rule(make):
  x = np.float32(tables.random_messages(7))
  mixer = byzjax.nearest_neighbor_mixing(num_byzantine=4)
  composed = byzjax.pre_aggregate(mixer, make())(x)
  mixed, _ = mixer.apply(jnp.asarray(x), ())
  np.testing.assert_allclose(composed, _aggregate(make, mixed), 1e-5, 1e-5)


@all_rules
def test_split_coordinates_and_split_batches(make):
  rule, mesh = (
    make(),
    jax.make_mesh(
      (2, 2), ('seeds', 'coordinates'), (jax.sharding.AxisType.Auto,) * 2
    ),
  )
  spec = jax.sharding.PartitionSpec
  batches = jnp.asarray(
    np.stack([tables.random_messages(seed) for seed in range(4)]), jnp.float32
  )

  def of_shard(batches):
    # The searches must carry the type of a batch that varies over a mesh.
    return jax.lax.map(
      lambda x: rule.update(x, rule.init(x[0]), axis_name='coordinates')[0],
      batches,
    )

  split = jax.jit(
    jax.shard_map(
      of_shard,
      mesh=mesh,
      in_specs=spec('seeds', None, 'coordinates'),
      out_specs=spec('seeds', 'coordinates'),
    )
  )(batches)
  expected = [_aggregate(make, x) for x in batches]
  np.testing.assert_allclose(split, expected, 1e-5, 1e-6)


ERRORS = [
  (lambda: RULES['mda'](num_byzantine=6), r'num_workers > 2 .* 11 and 6'),
  (lambda: RULES['smea'](num_byzantine=6), r'num_workers > 2 .* 11 and 6'),
  (lambda: RULES['monna'](num_byzantine=6), r'num_workers > 2 .* 11 and 6'),
  (
    # 7 steps of bisection, 11 choices, T(5) = 12.
    lambda: RULES['mda'](num_byzantine=5, max_nodes=215),
    r'max_nodes >= 216, .* 11 messages .* 5 .* 462 subsets.* got 215',
  ),
  (
    lambda: RULES['smea'](num_byzantine=5, max_subsets=461),
    r'max_subsets >= 462, .* 11 messages .* 5, got 461',
  ),
  (
    lambda: RULES['monna'](reference_worker=11),
    r'reference_worker < num_workers, got 11 and 11',
  ),
  (
    lambda: RULES['monna'](num_selected=12),
    r'num_selected <= num_workers, got 12 and 11',
  ),
]


@pytest.mark.parametrize('make, match', ERRORS)
def test_errors_at_trace_time(make, match):
  rule = make()
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(lambda x: rule(x), jnp.zeros((N, 2)))


@pytest.mark.parametrize(
  'make, match',
  [
    (lambda: RULES['mda'](num_byzantine=-1), 'num_byzantine .* -1'),
    (lambda: RULES['mda'](max_nodes=0), 'max_nodes .* 0'),
    (lambda: RULES['smea'](num_byzantine=1.0), 'num_byzantine .* 1.0'),
    (lambda: RULES['smea'](max_subsets=0), 'max_subsets .* 0'),
    (lambda: RULES['monna'](num_selected=0), 'num_selected .* 0'),
    (lambda: RULES['monna'](reference_worker=-1), 'reference_worker .* -1'),
    (
      lambda: RULES['monna'](reference_worker=jnp.zeros(2)),
      r'reference_worker to be an integer, got float32\[2\]',
    ),
  ],
)
def test_errors_at_once(make, match):
  with pytest.raises(ValueError, match=match):
    make()


@all_rules
def test_worker_weights_are_refused(make):
  with pytest.raises(ValueError, match='worker_weights'):
    make()(jnp.zeros((N, 2)), worker_weights=jnp.ones(N))


def test_cost_of_a_search_for_covers():
  # T(k) = 1 + T(k - 1) + T(k - 3), counted by hand.
  assert [mda.num_cover_nodes(k) for k in range(6)] == [1, 2, 3, 5, 8, 12]


def test_the_ball_of_mda_is_attained_in_scale():
  # A bound so wide that it says nothing would pass everywhere else.
  honest = np.array([[0.0], [0.0], [0.0], [0.0], [0.0], [1.0]])
  center, radius = subset_rows.diameter_ball(honest, None, 5)
  x = np.concatenate([np.full((5, 1), 1.0), honest])
  rule = byzjax.minimum_diameter_averaging(num_byzantine=5)
  result = np.float64(rule(jnp.asarray(x, jnp.float32)))
  assert radius / 3 < np.linalg.norm(result - center) <= radius
