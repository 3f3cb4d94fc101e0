"""What is particular to Bulyan and AKSEL."""

import numpy as np
import pytest

import byzjax
from tests import reference, reference_rules, tables
from tests.aggregators import instances

N, SIZE = tables.NUM_WORKERS, tables.SIZE


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
  x = np.float32(tables.random_messages(10))
  x[3:5] *= 10
  result = instances.aggregate(byzjax.bulyan(num_byzantine=2, **kwargs), x)
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
  x = np.float32(tables.random_messages(11))
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
  np.testing.assert_allclose(instances.aggregate(rule, x), expected, 1e-5, 1e-6)


def test_what_bulyan_tells():
  x = np.float32(tables.random_messages(12))
  x[2], x[7] = np.nan, 1e6
  aggregate, _, info = instances.inspect(byzjax.bulyan(num_byzantine=2), x)
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
  x = np.float32(tables.random_messages(13))
  rule = byzjax.bulyan(num_byzantine=2, first_stage=stage)
  x[:4] = np.nan
  assert (instances.aggregate(rule, x) != 0).all()
  x[: 5 if stage == 'krum' else 7] = np.nan
  np.testing.assert_array_equal(instances.aggregate(rule, x), np.zeros(SIZE))


def test_bulyan_bounds_what_hides_in_one_coordinate():
  # A message that is as close as the others, but for one coordinate: Krum
  # takes it, off by as much as all coordinates of honest messages together.
  random = np.random.default_rng(0)
  x = np.float32(random.normal(size=(11, 4000)))
  x[:2] = x[2:].mean(axis=0)
  x[:2, 0] += 40
  krum = instances.aggregate(byzjax.krum(num_byzantine=2), x)
  bulyan = instances.aggregate(byzjax.bulyan(num_byzantine=2), x)
  assert krum[0] > 30
  honest = x[2:, 0]
  assert honest.min() <= bulyan[0] <= honest.max()


# AKSEL.


@pytest.mark.parametrize('middle', ['mean', 'lower'])
@pytest.mark.parametrize('n, m', [(8, None), (8, 4), (9, None), (9, 1)])
def test_aksel_keeps_the_messages_closest_to_the_median(n, m, middle):
  x = np.float32(tables.random_messages(14, n))
  x[:3] += 5
  rule = byzjax.aksel(num_byzantine=3, num_selected=m, middle=middle)
  result, _, info = instances.inspect(rule, x)
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
  result, _, info = instances.inspect(byzjax.aksel(num_byzantine=1), x)
  np.testing.assert_array_equal(result, np.ones(3))
  np.testing.assert_array_equal(info.kept, np.arange(5) > 0)
