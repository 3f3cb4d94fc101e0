"""The oracle of further rules: golden numbers, hand work, other libraries."""

import math

import numpy as np
import pytest

from tests import conformance_cases as stored
from tests import reference
from tests import reference_rules as rules
from tests import reference_weighted as weighted
from tests.reference_test import LINE, PLANE

SEVEN = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [100.0]])
VOTES = np.array([[1.0, -1, 0], [1, 0, 0], [-1, 0, 0]])
LINED_UP = np.array([[2.0, 0], [1, 0], [4, 0], [-1, 0]])
ANGLES = np.radians([0, 39, 80, 124, 158])
FAN = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)

# core.md has these.
GOLDEN = {
  'mean_around_median': (rules.mean_around_median(LINE, 1), 1.5),
  'mda': (rules.minimum_diameter_averaging(LINE, 1), 1.5),
  'smea': (rules.smallest_max_eigenvalue_averaging(LINE, 1), 1.5),
  'arc': (rules.adaptive_clipping(LINE, 1).ravel(), [0, 1, 2, 3, 3]),
  'mean_around_median, plane': (rules.mean_around_median(PLANE, 2), [1, 1]),
  'mda, plane': (rules.minimum_diameter_averaging(PLANE, 2), [1, 1]),
  'smea, plane': (rules.smallest_max_eigenvalue_averaging(PLANE, 2), [1, 1]),
  'arc, plane': (
    rules.adaptive_clipping(PLANE, 2),
    [*PLANE[:5], [1.5811388, -1.5811388], [1.5811388, -1.5811388]],
  ),
}

# These were worked out by hand.
BY_HAND = {
  # 0, 1, 2, 3 are nearest to the trimmed mean, 2.
  'phocas': (rules.phocas(LINE, 1), 1.5),
  # The lower of the middles 1 and 2 of 0, 1, 2, 3 is tied with 0 and 2.
  'lower middle': (rules.mean_around_median(LINE[:4], 0, 2, 'lower'), 0.5),
  # Krum takes 2, 3, 1, 4, 0; 1, 2, 3 are nearest to their median.
  'bulyan': (rules.bulyan(SEVEN, 1), 2),
  'bulyan, all alike': (rules.bulyan(LINE, 0), 21.2),
  'bulyan, one of one': (rules.bulyan(SEVEN, 1, 1, 1), 2),
  'majority_vote': (rules.majority_vote(VOTES), [1, 1, 1]),
  'majority_vote, abstain': (rules.majority_vote(VOTES, 'abstain'), [1, -1, 0]),
  'aksel': (rules.aksel(LINE, 1), 1.5),
  'aksel, 3 of 5': (rules.aksel(LINE, 1, 3), 2),
  'monna': (rules.monna(LINE, 1, 4), 26.5),
  'monna, 2 of 5': (rules.monna(LINE, 1, 0, 2), 0.5),
  'cge': (rules.comparative_gradient_elimination(LINE, 1), 1.5),
  'cge, sum': (rules.comparative_gradient_elimination(LINE, 1, 'sum'), 6),
  # 10 loses its weight in the first round; what is left has no variance.
  'caf': (rules.covariance_filter([[0], [0], [0], [0], [10]], 1), 0),
  'caf, f = 0': (rules.covariance_filter(LINE, 0), 21.2),
  'caf, equal rows': (rules.covariance_filter(LINE[[3] * 5], 2), 3),
  # From the mean, 21.2, the values 3, 2, 1 are the nearest.
  'dnc': (rules.divide_and_conquer(LINE, 1), 1.5),
  'dnc, c = 2': (rules.divide_and_conquer(LINE, 1, 3, 2.0), 2),
  'dnc, c f = 1.5': (rules.divide_and_conquer(LINE, 1, 1, 1.5), 1.5),
  # 80 degrees joins 0, 39 by its nearer neighbour, 124, 158 by its farther.
  'clustering, single': (
    rules.clustering(FAN, 'single'),
    reference.mean(FAN[:3]),
  ),
  'clustering, complete': (rules.clustering(FAN), reference.mean(FAN[2:])),
  'clustering, equal sizes': (rules.clustering(FAN[:2]), FAN[0]),
  'clustering, a zero': (rules.clustering([[0], [1], [1], [2]]), 4 / 3),
  # The median norm is 1.5, and 4 with the norms seen before.
  'clipped_clustering': (rules.clipped_clustering(LINED_UP), [4 / 3, 0]),
  'clipped_clustering, later': (
    rules.clipped_clustering(LINED_UP, (100, 100, 100)),
    [7 / 3, 0],
  ),
  'clip_messages': (
    rules.clip_messages([[3, 4], [0, 0], [30, 40]], 5),
    [[3, 4], [0, 0], [3, 4]],
  ),
}


@pytest.mark.parametrize('name', GOLDEN)
def test_golden(name):
  actual, expected = GOLDEN[name]
  np.testing.assert_allclose(actual, expected, rtol=1e-7)


@pytest.mark.parametrize('name', BY_HAND)
def test_by_hand(name):
  actual, expected = BY_HAND[name]
  np.testing.assert_allclose(actual, np.full(actual.shape, expected), atol=1e-9)


# What other libraries answer where they follow the same definition.
STORED = {
  ('flower', 'bulyan'): lambda x, p: rules.bulyan(x, p['num_malicious']),
  ('byzfl_numpy', 'Meamed'): lambda x, p: rules.mean_around_median(x, p['f']),
  ('byzfl_numpy', 'MoNNA'): lambda x, p: rules.monna(x, p['f'], p['idx']),
  ('byzfl_numpy', 'MDA'): lambda x, p: rules.minimum_diameter_averaging(
    x, p['f']
  ),
  ('byzpy014', 'SMEA'): lambda x, p: rules.smallest_max_eigenvalue_averaging(
    x, p['f']
  ),
  ('reference', 'CAF_exact'): lambda x, p: rules.covariance_filter(x, p['f']),
  ('byzpy014', 'CGE'): lambda x, p: rules.comparative_gradient_elimination(
    x, p['f']
  ),
  ('krum091', 'Aksel'): lambda x, p: rules.aksel(x, p['f']),
  ('fedlib', 'DnC'): lambda x, p: rules.divide_and_conquer(
    x, p['num_byzantine'], p['num_iters'], p['filter_frac']
  ),
  ('byzfl_numpy', 'ARC'): lambda x, p: rules.adaptive_clipping(x, p['f'])[:20],
  ('byzfl_numpy', 'Clipping'): lambda x, p: rules.clip_messages(x, p['c']),
}


@pytest.mark.parametrize('peer, op', STORED)
def test_other_libraries_agree(peer, op):
  for case in stored.by_operation()[peer, op]:
    if case.get('order_dependent') or not case.get('finite', True):
      continue
    actual = STORED[peer, op](stored.messages(case), case['params'])
    name = 'output' if 'outputs' in case else None
    stored.check(case, actual, stored.output(case, name))


# Worker weights.


def _weighted_rules(f):
  v0 = np.full(3, 0.5)
  return {
    'mean': (weighted.weighted_mean, reference.mean),
    'median': (weighted.weighted_median, reference.coordinate_median),
    'trimmed_mean': (
      lambda x, w: weighted.weighted_trimmed_mean(x, w, 1),
      lambda x: reference.trimmed_mean(x, f),
    ),
    'geometric_median': (
      weighted.weighted_geometric_median,
      reference.geometric_median,
    ),
    'centered_clipping': (
      lambda x, w: weighted.weighted_centered_clipping(x, w, v0, 1.2, 3),
      lambda x: reference.centered_clipping(x, v0, 1.2, 3),
    ),
  }


def _messages(n):
  return np.random.default_rng(n).normal(size=(n, 3))


@pytest.mark.parametrize('name', _weighted_rules(1))
@pytest.mark.parametrize('n', [5, 6])
def test_equal_weights_are_none(name, n):
  weighted, unweighted = _weighted_rules(1)[name]
  x = _messages(n)
  for weight in (1.0, 0.3):
    np.testing.assert_allclose(
      weighted(x, np.full(n, weight)), unweighted(x), rtol=1e-9
    )


@pytest.mark.parametrize('name', _weighted_rules(1))
@pytest.mark.parametrize('weights', [[1, 2, 0, 3, 1, 2], [1, 1, 1, 2, 1, 1]])
def test_a_weight_is_a_number_of_copies(name, weights):
  # One worker may lie with all its weight: as many copies are to be trimmed.
  weighted, unweighted = _weighted_rules(max(weights))[name]
  x = _messages(len(weights))
  np.testing.assert_allclose(
    weighted(x, weights), unweighted(np.repeat(x, weights, axis=0)), rtol=1e-9
  )


@pytest.mark.parametrize('weights', [[1] * 6, [1, 2, 1, 3, 1, 2]])
def test_weighted_mixing(weights):
  x = _messages(len(weights))
  copies = np.repeat(x, weights, axis=0)
  np.testing.assert_allclose(
    np.repeat(
      weighted.weighted_nearest_neighbor_mixing(x, weights, 1), weights, axis=0
    ),
    reference.nearest_neighbor_mixing(copies, max(weights)),
    rtol=1e-9,
  )


@pytest.mark.parametrize(
  'weights, expected',
  [([1, 1, 2], 5.5), ([1, 1, 3], 10), ([3, 1, 1], 0), ([1, 0, 1], 5)],
)
def test_weighted_median_by_hand(weights, expected):
  actual = weighted.weighted_median([[0], [1], [10]], weights)
  np.testing.assert_allclose(actual, [expected])


def test_weighted_trimmed_mean_by_hand():
  # [1.5, 3] holds half of the interval of 1 and all of that of 2.
  actual = weighted.weighted_trimmed_mean(
    [[0], [1], [2], [3]], [1, 1, 1, 1.5], 1
  )
  np.testing.assert_allclose(actual, [5 / 3])


def test_weighted_geometric_median_is_stationary():
  x, w = _messages(7), np.array([0.3, 1, 2, 0.5, 1.5, 1, 0.1])
  z = weighted.weighted_geometric_median(x, w)
  units = [(row - z) / math.hypot(*(row - z)) for row in x]
  np.testing.assert_allclose(w @ np.array(units), np.zeros(3), atol=1e-9)
  # Half of the weight in one place decides.
  w[2] = 5
  np.testing.assert_array_equal(weighted.weighted_geometric_median(x, w), x[2])


def test_capped_weights():
  np.testing.assert_allclose(
    weighted.cap_weights([1, 1, 2, 96], 0.4), [0.15, 0.15, 0.3, 0.4]
  )
  np.testing.assert_allclose(weighted.cap_weights([1, 3], 1), [0.25, 0.75])
  with pytest.raises(ValueError, match='cannot reach one'):
    weighted.cap_weights([1, 1, 0, 0], 0.4)
