"""Examples, and workers, that training does not see."""

import numpy as np
import pytest

from byzjax import data
from tests.data import partition_test as partitions

LABELS = partitions.LABELS
UNEVEN = data.dirichlet_by_class(LABELS, 6, alpha=0.5, seed=1)


@pytest.mark.parametrize('share', [1e-9, 0.2, 0.5, 1 - 1e-9])
def test_each_worker_is_split_in_two(share):
  training, held_out = data.hold_out(UNEVEN, share=share)
  both = [partitions.shards(p) for p in (training, held_out)]
  for shard, kept, out in zip(partitions.shards(UNEVEN), *both):
    expected = np.clip(np.floor(share * shard.size + 0.5), 1, shard.size - 1)
    assert out.size == expected
    np.testing.assert_array_equal(
      np.sort(np.concatenate([kept, out])), np.sort(shard)
    )
    order = np.argsort(shard)
    for part in (kept, out):
      places = order[np.searchsorted(shard, part, sorter=order)]
      assert np.all(np.diff(places) > 0)
  for partition in (training, held_out):
    assert partition.indices.shape == (6, partition.sizes.max())
    assert partition.indices.dtype == np.int32


def test_a_worker_holds_out_the_same_among_three_and_among_six():
  few = data.Partition(UNEVEN.indices[:3], UNEVEN.sizes[:3])
  six, three = (data.hold_out(p, share=0.3, seed=2)[1] for p in (UNEVEN, few))
  for a, b in zip(partitions.shards(six), partitions.shards(three)):
    np.testing.assert_array_equal(a, b)


def test_seeds_and_workers_choose_differently():
  same = data.iid(np.zeros(50, int), 2)
  first, other = (data.hold_out(same, share=0.3, seed=s)[1] for s in (0, 1))
  assert not np.array_equal(first.indices, other.indices)
  assert not np.array_equal(first.indices[0], first.indices[1])


@pytest.mark.parametrize('num_held_out', [1, 3, 5])
def test_workers_are_one_or_the_other(num_held_out):
  training, unseen = data.held_out_workers(UNEVEN, num_held_out, seed=3)
  assert len(unseen.sizes) == num_held_out
  assert len(training.sizes) == 6 - num_held_out
  whole = [tuple(s) for s in partitions.shards(UNEVEN)]
  places = [
    [whole.index(tuple(s)) for s in partitions.shards(p)]
    for p in (training, unseen)
  ]
  assert sorted(places[0] + places[1]) == list(range(6))
  assert all(p == sorted(p) for p in places)
  for partition in (training, unseen):
    assert partition.indices.shape[1] == partition.sizes.max()


def test_held_out_workers_are_uniform():
  one_each = data.label_sorted(np.zeros(4, int), 4)
  out = [
    data.held_out_workers(one_each, 1, seed=s)[1].indices.item()
    for s in range(400)
  ]
  counts = np.bincount(out, minlength=4)
  assert np.all(np.abs(counts - 100) < 5 * np.sqrt(75))


@pytest.mark.parametrize('share', [0.0, 1.0, -0.2, np.nan])
def test_refuses_a_wrong_share(share):
  with pytest.raises(ValueError, match='hold_out: share must be strictly'):
    data.hold_out(UNEVEN, share=share)


def test_refuses_a_worker_with_one_example():
  single = data.Partition(np.array([[1, 2], [3, 3]]), np.array([2, 1]))
  with pytest.raises(ValueError, match='hold_out: .* got 1 for worker 1'):
    data.hold_out(single, share=0.5)


@pytest.mark.parametrize(
  'num_held_out, found', [(0, 'at least 1, got 0'), (6, 'got 6 and 6')]
)
def test_refuses_a_wrong_number_of_workers(num_held_out, found):
  with pytest.raises(ValueError, match=f'held_out_workers needs .*{found}'):
    data.held_out_workers(UNEVEN, num_held_out)
