"""How byzjax expresses the rules that only some libraries have."""

import itertools
import math

import numpy as np
import pytest

import byzjax
from tests import conformance_cases as stored
from tests import reference, reference_rules


def _check(case, actual, answers):
  """Ours is the peer's, or, where messages are tied, both are `answers`."""
  expected = _expected(case)
  answers = list(itertools.islice(answers, 10_000))
  if len(answers) == 1:
    stored.check(case, actual, expected)
    return
  assert stored.is_one_of(case, expected, answers), case['id']
  assert stored.is_one_of(case, actual, answers), case['id']


def _expected(case):
  return stored.output(case, 'output' if 'outputs' in case else None)


# Rules that work on each coordinate.


def around_centers(express, centers, count):
  """`express(n, **params)`; of values tied at the border, any may be taken."""

  def run(case):
    x = stored.messages(case)
    params = stored.params(case, len(x))
    actual = np.asarray(stored.once(express(len(x), **params), x))
    if not case['finite']:
      stored.check_bounded(case, actual)
      return
    _check_around(case, actual, [x], centers, count(len(x), **params))

  return run


def _check_around(case, actual, chosen_rows, centers, count):
  """Coordinate by coordinate, for some of the `chosen_rows`."""
  expected = _expected(case)
  assert actual.shape == expected.shape
  assert case['peer'] == 'byzfl_torch_f32' or actual.dtype == np.float64
  tied = stored.tie_tolerance(case)
  scale = stored.tolerances(case)

  def holds(vector):
    def fits(value, column, center):
      near = reference.lowest_sets(np.abs(column - center), count, tied)
      means = [column[chosen].mean() for chosen in near]
      return np.isclose(value, means, **scale).any()

    return any(
      all(map(fits, vector, rows.T, centers(rows))) for rows in chosen_rows
    )

  assert holds(expected), case['id']
  assert holds(actual), case['id']


mean_around_median = around_centers(
  lambda n, f: byzjax.mean_around_median(num_byzantine=f),
  reference_rules.coordinate_median,
  lambda n, f: n - f,
)
mean_around_lower_median = around_centers(
  lambda n, f: byzjax.mean_around_median(num_byzantine=f, middle='lower'),
  lambda x: reference_rules.coordinate_median(x, 'lower'),
  lambda n, f: n - f,
)


# Rules that average the messages of least score.


def of_least_score(express, scores, count):
  """`express(n, **params)` is the mean of the `count` of least `scores`."""

  def run(case):
    x = stored.messages(case)
    params = stored.params(case, len(x))
    actual = stored.once(express(len(x), **params), x)
    lowest = reference.lowest_sets(
      scores(x, **params),
      count(len(x), **params),
      stored.tie_tolerance(case),
    )
    _check(case, actual, (reference.mean(x[chosen]) for chosen in lowest))

  return run


def _norms(x, **params):
  return [math.hypot(*row) for row in x]


def _to_worker(worker):
  def scores(x, **params):
    own = x[worker(**params)]
    return [math.hypot(*(row - own)) for row in x]

  return scores


def _all_but_f(n, f, **params):
  return n - f


aksel = of_least_score(
  lambda n, f: byzjax.aksel(num_byzantine=f),
  lambda x, f: reference_rules.aksel_distances(x),
  _all_but_f,
)
comparative_gradient_elimination = of_least_score(
  lambda n, f: byzjax.comparative_gradient_elimination(num_byzantine=f),
  _norms,
  _all_but_f,
)
divide_and_conquer = of_least_score(
  # A draw of all coordinates: every iteration does the same.
  lambda n, num_byzantine, sub_dim, num_iters, filter_frac: (
    byzjax.divide_and_conquer(
      num_byzantine=num_byzantine,
      num_iterations=num_iters,
      num_coordinates=sub_dim,
      filter_fraction=filter_frac,
    )
  ),
  lambda x, **params: reference_rules.divide_and_conquer_scores(x),
  lambda n, num_byzantine, filter_frac, **params: (
    n - math.floor(filter_frac * num_byzantine)
  ),
)
monna = of_least_score(
  lambda n, f, idx: byzjax.monna(num_byzantine=f, reference_worker=idx),
  _to_worker(lambda f, idx: idx),
  _all_but_f,
)


def _nearest_to_the_first(n, num_closest, pivot):
  assert pivot == 'row 0'
  return byzjax.monna(
    num_byzantine=0, reference_worker=0, num_selected=num_closest
  )


nearest_neighbor_average = of_least_score(
  _nearest_to_the_first,
  _to_worker(lambda **params: 0),
  lambda n, num_closest, pivot: num_closest,
)


# Rules that choose a subset.


def of_least_subset(rule, cost_of, cost_name=None):
  """`rule` averages a subset of n - f of least `cost_of(x)(subset)`."""

  def run(case):
    x = stored.messages(case)
    f = stored.params(case, len(x))['f']
    actual, info = stored.compiled(x, rule, num_byzantine=f)
    cost = cost_of(x.astype(np.float64))
    tied = _least_subsets(len(x), f, cost, stored.tie_tolerance(case))
    chosen = tuple(np.flatnonzero(info.weights))
    assert chosen in tied, case['id']
    _check(case, actual, [reference.mean(x[list(s)]) for s in tied])
    if cost_name:
      assert cost(chosen) == pytest.approx(
        float(stored.output(case, cost_name)), rel=1e-9, abs=1e-12
      )

  return run


def _least_subsets(n, f, cost, relative_tolerance):
  costs = {s: cost(s) for s in itertools.combinations(range(n), n - f)}
  least = min(costs.values())
  slack = relative_tolerance * least
  return [subset for subset, c in costs.items() if c <= least + slack]


def _diameter(x):
  distances = [[math.hypot(*(a - b)) for a in x] for b in x]

  def diameter(subset):
    pairs = itertools.combinations(subset, 2)
    return max((distances[i][j] for i, j in pairs), default=0.0)

  return diameter


def _max_eigenvalue(x):
  return lambda subset: reference_rules.max_eigenvalue(x, subset)


minimum_diameter = of_least_subset(byzjax.minimum_diameter_averaging, _diameter)
minimum_diameter_exact = of_least_subset(
  byzjax.minimum_diameter_averaging, _diameter, 'diameter'
)
smallest_eigenvalue = of_least_subset(
  byzjax.smallest_max_eigenvalue_averaging, _max_eigenvalue
)
smallest_eigenvalue_exact = of_least_subset(
  byzjax.smallest_max_eigenvalue_averaging, _max_eigenvalue, 'eigenvalue'
)


# Bulyan.


def bulyan(case):
  """Flower's, which is the paper's."""
  x, f = stored.messages(case), case['params']['num_malicious']
  n = len(x)
  actual, _ = stored.compiled(x, byzjax.bulyan, num_byzantine=f)
  _check_around(
    case,
    np.asarray(actual),
    [x[sorted(s)] for s in _krum_selections(x, f, n - 2 * f)],
    reference.coordinate_median,
    n - 4 * f,
  )


def _krum_selections(x, f, count, relative_tolerance=1e-9):
  """The sets of rows that Krum may pick one after the other, by ties."""
  n = len(x)
  selections = {frozenset()}
  for step in range(count):
    neighbors = max(n - step - f - 2, 1)
    grown = set()
    for picked in selections:
      left = [i for i in range(n) if i not in picked]
      scores = reference.krum_scores(x[left], f, neighbors)
      for best in reference.lowest_sets(scores, 1, relative_tolerance):
        grown.add(picked | {left[best[0]]})
    selections = grown
  return selections


def bulyan_of_multi_krum(case):
  """krum's: means that multi-Krum takes, and the trimmed mean of those."""
  x, f = stored.messages(case), case['params']['f']

  def answer():
    stages = {'first_stage': 'multi_krum', 'second_stage': 'trimmed_mean'}
    return stored.compiled(x, byzjax.bulyan, num_byzantine=f, **stages)[0]

  if 'raises' in case:
    with pytest.raises(ValueError, match='bulyan needs'):
      answer()
    return
  answers = [
    reference.trimmed_mean(means, f)
    for means in _multi_krum_means(x, f, len(x) - 2 * f - 2)
  ]
  _check(case, answer(), answers)


def _multi_krum_means(x, f, count):
  """One after the other, each without the message nearest to the last mean.

  Of two messages both are nearest to their mean, and with f = 0 three are left
  in the end, of which two are nearest to each other: all choices.
  """
  if not count:
    yield []
    return
  scores = reference.krum_scores(x, f)
  for best in reference.lowest_sets(scores, len(x) - f - 2):
    mean = reference.mean(x[best])
    distances = [math.hypot(*(row - mean)) for row in x[best]]
    for (nearest,) in reference.lowest_sets(distances, 1):
      left = np.delete(x, best[nearest], axis=0)
      for means in _multi_krum_means(left, f, count - 1):
        yield [mean, *means]


# Clustering.


def clipped_clustering(case):
  """fedlib's, which adds 1e-6 to the norms when it clips."""
  x, params = stored.messages(case), case['params']
  rule = byzjax.clipped_clustering(linkage=params['linkage'])
  actual, _, info = rule.inspect(x, rule.init(x[0]))
  norms = np.linalg.norm(x, axis=1)
  assert np.median(norms) < params['max_tau']
  if params['agg'] == 'median':
    # Of the same cluster, the median.
    pre = byzjax.clip_messages(max_norm=np.median(norms))
    clipped, _ = pre.apply(x, pre.init(x[0]))
    actual = stored.once(byzjax.coordinate_median(), clipped[info.kept])
  # Which moves a clipped message by 1e-6 at most, along itself.
  slack = 1e-6 * np.abs(x / norms[:, None]).max()
  stored.check(case, actual, stored.output(case), atol=slack)


# Pre-aggregators.


def clipping(express):
  """`express(**params)`; a message that is not finite stays that, and alone."""

  def run(case):
    x = stored.messages(case)
    pre, expected = express(**case['params']), stored.output(case)
    actual = np.asarray(pre.apply(x, pre.init(x[0]))[0])
    assert actual.shape == x.shape
    usable = np.isfinite(x).all(axis=1)
    assert (np.isfinite(actual).all(axis=1) == usable).all()
    stored_rows = np.arange(len(x)) < len(expected)  # of large inputs, some
    assert case['finite'] or not usable.all()
    stored.check(
      case, actual[usable & stored_rows], expected[usable[: len(expected)]]
    )

  return run


clip_messages = clipping(lambda c: byzjax.clip_messages(max_norm=c))
adaptive_clipping = clipping(
  lambda f: byzjax.adaptive_clipping(num_byzantine=f)
)
