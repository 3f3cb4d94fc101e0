"""Compiled clusters against those of scikit-learn."""

import warnings

import jax
import numpy as np
import pytest
from sklearn import cluster

from byzjax.aggregators import _groups

N = 9


def _points(seed):
  """Few values, so many ties; or any."""
  random = np.random.default_rng(seed)
  if seed % 2:
    return random.normal(size=(N, 3))
  return random.integers(0, [3, 6][seed % 4 // 2], size=(N, 3)) / 20


def _largest(labels):
  labels = np.asarray(labels)
  if (labels < 0).all():
    return np.zeros(len(labels), bool)
  return labels == np.bincount(labels[labels >= 0]).argmax()


def _with_a_masked_point(x):
  """One more point, which is not there, amid the others."""
  mask = np.arange(N + 1) != 4
  return np.insert(x, 4, x[0], axis=0), mask


def _check(function, x, expected, *arguments):
  more, mask = _with_a_masked_point(x)
  found = np.asarray(function(more, mask, *arguments))
  assert not found[4]
  np.testing.assert_array_equal(found[mask], expected)


@pytest.mark.parametrize('min_samples', [2, 3])
def test_dbscan(min_samples):
  @jax.jit
  def largest(x, mask, radius):
    distances = _groups.distances_between(x)
    return _groups.largest_of_dbscan(distances, mask, radius, min_samples)

  with jax.enable_x64(True):
    for seed in range(60):
      x, radius = _points(seed), [0.051, 0.9, 0.08, 1.2][seed % 4]
      found = cluster.DBSCAN(eps=radius, min_samples=min_samples).fit(x)
      _check(largest, x, _largest(found.labels_), radius)


def _is_at(distances, bandwidth):
  """Whether rounding decides what is within the bandwidth."""
  return np.isclose(distances, bandwidth, 1e-9, 0).any()


def test_mean_shift():
  @jax.jit
  def largest(x, mask):
    distances = _groups.distances_between(x)
    bandwidth = _groups.bandwidth_of(distances, mask, 0.5)
    return _groups.largest_of_mean_shift(x, mask, bandwidth)

  compared = 0
  with jax.enable_x64(True), warnings.catch_warnings():
    warnings.simplefilter('ignore')  # where each point is a seed
    for seed in range(60):
      x = _points(seed)
      bandwidth = cluster.estimate_bandwidth(x, quantile=0.5)
      apart = np.linalg.norm(x[:, None] - x[None], axis=2)
      if _is_at(apart, bandwidth):
        continue
      found = cluster.MeanShift(
        bandwidth=bandwidth, bin_seeding=True, cluster_all=False
      ).fit(x)
      _check(largest, x, _largest(found.labels_))
      compared += 1
    # Equal points, where the bandwidth is 0.1.
    _check(largest, np.ones((N, 3)), np.ones(N, bool))
  assert compared > 40


def test_the_majority_is_that_of_hdbscan():
  largest = jax.jit(lambda x, mask: _groups.majority_component(x, mask)[0])
  with jax.enable_x64(True):
    for seed in range(60):
      x = _points(seed) - _points(seed)[0] * (seed % 3 > 0)
      lengths = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
      # So that equal angles are equal numbers.
      apart = np.clip(1 - np.round((x / lengths) @ (x / lengths).T, 12), 0, 2)
      np.fill_diagonal(apart, 0)
      found = cluster.HDBSCAN(
        min_cluster_size=N // 2 + 1,
        min_samples=1,
        metric='precomputed',
        allow_single_cluster=True,
        copy=True,
      ).fit(apart)
      more, mask = _with_a_masked_point(apart)
      more = np.insert(more, 4, 0, axis=1)
      np.testing.assert_array_equal(
        np.asarray(largest(more, mask))[mask], found.labels_ >= 0
      )
