"""The bounds against the published ones, and against the worst messages."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import theory
from tests import claims, reference, reference_rules

RULES = [
  'aksel', 'bulyan', 'coordinate_median', 'covariance_filter',
  'geometric_median', 'krum', 'mean_around_median',
  'minimum_diameter_averaging', 'multi_krum', 'phocas',
  'smallest_max_eigenvalue_averaging', 'trimmed_mean',
]  # fmt: skip
# Without (f, kappa)-robustness: equal honest messages do not fix the aggregate.
UNBOUNDED = [
  'centered_clipping', 'clipped_clustering', 'clustering',
  'comparative_gradient_elimination', 'divide_and_conquer', 'fl_trust',
  'flame', 'fools_gold', 'majority_vote', 'sequential_centered_clipping',
  'sign_guard',
]  # fmt: skip


def kappa_smea(n, f):
  return 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2


PUBLISHED_KAPPA = {
  'coordinate_median': claims.kappa_median,
  'geometric_median': claims.kappa_median,
  'krum': claims.kappa_krum,
  'smallest_max_eigenvalue_averaging': kappa_smea,
  'trimmed_mean': claims.kappa_trimmed_mean,
}
# Farhadkhani et al., 2022, arXiv:2205.12173, times D for coordinate rules.
PUBLISHED_LAMBDA = {
  'coordinate_median': lambda n, f: n / (2 * (n - f)),
  'geometric_median': lambda n, f: 1 + (n - f) / math.sqrt(n * (n - 2 * f)),
  'krum': lambda n, f: 1 + math.sqrt((n - f) / (n - 2 * f)),
  'mean_around_median': lambda n, f: 2 * f / (n - f),
  'minimum_diameter_averaging': lambda n, f: 2 * f / (n - f),
  'trimmed_mean': lambda n, f: f / (n - f),
}
COORDINATE_RULES = ['coordinate_median', 'mean_around_median', 'trimmed_mean']


def settings(rule, first):
  for n in range(3, 61):
    for f in range(first, theory.max_byzantine(rule, n) + 1):
      yield n, f


@pytest.mark.parametrize('rule', RULES)
def test_no_bound_is_below_the_lower_bound(rule):
  for n, f in settings(rule, first=0):
    assert theory.kappa_bound(rule, n, f) >= theory.kappa_lower_bound(n, f)


@pytest.mark.parametrize('rule', RULES)
def test_bounds_grow_with_f(rule):
  for n, f in settings(rule, first=1):
    for bound in (theory.kappa_bound, theory.resilience_bound):
      assert bound(rule, n, f) >= bound(rule, n, f - 1)


@pytest.mark.parametrize('rule', PUBLISHED_KAPPA)
def test_kappas_do_not_exceed_the_published_ones(rule):
  for n, f in settings(rule, first=1):
    options = {'num_neighbors': n - f - 1} if rule == 'krum' else {}
    published = PUBLISHED_KAPPA[rule](n, f)
    assert theory.kappa_bound(rule, n, f, **options) <= published * (1 + 1e-12)


@pytest.mark.parametrize('rule', PUBLISHED_LAMBDA)
@pytest.mark.parametrize('d', [1, 7, 1000])
def test_lambdas_do_not_exceed_the_published_ones(rule, d):
  for n, f in settings(rule, first=1):
    options = {'num_neighbors': n - f - 1} if rule == 'krum' else {}
    published = PUBLISHED_LAMBDA[rule](n, f)
    if rule in COORDINATE_RULES:
      published *= min(math.sqrt(d), 2 * math.sqrt(n - f))
    bound = theory.resilience_bound(rule, n, f, d, **options)
    assert bound <= published * (1 + 1e-12)


def test_mixing_makes_any_bound_a_share_of_f():
  for rule in ('krum', 'geometric_median', 'trimmed_mean'):
    for n, f in settings(rule, first=1):
      alone = theory.kappa_bound(rule, n, f)
      mixed = theory.kappa_bound(f'nearest_neighbor_mixing + {rule}', n, f)
      assert mixed == pytest.approx(8 * f / (n - f) * (alone + 1))


def test_clipping_adds_little():
  for n, f in settings('trimmed_mean', first=1):
    alone = theory.kappa_bound('trimmed_mean', n, f)
    clipped = theory.kappa_bound('adaptive_clipping + trimmed_mean', n, f)
    assert alone <= clipped <= alone + 2 * f / (n - 2 * f) + 1e-12


def test_multi_krum_is_no_worse_than_krum_and_better_for_few_attackers():
  for n, f in settings('krum', first=1):
    krum = theory.kappa_bound('krum', n, f)
    for m in (1, 2, n - f):
      assert theory.kappa_bound('multi_krum', n, f, num_selected=m) <= krum
  assert theory.kappa_bound('multi_krum', 50, 1) < 0.2
  assert theory.kappa_bound('krum', 50, 1) > 2


@pytest.mark.parametrize('rule', UNBOUNDED)
def test_rules_without_a_kappa(rule):
  assert theory.kappa_bound(rule, 11, 3) == math.inf
  assert theory.resilience_bound(rule, 11, 3) == math.inf


def test_what_is_not_known_is_none():
  assert theory.kappa_bound('monna', 11, 3) is None
  assert theory.kappa_bound('bucketing + trimmed_mean', 11, 3) is None
  assert theory.kappa_bound('krum', 11, 3, num_neighbors=2) is None
  assert theory.max_byzantine('resampling + trimmed_mean', 11) is None


def test_aggregators_go_by_their_names():
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=2), byzjax.coordinate_median()
  )
  assert theory.kappa_bound(rule, 11, 2) == theory.kappa_bound(
    'nearest_neighbor_mixing + coordinate_median', 11, 2
  )


# Where the bounds are attained.


def ratio(aggregate, honest):
  mean = honest.mean(axis=0)
  variance = ((honest - mean) ** 2).sum(axis=1).mean()
  return ((aggregate - mean) ** 2).sum() / variance


def two_values(num_low, n):
  return np.concatenate([np.zeros(num_low), np.ones(n - num_low)])[:, None]


SETTINGS = [(5, 1), (7, 2), (8, 2), (9, 3), (20, 4), (21, 10)]


@pytest.mark.parametrize('n, f', SETTINGS)
def test_trimmed_mean_attains_its_bound(n, f):
  x = two_values(f, n)  # the last f are Byzantine
  worst = ratio(reference.trimmed_mean(x, f), x[: n - f])
  assert worst == pytest.approx(theory.kappa_bound('trimmed_mean', n, f))
  assert worst == pytest.approx(theory.kappa_lower_bound(n, f))


@pytest.mark.parametrize('n, f', SETTINGS)
def test_coordinate_median_attains_its_bound(n, f):
  x = two_values((n - 1) // 2, n)
  worst = ratio(reference.coordinate_median(x), x[: n - f])
  assert worst == pytest.approx(theory.kappa_bound('coordinate_median', n, f))


@pytest.mark.parametrize('n, f', [*SETTINGS, (4, 1)])
def test_the_lower_median_attains_its_bound(n, f):
  # The last f are Byzantine, with the lower ones.
  x = two_values((n + 1) // 2, n)[::-1]
  rule = byzjax.coordinate_median(middle='lower')
  worst = ratio(np.asarray(rule(x.astype(np.float32))), x[: n - f])
  assert worst == pytest.approx(theory.kappa_bound(rule, n, f))
  if (n, f) == (4, 1):
    assert theory.kappa_bound(rule, n, f) == 2
    assert theory.kappa_bound('coordinate_median', n, f) == 0.5


@pytest.mark.parametrize('n, f', SETTINGS)
def test_geometric_median_attains_its_bound(n, f):
  x = two_values(n // 2, n)
  # With half of the messages at 0 and 1 each, a push of one decides for 1.
  x[n - 1] += 1e-6 * (n % 2 == 0)
  x = np.concatenate([x, np.zeros_like(x)], axis=1)
  median = np.array([1.0, 0.0])
  distances = reference.sum_of_distances(x, median)
  for other in (0.0, 0.5, 0.999):
    assert distances <= reference.sum_of_distances(x, np.array([other, 0.0]))
  worst = ratio(median, x[: n - f])
  assert worst == pytest.approx(theory.kappa_bound('geometric_median', n, f))


def test_smallest_max_eigenvalue_averaging_attains_its_bound():
  # Three messages in common, one honest on one side, one Byzantine, a little
  # closer, on the other.
  x = np.array([[0.0], [0.0], [0.0], [1.0], [-1 + 1e-9]])
  aggregate = reference_rules.smallest_max_eigenvalue_averaging(x, 1)
  bound = theory.kappa_bound('smallest_max_eigenvalue_averaging', 5, 1)
  assert ratio(aggregate, x[:4]) == pytest.approx(bound)


def test_krum_attains_its_bound():
  # Three messages on the left are as far from the honest ones in the middle
  # as those are from the honest ones on the right.
  x = np.array([-1, -1, -1, 0, 0, 0, 1, 1, 1.0])[:, None]
  chosen = reference.krum(x, 3, num_neighbors=5)
  bound = theory.kappa_bound('krum', 9, 3, num_neighbors=5)
  assert ratio(chosen, x[3:]) == pytest.approx(bound) == 9


# Whatever the messages are.

ORACLES = {
  'aksel': reference_rules.aksel,
  'bulyan': reference_rules.bulyan,
  'covariance_filter': reference_rules.covariance_filter,
  'krum': reference.krum,
  'mean_around_median': reference_rules.mean_around_median,
  'minimum_diameter_averaging': reference_rules.minimum_diameter_averaging,
  'multi_krum': reference.multi_krum,
  'phocas': reference_rules.phocas,
  'trimmed_mean': reference.trimmed_mean,
}


@pytest.mark.parametrize('rule', ORACLES)
def test_bounds_hold_on_lattices(rule):
  # Full of ties, and of messages that several workers share.
  n, f, d = 7, theory.max_byzantine(rule, 7), 2
  random = np.random.default_rng(0)
  resilience = theory.resilience_bound(rule, n, f, d)
  kappa = theory.kappa_bound(rule, n, f)
  for _ in range(300):
    x = random.integers(-2, 3, size=(n, d)).astype(float)
    honest, aggregate = x[f:], ORACLES[rule](x, f)
    mean = honest.mean(axis=0)
    error = np.linalg.norm(aggregate - mean)
    apart = np.linalg.norm(honest[:, None] - honest[None], axis=2).max()
    assert error <= resilience * apart * (1 + 1e-9)
    variance = ((honest - mean) ** 2).sum(axis=1).mean()
    assert error**2 <= kappa * variance * (1 + 1e-9)


@pytest.mark.parametrize('num_iterations', [1, 4])
def test_clipping_displacement_holds_and_is_attained(num_iterations):
  n, f, radius = 7, 2, 0.5
  random = np.random.default_rng(0)
  bound = theory.clipping_displacement(radius, n, f, num_iterations)

  def clip(x):
    return reference.centered_clipping(x, np.zeros(2), radius, num_iterations)

  for _ in range(50):
    x, y = random.normal(size=(2, n, 2)) * 10.0 ** random.integers(-2, 3)
    y[f:] = x[f:]
    assert np.linalg.norm(clip(x) - clip(y)) <= bound * (1 + 1e-12)
  if num_iterations == 1:
    x[:f], y[:f] = [1e6, 0], [-1e6, 0]
    assert np.linalg.norm(clip(x) - clip(y)) == pytest.approx(bound)


@pytest.mark.parametrize('num_byzantine', [1, 3, 4])
@pytest.mark.parametrize(('quantile', 'radius'), [(0.5, 1.0), (0.6, 1.2)])
def test_clipping_by_a_quantile_stays_near_the_honest_mean(
  num_byzantine, quantile, radius
):
  n, f = 11, num_byzantine
  random = np.random.default_rng(0)
  closest = np.inf
  for trial in range(200):
    x = random.normal(size=(n, 3))
    start = random.normal(size=3) * 10.0 ** random.integers(-2, 4)
    mean = x[f:].mean(axis=0)
    # Liars at the centre, or far on its side: the worst that is known.
    x[:f] = start if trial % 2 else mean + (start - mean) * 10.0 ** (trial % 5)
    bound = theory.quantile_clipping_error(
      np.linalg.norm(start - mean),
      np.linalg.norm(x[f:] - mean, axis=1).max(),
      n,
      f,
      quantile=quantile,
      radius=radius,
      num_iterations=2,
    )
    found = reference.quantile_clipping(x, start, radius, quantile, 2)
    error = np.linalg.norm(found - mean)
    assert error <= bound * (1 + 1e-9)
    closest = min(closest, bound / error)
  assert closest < 4


@pytest.mark.parametrize(
  ('quantile', 'n', 'k'), [(0.7, 10, 7), (0.07, 100, 7), (0.14, 50, 7)]
)
def test_rule_and_bound_count_the_same_worker(quantile, n, k):
  # In floats, 0.07 * 100 and 0.14 * 50 are a little more than 7.
  bound = theory.quantile_clipping_error(0.0, 1.0, n, 0, quantile=quantile)
  assert bound == pytest.approx(2 * (n - k) / n)
  rule = byzjax.centered_clipping(radius=1.0, quantile=quantile)
  # At the distances 1 ... n from the centre, 0; all beyond k are cut to k.
  found = rule(jnp.arange(1.0, n + 1))
  assert float(found) == pytest.approx(
    np.minimum(np.arange(1, n + 1), k).mean()
  )


def test_clipping_by_a_quantile_comes_near_from_anywhere():
  errors = [
    theory.quantile_clipping_error(1e9, 1.0, 10, 2, num_iterations=steps)
    for steps in (1, 40)
  ]
  assert errors[0] > 1e8
  # The fixed point (2 n - f) / (n - 2 f), for k = n / 2.
  assert errors[1] == pytest.approx((2 + 2 * 5) / (10 - 4), rel=1e-4)


# What is refused.


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: theory.kappa_bound('crumb', 5, 1), "got 'crumb'"),
    (lambda: theory.kappa_bound('mixing + krum', 5, 1), 'pre-aggregators'),
    (lambda: theory.kappa_bound('krum', 6, 2), 'num_byzantine <= 1.*got 2'),
    (lambda: theory.kappa_bound('krum', 2, 0), 'num_workers >= 3.*got 2'),
    (lambda: theory.kappa_bound('krum', 6.0, 1), 'num_workers.*got 6.0'),
    (lambda: theory.kappa_bound('mean', 6, 1), 'num_byzantine <= 0'),
    (lambda: theory.kappa_bound('krum', 6, -1), 'num_byzantine.*got -1'),
    (lambda: theory.kappa_bound(None, 6, 1), 'rule to be .*got None'),
    (
      lambda: theory.kappa_bound(
        byzjax.krum(num_byzantine=1), 6, 1, num_neighbors=3
      ),
      "num_neighbors only with the name .*'krum'",
    ),
    (
      lambda: theory.kappa_bound('krum', 6, 1, num_selected=3),
      "num_selected only with the name .*'krum'",
    ),
    (lambda: theory.kappa_lower_bound(4, 2), 'got 4 and 2'),
    (lambda: theory.resilience_bound('krum', 7, 2, 0), 'num_coordinates'),
    (lambda: theory.max_byzantine('krum', 0), 'num_workers.*got 0'),
    (lambda: theory.clipping_displacement(-1.0, 3, 1), 'radius >= 0'),
    (lambda: theory.clipping_displacement(1.0, 3, 4), 'got 4 and 3'),
    (
      lambda: theory.quantile_clipping_error(1.0, 1.0, 10, 5),
      'got 5, 5 and 5',
    ),
    (
      lambda: theory.quantile_clipping_error(1.0, 1.0, 9, 2, radius=0.5),
      'radius >= 1',
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_krum_with_its_neighbours_given_needs_a_majority_only():
  assert theory.kappa_bound('krum', 5, 2, num_neighbors=2) > 0
  with pytest.raises(ValueError, match='num_byzantine <= 2'):
    theory.kappa_bound('krum', 5, 3, num_neighbors=2)


@pytest.mark.parametrize('rule', ['krum', 'bulyan', 'trimmed_mean'])
def test_max_byzantine_is_what_the_rules_accept(rule):
  x = np.zeros((11, 1), np.float32)
  most = theory.max_byzantine(rule, 11)
  getattr(byzjax, rule)(num_byzantine=most)(x)
  with pytest.raises(ValueError, match='num_byzantine'):
    getattr(byzjax, rule)(num_byzantine=most + 1)(x)
