"""The oracle against numbers worked out elsewhere, or by hand."""

import math

import numpy as np
import pytest

from tests import reference

LINE = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])  # with f = 1
PLANE = np.array(  # with f = 2
  [[1, 0], [0, 1], [1, 1], [2, 1], [1, 2], [10, -10], [10, -10]], np.float64
)
ZERO = np.zeros(1)

GOLDEN_LINE = {
  'mean': (reference.mean(LINE), 21.2),
  'coordinate_median': (reference.coordinate_median(LINE), 2),
  'trimmed_mean': (reference.trimmed_mean(LINE, 1), 2),
  'geometric_median': (reference.geometric_median(LINE), 2),
  'weiszfeld': (
    reference.smoothed_weiszfeld(LINE, ZERO, 3, 0.1),
    1.15079614,
  ),
  'krum': (reference.krum(LINE, 1), 1),
  'krum, n-f-1 neighbours': (reference.krum(LINE, 1, 3), 1),
  'multi_krum': (reference.multi_krum(LINE, 1, 4), 1.5),
  'clipping, 1 step': (reference.centered_clipping(LINE, ZERO, 1, 1), 0.8),
  'clipping, 3 steps': (reference.centered_clipping(LINE, ZERO, 1, 3), 1.568),
  'clipping, no radius': (
    reference.centered_clipping(LINE, ZERO + 7, math.inf, 1),
    21.2,
  ),
}
GOLDEN_PLANE = {
  'mean': (reference.mean(PLANE), [3.571429, -2.142857]),
  'coordinate_median': (reference.coordinate_median(PLANE), [1, 1]),
  'trimmed_mean': (reference.trimmed_mean(PLANE, 2), [1.333333, 0.666667]),
  'krum': (reference.krum(PLANE, 2), [1, 1]),
  'multi_krum': (reference.multi_krum(PLANE, 2, 5), [1, 1]),
  'geometric_median': (
    reference.geometric_median(PLANE),
    [1.274175, 0.649303],
  ),
  'weiszfeld': (
    reference.smoothed_weiszfeld(PLANE, np.zeros(2), 3, 0.1),
    [1.269692, 0.569647],
  ),
  'clipping, 1 step': (
    reference.centered_clipping(PLANE, np.zeros(2), 1, 1),
    [0.637566, 0.233505],
  ),
  'clipping, 3 steps': (
    reference.centered_clipping(PLANE, np.zeros(2), 2, 3),
    [1.478217, 0.377231],
  ),
}
# (n, f): z to three decimals.
ALIE_FACTORS = {
  (25, 5): 0.253,
  (25, 11): 1.068,
  (50, 24): 1.426,
  (51, 12): 0.361,
  (45, 5): 0.126,
  (53, 5): 0.105,
  (53, 12): 0.343,
  (20, 3): 0.074,
  (20, 8): 0.674,
  (100, 20): 0.286,
  (15, 3): 0.210,
  (10, 3): 0.180,
  (8, 3): 0.253,
  (12, 2): 0,
  (8, 2): 0,
  (8, 1): -0.180,
}


@pytest.mark.parametrize('name', GOLDEN_LINE)
def test_golden_on_the_line(name):
  actual, expected = GOLDEN_LINE[name]
  np.testing.assert_allclose(actual, [expected], rtol=0, atol=5e-9)


@pytest.mark.parametrize('name', GOLDEN_PLANE)
def test_golden_in_the_plane(name):
  actual, expected = GOLDEN_PLANE[name]
  # Stored to six decimals.
  np.testing.assert_allclose(actual, expected, rtol=0, atol=5.1e-7)


def test_golden_krum_scores():
  two, three = reference.krum_scores(LINE, 1), reference.krum_scores(LINE, 1, 3)
  np.testing.assert_array_equal(two, [5, 2, 2, 5, 97**2 + 98**2])
  np.testing.assert_array_equal(three, [14, 6, 6, 14, 28814])
  np.testing.assert_array_equal(
    reference.krum_scores(LINE, 1, 3, power=4)[:3], [1 + 16 + 81, 18, 18]
  )


def test_golden_mixing():
  np.testing.assert_allclose(
    reference.nearest_neighbor_mixing(LINE, 1)[:, 0],
    [1.5, 1.5, 1.5, 1.5, 26.5],
    rtol=1e-15,
  )
  np.testing.assert_allclose(
    reference.nearest_neighbor_mixing(PLANE, 2),
    5 * [[1, 1]] + 2 * [[4.8, -3.6]],
    rtol=1e-15,
  )


@pytest.mark.parametrize('n, f', ALIE_FACTORS)
def test_alie_factor(n, f):
  np.testing.assert_allclose(
    reference.alie_factor(n, f), ALIE_FACTORS[n, f], rtol=0, atol=5.1e-4
  )


def test_even_median_is_the_mean_of_the_middles():
  x = np.array([[4.0, 0.0], [1.0, 0.0], [2.0, 9.0], [100.0, 1.0]])
  np.testing.assert_array_equal(reference.coordinate_median(x), [3, 0.5])
  np.testing.assert_array_equal(reference.trimmed_mean(x, 1), [3, 0.5])


def test_ties_go_to_the_lowest_index():
  x = np.array([[0.0], [3.0], [1.0], [4.0], [9.0]])
  # Scores with one neighbour: 1, 1, 1, 1, 25.
  np.testing.assert_array_equal(reference.krum(x, 1, 1), [0])
  np.testing.assert_array_equal(reference.multi_krum(x, 1, 2, 1), [1.5])
  # Row 0 has its two neighbours at the same distance and takes row 1.
  mixed = reference.nearest_neighbor_mixing(np.array([[0.0], [1], [-1]]), 1)
  np.testing.assert_array_equal(mixed[:, 0], [0.5, 0.5, -0.5])


def test_geometric_median_at_a_row_and_away_from_all():
  # The corner of 120 degrees and more is the median of a triangle.
  obtuse = np.array([[0.0, 0.0], [4.0, 0.1], [-4.0, 0.1]])
  np.testing.assert_array_equal(reference.geometric_median(obtuse), [0, 0])
  angles = np.array([0.0, 2.0, 4.0]) * np.pi / 3
  regular = np.stack([np.cos(angles), np.sin(angles)], axis=1) + 5
  np.testing.assert_allclose(
    reference.geometric_median(regular), [5, 5], rtol=1e-14
  )
  # Weiszfeld would stop at the mean here: it is a row, but not the median.
  trap = np.array([[0.0, 0], [-1, 1], [-1, -1], [-1, 0], [3, 0]])
  np.testing.assert_array_equal(reference.mean(trap), [0, 0])
  median = reference.geometric_median(trap)
  rng = np.random.default_rng(0)
  for step in rng.normal(scale=1e-3, size=(50, 2)):
    assert reference.sum_of_distances(
      trap, median
    ) <= reference.sum_of_distances(trap, median + step)


def test_clipping_from_the_value_of_all_rows():
  x = np.full([4, 3], 2.0)
  v0 = np.array([2.0, 2.0, 12.0])
  np.testing.assert_array_equal(
    reference.centered_clipping(x, v0, 4.0, 2), [2, 2, 4]
  )
  np.testing.assert_array_equal(reference.centered_clipping(x, v0, 0, 5), v0)


def test_clipping_where_medians_ignore_a_minority():
  # Votes of one: the mean is 1/9 although the median is 1.
  votes = np.array([[1.0]] * 5 + [[-1.0]] * 4)
  np.testing.assert_allclose(
    reference.centered_clipping(votes, [-1.0], 2, 1), [1 / 9], rtol=1e-14
  )
  for rule in (reference.coordinate_median, reference.geometric_median):
    np.testing.assert_array_equal(rule(votes), [1])


def test_bucketing():
  x = np.arange(5.0)[:, None]
  np.testing.assert_array_equal(
    reference.bucketing(x, [4, 0, 1, 2, 3], 2), [[2], [1.5], [3]]
  )


def test_attacks():
  honest = np.array([[1.0, 0.0], [3.0, 0.0]])
  np.testing.assert_allclose(
    reference.alie(honest, 0.5), [2 - math.sqrt(0.5), 0], rtol=1e-15
  )
  np.testing.assert_array_equal(reference.alie(honest, -2, ddof=0), [4, 0])
  np.testing.assert_array_equal(
    reference.inner_product_manipulation(honest, 0.5), [-1, 0]
  )
  np.testing.assert_array_equal(reference.sign_flip(honest, 10), [-20, 0])
  np.testing.assert_array_equal(reference.label_flip([0, 3, 9], 10), [9, 6, 0])


def test_momentum_and_steps():
  momenta = reference.worker_momentum(np.array([[4.0], [8.0], [5.0]]), 0.75)
  np.testing.assert_array_equal(momenta, [[4], [5], [5]])
  w = np.array([1.0, 1.0])
  np.testing.assert_array_equal(reference.sgd_step(w, [3, 4], 0.5), [-0.5, -1])
  np.testing.assert_allclose(
    reference.normalized_step(w, [3, 4], 0.5), [0.7, 0.6], rtol=1e-15
  )
  np.testing.assert_array_equal(reference.normalized_step(w, [0, 0], 0.5), w)


def test_lowest_sets():
  assert list(reference.lowest_sets([3, 1, 2, 9], 2)) == [[1, 2]]
  assert list(reference.lowest_sets([2, 1, 2, 9], 2)) == [[1, 0], [1, 2]]
