"""Routers: nearest centres, products of them, learned ones, and shards."""

import sys

import numpy as np
import pytest

from byzjax import data, models


def blobs(num_blobs=4, size=30, width=6, seed=0):
  rng = np.random.default_rng(seed)
  centers = 10 * rng.normal(size=(num_blobs, width))
  labels = rng.permutation(np.repeat(np.arange(num_blobs), size))
  return centers[labels] + rng.normal(size=(labels.size, width)), labels


def same_partition(one, two):
  """Whether two labelings differ in the names of the labels only."""
  pairs = set(zip(one.tolist(), two.tolist()))
  return len(pairs) == len(set(one.tolist())) == len(set(two.tolist()))


def test_one_path_gets_all():
  z, _ = blobs()
  assert not data.route(data.cluster_documents(z, 1), z).any()


def test_clusters_are_those_of_scikit_learn():
  from sklearn import cluster

  z = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
  router = data.cluster_documents(z, 7, seed=3)
  model = cluster.KMeans(7, n_init=10, random_state=3).fit(np.float64(z))
  np.testing.assert_array_equal(data.route(router, z), model.labels_)
  # Scores are distances but for what all paths have in common.
  distances = np.square(z[:, None] - model.cluster_centers_[None]).sum(-1)
  scores = data.path_scores(router, z) - np.square(z).sum(1, keepdims=True)
  np.testing.assert_allclose(scores, -distances, rtol=1e-4, atol=1e-4)


def test_clusters_find_blobs_and_depend_on_the_seed_alone():
  z, labels = blobs()
  paths = data.route(data.cluster_documents(z, 4), z)
  assert same_partition(paths, labels)
  again = data.route(data.cluster_documents(z, 4), z)
  np.testing.assert_array_equal(paths, again)


def test_a_product_is_a_pair_of_clusters():
  """Each half of the features decides on its own module, in grid order."""
  z = np.random.default_rng(2).normal(size=(150, 7))
  paths = data.route(data.product_cluster_documents(z, (2, 3), seed=5), z)
  assert paths.max() == 5
  modules = models.grid_paths((2, 3))[paths]
  for level, (part, count) in enumerate([(z[:, :4], 2), (z[:, 4:], 3)]):
    alone = data.route(data.cluster_documents(part, count, seed=5), part)
    np.testing.assert_array_equal(modules[:, level], alone)


def test_separable_labels_are_reproduced():
  z, labels = blobs()
  scores = np.random.default_rng(1).normal(size=(labels.size, 4))
  scores[np.arange(labels.size), labels] += 9.0
  for calibrate in (False, True):
    router = data.discriminative_router(z, scores, calibrate=calibrate)
    np.testing.assert_array_equal(data.route(router, z), scores.argmax(1))


@pytest.mark.parametrize('num_paths', [2, 5])
def test_calibration_gives_paths_the_frequencies_of_their_labels(num_paths):
  """Features that say little: without it the largest path takes nearly all."""
  rng = np.random.default_rng(4)
  shares = np.array([0.6, 0.4]) if num_paths == 2 else np.arange(5, 0, -1) / 15
  labels = rng.choice(num_paths, size=600, p=shares)
  z = rng.normal(size=(600, 3)) + 0.3 * np.eye(num_paths, 3)[labels]
  scores = np.eye(num_paths)[labels]
  counts = np.bincount(labels, minlength=num_paths)

  def misses(calibrate):
    router = data.discriminative_router(z, scores, calibrate=calibrate)
    won = np.bincount(data.route(router, z), minlength=num_paths)
    return np.abs(won - counts).sum()

  assert misses(False) > 60
  assert misses(True) <= 2


def test_a_path_that_is_never_best_is_never_chosen():
  z, labels = blobs(3)
  scores = np.full((labels.size, 5), -7.0)
  scores[np.arange(labels.size), 2 * (labels % 2)] = -1.0
  scores[:, 4] = np.nan
  router = data.discriminative_router(z, scores)
  assert set(data.route(router, 50 * z)) <= {0, 2}
  only = data.discriminative_router(z, np.eye(5)[np.full(labels.size, 3)])
  assert set(data.route(only, z)) == {3}


def test_two_paths_for_each_document_double_the_shards():
  z, _ = blobs(seed=3)
  router = data.cluster_documents(z, 4)
  both = data.top_paths(router, z)
  assert both.shape == (120, 2) and np.all(both[:, 0] != both[:, 1])
  np.testing.assert_array_equal(both[:, 0], data.route(router, z))
  alone = data.routed_shards(data.route(router, z), 4)
  overlap = data.routed_shards(both, 4)
  assert alone.sizes.sum() == 120 and overlap.sizes.sum() == 240
  for path in range(4):
    mine = set(overlap.indices[path, : overlap.sizes[path]].tolist())
    assert mine == set(np.flatnonzero((both == path).any(axis=1)).tolist())


def test_shards_of_unequal_sizes():
  shards = data.routed_shards(np.array([2, 0, 2, 1, 2]), 3)
  np.testing.assert_array_equal(shards.sizes, [1, 1, 3])
  np.testing.assert_array_equal(shards.indices[2], [0, 2, 4])
  np.testing.assert_array_equal(shards.indices[0], [1, 1, 1])


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda z: data.cluster_documents(z[0], 2), 'features to be finite'),
    (lambda z: data.cluster_documents(z * np.nan, 2), 'with NaN or inf'),
    (lambda z: data.cluster_documents(z, 121), 'got 120 for 121'),
    (lambda z: data.cluster_documents(z, 0), 'num_paths to be a Python int'),
    (lambda z: data.product_cluster_documents(z, ()), '1 to 6 entries'),
    (
      lambda z: data.discriminative_router(z, np.ones((9, 2))),
      r'scores \[120, num_paths\], .* got the shape \[9, 2\]',
    ),
    (
      lambda z: data.discriminative_router(
        z, np.ones((120, 2)), regularization=0.0
      ),
      'regularization > 0',
    ),
    (
      lambda z: data.route(data.cluster_documents(z, 2), z[:, :3]),
      r'features \[N, 6\], got the shape \[120, 3\]',
    ),
    (
      lambda z: data.top_paths(data.cluster_documents(z, 2), z, 3),
      'num_paths <= 2, .* got 3',
    ),
    (lambda z: data.routed_shards(np.array([0, 2]), 3), r'got none for \[1\]'),
    (lambda z: data.routed_shards(np.array([0, 3]), 3), r'in \[0, 3\), got 0'),
    (lambda z: data.routed_shards(np.zeros(3), 3), 'paths to be integers'),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=f'needs .*{message}'):
    call(blobs()[0])


def test_without_scikit_learn(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn.cluster', None)
  with pytest.raises(ValueError, match='cluster_documents needs scikit-learn'):
    data.cluster_documents(blobs()[0], 2)
