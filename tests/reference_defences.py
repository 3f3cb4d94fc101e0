"""The test oracle of FoolsGold, FLAME and SignGuard.

In the manner of `reference_rules.py`: NumPy float64, loops over workers,
nothing from byzjax. Mean shift, which no few lines are, is scikit-learn's.
"""

import math
import statistics
import warnings

import numpy as np

from tests import reference
from tests.reference import norm

_GATE = {'mean': lambda a, n: sum(a), 'mean_of_all': lambda a, n: n}


def cosine(a, b):
  """The cosine; 0 where a vector is zero."""
  if not norm(a) or not norm(b):
    return 0.0
  return float((a / norm(a)) @ (b / norm(b)))


# FoolsGold.


def fools_gold_weights(history, confidence=1.0, epsilon=0.0):
  """Fung, Yoon, Beschastnikh, 2018, arXiv:1808.04866."""
  n = len(history)
  cosines = [
    [cosine(history[i], history[j]) if i != j else 0.0 for j in range(n)]
    for i in range(n)
  ]
  v = [max(row) + epsilon for row in cosines]
  a = []
  for i in range(n):
    row = [
      c * v[i] / v[j] if v[i] < v[j] else c for j, c in enumerate(cosines[i])
    ]
    trust = min(max(1 - max(row), 0), 1)
    a.append(trust if trust > 1e-12 else 0.0)
  largest = max(a)
  if not largest:
    a, largest = [1.0] * n, 1.0
  return [_gate(trust / largest, confidence, epsilon) for trust in a]


def _gate(trust, confidence, epsilon):
  trust = 0.99 if trust >= 1 else trust
  odds = trust / (1 - trust) + epsilon
  if odds == 0:
    return 0.0
  return min(max(confidence * (math.log(odds) + 0.5), 0), 1)


def fools_gold(x, past=0, reduce='mean', confidence=1.0, epsilon=0.0):
  """The weighted messages, by the sum of all that came before and of these."""
  x = np.asarray(x, np.float64)
  a = fools_gold_weights(x + past, confidence, epsilon)
  total = sum(ai * row for ai, row in zip(a, x))
  return total if reduce == 'sum' else total / _GATE[reduce](a, len(x))


# FLAME.


def components(near):
  """The connected components of a graph, bool[n, n], by their lowest index."""
  n, found, seen = len(near), [], set()
  for i in range(n):
    if i in seen:
      continue
    part, todo = {i}, [i]
    while todo:
      k = todo.pop()
      new = {j for j in range(n) if near[k][j]} - part
      part |= new
      todo += new
    seen |= part
    found.append(sorted(part))
  return found


def flame_cluster(x):
  """The first component of more than half, as the threshold grows."""
  n = len(x)
  distances = [
    [0.0 if i == j else 1 - cosine(x[i], x[j]) for j in range(n)]
    for i in range(n)
  ]
  for t in sorted(sum(distances, [])):
    # Merges at one distance, up to rounding, count at once.
    parts = components(np.array(distances) <= t + 1e-12)
    largest = max(parts, key=len)
    if len(largest) > n / 2:
      return largest
  raise AssertionError('all hang together at the largest distance')


def clipped(x, limit):
  """`x_i min(1, limit / |x_i|)`."""
  return np.array([r if norm(r) <= limit else r * (limit / norm(r)) for r in x])


def flame(x, middle=statistics.median):
  """Without noise. Nguyen, Rieger, et al., 2022, arXiv:2101.02281."""
  x = np.asarray(x, np.float64)
  limit = middle([norm(row) for row in x])
  return reference.mean(clipped(x, limit)[flame_cluster(x)])


# SignGuard.


def dbscan(points, radius, min_samples):
  """The largest cluster of DBSCAN, or nothing."""
  n = len(points)
  near = [[norm(p - q) <= radius for q in points] for p in points]
  core = [i for i in range(n) if sum(near[i]) >= min_samples]
  linked = [
    [near[i][j] and i in core and j in core for j in range(n)] for i in range(n)
  ]
  clusters = [part for part in components(linked) if part[0] in core]
  for i in sorted(set(range(n)) - set(core)):
    at = [part for part in clusters if any(near[i][j] for j in part)]
    # Of core points only: those that joined before are none.
    at = [p for p in at if any(near[i][j] and j in core for j in p)]
    if at:
      at[0].append(i)
  return sorted(max(clusters, key=len, default=[]))


def mean_shift(points):
  """scikit-learn's largest cluster; the bandwidth 0.1 in place of 0."""
  from sklearn import cluster

  bandwidth = cluster.estimate_bandwidth(points, quantile=0.5) or 0.1
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # each point is a seed
    found = cluster.MeanShift(
      bandwidth=bandwidth, bin_seeding=True, cluster_all=False
    ).fit(points)
  labels = found.labels_
  if (labels < 0).all():
    return []
  largest = np.bincount(labels[labels >= 0]).argmax()
  return np.flatnonzero(labels == largest).tolist()


def sign_features(x):
  """The shares of plus, zero and minus, in units of the largest."""
  shares = np.array(
    [[(row > 0).mean(), (row == 0).mean(), (row < 0).mean()] for row in x]
  )
  return shares / (shares.max(axis=0) + 1e-8)


def fourth_feature(x, feature, previous=None):
  """Of the likeness to the previous output, or, without one, to the others."""
  n, low = len(x), statistics.median_low
  if feature == 'cosine':
    if previous is None:
      s = [
        low([cosine(x[i], x[j]) if i != j else 0.0 for j in range(n)])
        for i in range(n)
      ]
    else:
      s = [cosine(row, previous) for row in x]
    return [min(max(si, 0), low(s)) / (5 * low(s) + 1e-8) for si in s]
  if previous is None:
    s = [sum(sorted(norm(a - b) for b in x)[: n // 2]) for a in x]
  else:
    s = [norm(row - previous) for row in x]
  return [0.2 if si >= 1.1 * low(s) else 0.0 for si in s]


def sign_guard(x, method='mean_shift', feature='signs', previous=None, **given):
  """With all coordinates. Xu, Huang, Song, Lan, 2022, arXiv:2109.05872."""
  x = np.asarray(x, np.float64)
  norms = [norm(row) for row in x]
  middle = statistics.median(norms)
  usual = [i for i, r in enumerate(norms) if 0.1 * middle < r < 3 * middle]
  points = sign_features(x)
  if feature != 'signs':
    more = fourth_feature(x, feature, previous)
    points = np.concatenate([points, np.array(more)[:, None]], axis=1)
  if method == 'dbscan':
    cluster = dbscan(
      points, given.get('radius', 0.05), given.get('min_samples', 2)
    )
  else:
    cluster = mean_shift(points)
  kept = [i for i in usual if i in cluster] or list(range(len(x)))
  return reference.mean(clipped(x, statistics.median_low(norms))[kept])
