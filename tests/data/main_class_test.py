"""A share of each worker's examples comes from its main class."""

import numpy as np
import pytest

from byzjax import data
from tests.data import partition_test as partitions

# Distinct labels need not be 0 .. K - 1, and classes differ in size a little.
CLASSES = np.array([0, 2, 3, 7, 8])
LABELS = np.random.default_rng(3).permutation(
  np.repeat(CLASSES, [100, 104, 96, 103, 97])
)


def shares(partition):
  return [
    np.count_nonzero(LABELS[shard] == CLASSES[i % 5])
    for i, shard in enumerate(partitions.shards(partition))
  ]


@pytest.mark.parametrize('share', [0.2, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize('num_workers', [5, 10, 15])
def test_exactly_the_share_and_every_example_once(share, num_workers):
  partition = data.main_class(LABELS, num_workers, share=share)
  partitions.assert_is_partition(partition, LABELS.size, num_workers)
  assert np.ptp(partition.sizes) <= 1
  expected = np.floor(share * partition.sizes + 0.5)
  np.testing.assert_array_equal(shares(partition), expected)


def test_workers_may_outnumber_the_classes_by_any_number():
  partition = data.main_class(LABELS, 7, share=0.3)
  partitions.assert_is_partition(partition, LABELS.size, 7)
  expected = np.floor(0.3 * partition.sizes + 0.5)
  np.testing.assert_array_equal(shares(partition), expected)


def test_the_rest_is_spread_over_all_other_classes():
  partition = data.main_class(LABELS, 5, share=0.4)
  for i, shard in enumerate(partitions.shards(partition)):
    counts = [np.count_nonzero(LABELS[shard] == k) for k in CLASSES]
    others = np.delete(counts, i)
    assert others.sum() == 60 and others.min() >= 5 and others.max() <= 28


def test_a_share_that_forces_every_choice():
  labels = np.repeat([0, 1], 6)
  partition = data.main_class(labels, 2, share=0.0)
  np.testing.assert_array_equal(np.sort(partition.indices[0]), np.arange(6, 12))
  whole = data.main_class(labels, 2, share=1.0)
  np.testing.assert_array_equal(np.sort(whole.indices[0]), np.arange(6))


def test_is_a_function_of_the_seed():
  first, again, other = (
    data.main_class(LABELS, 5, share=0.5, seed=s) for s in (1, 1, 2)
  )
  np.testing.assert_array_equal(first.indices, again.indices)
  assert not np.array_equal(first.indices, other.indices)


def test_refuses_what_the_classes_do_not_allow():
  with pytest.raises(
    ValueError,
    match='main_class: class 0 has 100 .* of 2 .* it needs 112.*0.67',
  ):
    data.main_class(LABELS, 6, share=0.67)
  # One class alone has nobody else to go to.
  with pytest.raises(ValueError, match='main_class: class 0 has more .*=0.5'):
    data.main_class(np.zeros(10, int), 2, share=0.5)


@pytest.mark.parametrize('share', [-0.1, 1.1, np.nan])
def test_refuses_a_wrong_share(share):
  with pytest.raises(ValueError, match='main_class needs share >= 0'):
    data.main_class(LABELS, 5, share=share)
