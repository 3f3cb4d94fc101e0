"""Label skew by total concentration."""

import numpy as np
import pytest

from byzjax import data
from tests.data import partition_test as partitions

LABELS = partitions.LABELS


@pytest.mark.parametrize('num_workers', [1, 7, 16, 500])
@pytest.mark.parametrize('concentration', [1e-320, 1e-3, 0.1, 1e8])
def test_every_example_belongs_to_one_worker(num_workers, concentration):
  partition = data.dirichlet_total(
    LABELS, num_workers, concentration=concentration
  )
  partitions.assert_is_partition(partition, LABELS.size, num_workers)
  assert np.ptp(partition.sizes) <= 1


def test_the_first_worker_draws_around_the_class_frequencies():
  labels = np.repeat(np.arange(3), [30_000, 15_000, 5_000])
  partition = data.dirichlet_total(labels, 10, concentration=2.0, seed=4)
  rng = np.random.default_rng(4)
  for size in (30_000, 15_000, 5_000):
    rng.permutation(size)
  mix = rng.dirichlet(2.0 * np.array([0.6, 0.3, 0.1]))
  first = partition.indices[0, : partition.sizes[0]]
  counts = np.bincount(labels[first], minlength=3)
  np.testing.assert_allclose(counts / 5000, mix, atol=0.03)


def first_shares(concentration, num_draws=300):
  labels = np.repeat(np.arange(4), 50)
  found = []
  for seed in range(num_draws):
    partition = data.dirichlet_total(
      labels, 4, concentration=concentration, seed=seed
    )
    found.append(np.bincount(labels[partition.indices[0]], minlength=4) / 50)
  return np.array(found)


def test_concentration_is_that_of_all_classes_together():
  shares = first_shares(1.0)
  np.testing.assert_allclose(shares.mean(axis=0), np.full(4, 0.25), atol=0.08)
  # Var = (1/4)(3/4)/(1 + 1), and a little of the draws.
  np.testing.assert_allclose(shares.var(), 3 / 32, rtol=0.15)


def test_harsher_than_the_same_number_for_each_class():
  def classes_seen(partition):
    counts = partitions.class_shares(partition)
    return np.mean([np.count_nonzero(c > 0.02) for c in counts])

  total = data.dirichlet_total(LABELS, 10, concentration=0.1)
  each = data.dirichlet_by_worker(LABELS, 10, alpha=0.1)
  assert classes_seen(total) < classes_seen(each)


def test_is_a_function_of_the_seed():
  first, again, other = (
    data.dirichlet_total(LABELS, 5, concentration=1.0, seed=s)
    for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(first.indices, again.indices)
  assert not np.array_equal(first.indices, other.indices)


@pytest.mark.parametrize('concentration', [0.0, -1.0, np.nan, np.inf])
def test_refuses_a_wrong_concentration(concentration):
  with pytest.raises(
    ValueError, match='dirichlet_total: concentration must be positive and'
  ):
    data.dirichlet_total(LABELS, 5, concentration=concentration)


def test_refuses_too_many_workers():
  with pytest.raises(ValueError, match='dirichlet_total: num_workers must'):
    data.dirichlet_total(LABELS, 501, concentration=1.0)
