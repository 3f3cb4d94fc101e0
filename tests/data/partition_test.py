import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from byzjax import data

LABELS = np.random.default_rng(0).integers(0, 10, 500).astype(np.int32)

PARTITIONS = {
  'label_sorted': lambda labels, n, seed: data.label_sorted(labels, n),
  'random_shards': lambda labels, n, seed: data.random_shards(
    labels, n, seed=seed
  ),
  'dirichlet_by_class': lambda labels, n, seed: data.dirichlet_by_class(
    labels, n, alpha=10.0, seed=seed
  ),
  'dirichlet_by_worker': lambda labels, n, seed: data.dirichlet_by_worker(
    labels, n, alpha=0.1, seed=seed
  ),
}
EQUAL_SIZES = ('random_shards', 'label_sorted', 'dirichlet_by_worker')


def shards(partition):
  return [row[:size] for row, size in zip(partition.indices, partition.sizes)]


def assert_is_partition(partition, num_examples, num_workers):
  assert partition.indices.dtype == np.int32
  assert partition.sizes.dtype == np.int32
  assert partition.indices.shape == (num_workers, partition.sizes.max())
  assert partition.sizes.min() >= 1
  everything = np.sort(np.concatenate(shards(partition)))
  np.testing.assert_array_equal(everything, np.arange(num_examples))
  for row, shard in zip(partition.indices, shards(partition)):
    np.testing.assert_array_equal(row, shard[np.arange(row.size) % shard.size])


def test_iid_gives_everything_to_everyone():
  partition = data.iid(LABELS, 7)
  everything = np.arange(LABELS.size)
  np.testing.assert_array_equal(partition.indices, [everything] * 7)
  np.testing.assert_array_equal(partition.sizes, [LABELS.size] * 7)


def class_shares(partition, labels=LABELS):
  counts = [np.bincount(labels[s], minlength=10) for s in shards(partition)]
  return np.stack(counts) / partition.sizes[:, None]


@pytest.mark.parametrize('name', PARTITIONS)
@pytest.mark.parametrize('num_workers', [1, 7, 16])
def test_every_example_belongs_to_one_worker(name, num_workers):
  partition = PARTITIONS[name](LABELS, num_workers, 0)
  assert_is_partition(partition, LABELS.size, num_workers)


@pytest.mark.parametrize('name', EQUAL_SIZES)
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  labels=st.lists(st.integers(0, 5), min_size=1, max_size=40),
  share=st.floats(0, 1),
  seed=st.integers(0, 2**32),
)
def test_equal_sizes_on_any_labels(name, labels, share, seed):
  num_workers = max(1, round(share * len(labels)))
  partition = PARTITIONS[name](np.array(labels), num_workers, seed)
  assert_is_partition(partition, len(labels), num_workers)
  assert np.ptp(partition.sizes) <= 1
  assert np.all(np.diff(partition.sizes) <= 0)


@pytest.mark.parametrize('name', PARTITIONS)
def test_is_a_function_of_the_seed(name):
  first, again, other = [PARTITIONS[name](LABELS, 5, s) for s in (1, 1, 2)]
  np.testing.assert_array_equal(first.indices, again.indices)
  same = all(map(np.array_equal, first, other))
  assert same == (name == 'label_sorted')


def test_label_sorted_is_stable_and_contiguous():
  partition = data.label_sorted(np.array([2, 0, 1, 0, 2, 1, 0]), 3)
  np.testing.assert_array_equal(
    partition.indices, [[1, 3, 6], [2, 5, 2], [0, 4, 0]]
  )
  np.testing.assert_array_equal(partition.sizes, [3, 2, 2])


@pytest.mark.parametrize(
  'partition_fn', [data.dirichlet_by_class, data.dirichlet_by_worker]
)
def test_alpha_sets_the_heterogeneity(partition_fn):
  overall = np.bincount(LABELS) / LABELS.size

  def distance(alpha):
    shares = class_shares(partition_fn(LABELS, 5, alpha=alpha, seed=0))
    return np.abs(shares - overall[None]).sum(axis=1).mean() / 2

  assert distance(1e6) < 0.2 < 0.35 < distance(0.3)


def test_dirichlet_by_class_follows_the_drawn_shares():
  labels = np.repeat([0, 1], 1000)
  partition = data.dirichlet_by_class(labels, 4, alpha=1.0, seed=3)
  rng = np.random.default_rng(3)
  for k in range(2):
    rng.permutation(1000)
    expected = rng.dirichlet(np.ones(4)) * 1000
    counts = [np.sum(labels[s] == k) for s in shards(partition)]
    np.testing.assert_allclose(counts, expected, atol=1.0)


def test_dirichlet_by_worker_gives_the_first_worker_its_own_mix():
  labels = np.repeat(np.arange(5), 10_000)
  partition = data.dirichlet_by_worker(labels, 10, alpha=1.0, seed=0)
  rng = np.random.default_rng(0)
  for _ in range(5):
    rng.permutation(10_000)
  mix = rng.dirichlet(np.ones(5))
  counts = np.bincount(labels[shards(partition)[0]], minlength=5)
  np.testing.assert_allclose(counts / 5000, mix, atol=0.03)


@pytest.mark.parametrize('alpha', [1e-320, 1e-6, 1e-3, 1e8])
def test_dirichlet_by_worker_survives_extreme_alpha(alpha):
  partition = data.dirichlet_by_worker(LABELS, 12, alpha=alpha)
  assert_is_partition(partition, LABELS.size, 12)


def test_long_tail_sizes_fall_geometrically():
  labels = np.tile(np.arange(4), 100)
  kept = data.long_tail(labels, ratio=0.29)
  assert kept.dtype == np.int32
  np.testing.assert_array_equal(np.bincount(labels[kept]), [100, 29, 8, 2])
  assert np.all(np.diff(kept) > 0)
  np.testing.assert_array_equal(kept[labels[kept] == 3], [3, 7])


def test_long_tail_keeps_one_of_each_and_all_at_ratio_one():
  labels = np.array([3, 0, 3, 1, 1])
  kept = data.long_tail(labels, ratio=1e-9)
  np.testing.assert_array_equal(labels[kept], [3, 0, 1])
  everything = data.long_tail(labels, ratio=1.0, seed=0)
  np.testing.assert_array_equal(everything, np.arange(5))


def test_long_tail_seed_changes_the_choice_but_not_the_sizes():
  first, other = [data.long_tail(LABELS, ratio=0.5, seed=s) for s in (0, 1)]
  assert not np.array_equal(first, other)
  np.testing.assert_array_equal(
    np.bincount(LABELS[first]), np.bincount(LABELS[other])
  )


@pytest.mark.parametrize('name', PARTITIONS)
def test_restrict_points_a_partition_at_the_full_data(name):
  kept = data.long_tail(LABELS, ratio=0.8, seed=0)
  partition = PARTITIONS[name](LABELS[kept], 5, 0)
  restricted = data.restrict(partition, kept)
  assert restricted.indices.dtype == np.int32
  np.testing.assert_array_equal(
    np.sort(np.concatenate(shards(restricted))), kept
  )
  np.testing.assert_array_equal(
    LABELS[restricted.indices], LABELS[kept][partition.indices]
  )


@pytest.mark.parametrize('name', PARTITIONS)
@pytest.mark.parametrize('num_workers', [0, -3, 501])
def test_refuses_a_wrong_number_of_workers(name, num_workers):
  with pytest.raises(
    ValueError,
    match=f'{name}: num_workers must be from 1 to the number of examples, '
    f'got num_workers={num_workers} for 500 examples',
  ):
    PARTITIONS[name](LABELS, num_workers, 0)


@pytest.mark.parametrize('name', PARTITIONS)
@pytest.mark.parametrize(
  'labels, found',
  [
    (np.zeros((4, 2), int), r'shape \(4, 2\)'),
    (np.zeros(4), 'dtype float64'),
    (np.array([0, -1]), 'smallest value -1'),
    (np.zeros(0, int), r'shape \(0,\)'),
  ],
)
def test_refuses_what_are_not_labels(name, labels, found):
  with pytest.raises(ValueError, match=f'{name}: labels must be .*{found}'):
    PARTITIONS[name](labels, 1, 0)


@pytest.mark.parametrize(
  'partition_fn', [data.dirichlet_by_class, data.dirichlet_by_worker]
)
@pytest.mark.parametrize('alpha', [0.0, -1.0, np.nan, np.inf])
def test_refuses_a_wrong_alpha(partition_fn, alpha):
  with pytest.raises(
    ValueError, match=f'{partition_fn.__name__}: alpha must be positive'
  ):
    partition_fn(LABELS, 5, alpha=alpha)


def test_refuses_an_empty_worker():
  with pytest.raises(
    ValueError,
    match=r'dirichlet_by_class: every worker must have an example, got none '
    r'for worker \d+ of 20. Raise alpha, lower num_workers, or change seed',
  ):
    data.dirichlet_by_class(LABELS[:40], 20, alpha=0.05)


@pytest.mark.parametrize('ratio', [0.0, -0.5, 1.1, np.nan])
def test_refuses_a_wrong_ratio(ratio):
  with pytest.raises(ValueError, match=r'long_tail: ratio must be in \(0, 1\]'):
    data.long_tail(LABELS, ratio=ratio)


def test_restrict_refuses_too_few_examples():
  with pytest.raises(
    ValueError, match=r'restrict: kept must .*\(7,\) for indices up to 499'
  ):
    data.restrict(data.iid(LABELS, 5), np.arange(7))
  with pytest.raises(ValueError, match=r'kept must be a vector .*\(500, 1\)'):
    data.restrict(data.iid(LABELS, 5), np.arange(500)[:, None])


@pytest.mark.parametrize('kept', [LABELS > 0, LABELS / 2])
def test_restrict_refuses_a_mask(kept):
  with pytest.raises(ValueError, match=f'kept must be indices.*{kept.dtype}'):
    data.restrict(data.label_sorted(LABELS, 5), kept)


def test_restrict_takes_parts_without_the_last_example():
  part = data.Partition(np.array([[0, 2], [1, 1]], np.int32), np.array([2, 1]))
  np.testing.assert_array_equal(
    data.restrict(part, np.array([5, 6, 7, 8])).indices, [[5, 7], [6, 6]]
  )
