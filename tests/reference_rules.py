"""The test oracle of the rules that `reference.py` does not have.

In the same manner: NumPy float64, loops over workers, nothing from byzjax, each
function its formula. Rules take finite `x` [n, d] and give [d]. Of tied workers
the lowest index is first; of tied values of one coordinate the smaller.
"""

import itertools
import math
import statistics

import numpy as np

from tests import reference
from tests.reference import norm, rows_of, smallest

_MEDIANS = {'mean': statistics.median, 'lower': statistics.median_low}


def coordinate_median(x, middle='mean'):
  """Per coordinate; of two middles their mean, or the lower."""
  return np.array([_MEDIANS[middle](column) for column in rows_of(x).T])


def _mean_around(x, centers, count):
  """Per coordinate, the mean of the `count` values nearest to the center."""
  means = []
  for column, center in zip(x.T, centers):
    near = sorted(column, key=lambda v: (abs(v - center), v))[:count]
    means.append(math.fsum(near) / count)
  return np.array(means)


# Coordinate rules.


def mean_around_median(x, f, num_kept=None, middle='mean'):
  """Per coordinate, the mean of the n - f values nearest to the median.

  Xie, Koyejo, Gupta, 2018, arXiv:1802.10116.
  """
  x = rows_of(x)
  count = len(x) - f if num_kept is None else num_kept
  return _mean_around(x, coordinate_median(x, middle), count)


def phocas(x, f):
  """Per coordinate, the mean of the n - f nearest to the f-trimmed mean.

  Xie, Koyejo, Gupta, 2018, arXiv:1805.09682.
  """
  x = rows_of(x)
  return _mean_around(x, reference.trimmed_mean(x, f), len(x) - f)


def majority_vote(x, zeros='plus'):
  """`sign(sum_i sign(x_i))` per coordinate.

  'plus': `sign(0) = 1`, of messages and of the sum, so that a tie is +1.
  'abstain': `sign(0) = 0`. Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019,
  arXiv:1810.05291.
  """

  def sign(value):
    if value == 0:
      return {'plus': 1, 'abstain': 0}[zeros]
    return 1 if value > 0 else -1

  return np.array([float(sign(sum(map(sign, c)))) for c in rows_of(x).T])


# Rules of distances and norms.


def bulyan_selection(x, f, num_selected=None, num_neighbors=None, power=2):
  """The rows that Krum picks, one after the other, out of what remains.

  theta = n - 2 f picks. Of m remaining rows, scores sum the distances to the
  m - f - 2 nearest others (to k, k - 1, ... where k = `num_neighbors` is
  given), but never to fewer than one.
  """
  x = rows_of(x)
  n = len(x)
  theta = n - 2 * f if num_selected is None else num_selected
  k = n - f - 2 if num_neighbors is None else num_neighbors
  remaining, picked = list(range(n)), []
  for step in range(theta):
    neighbors = max(k - step, 1)
    scores = reference.krum_scores(x[remaining], f, neighbors, power)
    picked.append(remaining.pop(smallest(scores, 1)[0]))
  return picked


def bulyan(
  x, f, num_selected=None, num_averaged=None, num_neighbors=None, power=2
):
  """Per coordinate, the mean of the beta selected values nearest their median.

  beta = theta - 2 f of the theta that Krum selects. El Mhamdi, Guerraoui,
  Rouault, 2018, arXiv:1802.07927.
  """
  x = rows_of(x)
  chosen = x[bulyan_selection(x, f, num_selected, num_neighbors, power)]
  beta = len(chosen) - 2 * f if num_averaged is None else num_averaged
  return _mean_around(chosen, coordinate_median(chosen), beta)


def aksel_distances(x, middle='mean'):
  """`|x_i - med|`, med the coordinate-wise median."""
  x = rows_of(x)
  center = coordinate_median(x, middle)
  return [norm(row - center) for row in x]


def aksel(x, f, num_selected=None, middle='mean'):
  """The mean of the n - f rows nearest to the coordinate-wise median.

  Boussetta, El-Mhamdi, Guerraoui, Maurer, Rouault, 2020, OPODIS.
  """
  x = rows_of(x)
  count = len(x) - f if num_selected is None else num_selected
  return reference.mean(x[smallest(aksel_distances(x, middle), count)])


def monna(x, f, reference_worker, num_selected=None):
  """The mean of the n - f rows nearest to that of the reference worker.

  Its own is the first of them. Farhadkhani, Guerraoui, Gupta, Hoang, Pinot,
  Stephan, 2023, arXiv:2209.10931.
  """
  x = rows_of(x)
  own = x[reference_worker]
  count = len(x) - f if num_selected is None else num_selected
  others = [i for i in range(len(x)) if i != reference_worker]
  near = smallest([norm(x[i] - own) for i in others], count - 1)
  return reference.mean(x[[reference_worker, *(others[k] for k in near)]])


def comparative_gradient_elimination(x, f, reduce='mean'):
  """The mean, or the sum, of the n - f rows with the least norms.

  Gupta, Liu, Vaidya, 2020, arXiv:2008.04699.
  """
  x = rows_of(x)
  kept = x[smallest([norm(row) for row in x], len(x) - f)]
  return {'mean': reference.mean, 'sum': sum}[reduce](kept)


# Rules that search subsets.


def _best_subset(n, size, cost):
  """The first subset of the least cost, in lexicographic order."""
  return min(itertools.combinations(range(n), size), key=cost)


def diameter(x, subset):
  """`max |x_i - x_j|` over i, j in the subset."""
  pairs = itertools.combinations(subset, 2)
  return max((norm(x[i] - x[j]) for i, j in pairs), default=0.0)


def minimum_diameter_averaging(x, f):
  """The mean of the n - f rows with the least diameter.

  El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, 2020, arXiv:1905.03853.
  """
  x = rows_of(x)
  n = len(x)
  distances = {
    (i, j): norm(x[i] - x[j]) for i, j in itertools.combinations(range(n), 2)
  }

  def cost(subset):
    pairs = itertools.combinations(subset, 2)
    return max((distances[pair] for pair in pairs), default=0.0)

  return reference.mean(x[list(_best_subset(n, n - f, cost))])


def max_eigenvalue(x, subset):
  """The largest eigenvalue of the covariance of the rows of the subset."""
  rows = rows_of(x)[list(subset)]
  centered = rows - reference.mean(rows)
  if centered.shape[1] > len(rows):
    centered = centered.T  # the same eigenvalues but for zeros
  return np.linalg.eigvalsh(centered.T @ centered / len(rows))[-1]


def smallest_max_eigenvalue_averaging(x, f):
  """The mean of the n - f rows whose covariance has the least top eigenvalue.

  Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
  arXiv:2302.01772.
  """
  x = rows_of(x)
  n = len(x)
  best = _best_subset(n, n - f, lambda subset: max_eigenvalue(x, subset))
  return reference.mean(x[list(best)])


# Rules of eigenvectors.


def covariance_filter(x, f):
  """Lowers the weights of what sticks out along the top eigenvector (CAF).

  While `sum_i c_i > n - 2 f`: mu and Sigma are the c-weighted mean and
  covariance with the top eigenpair (lambda, v), `t_i = ((x_i - mu) v)^2`, and
  `c_i <- c_i (1 - t_i / max t)` with the largest t of the rows of weight above
  zero. The answer is the mu of the least lambda. Allouah, Guerraoui, Stephan,
  2025, arXiv:2505.01874.
  """
  x = rows_of(x)
  n = len(x)
  c, best, least = np.ones(n), reference.mean(x), math.inf
  while math.fsum(c) > n - 2 * f:
    mu = sum(ci * row for ci, row in zip(c, x)) / math.fsum(c)
    covariance = sum(
      ci * np.outer(row - mu, row - mu) for ci, row in zip(c, x)
    ) / math.fsum(c)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    if eigenvalues[-1] < least:
      best, least = mu, eigenvalues[-1]
    t = [float((row - mu) @ eigenvectors[:, -1]) ** 2 for row in x]
    largest = max(ti for ti, ci in zip(t, c) if ci > 0)
    if largest == 0:
      break
    c = np.array([ci * max(1 - ti / largest, 0) for ci, ti in zip(c, t)])
  return best


def divide_and_conquer_scores(x):
  """`((x_i - mean) v)^2`, v the top right singular vector of `x - mean`."""
  x = rows_of(x)
  centered = x - reference.mean(x)
  v = np.linalg.svd(centered, full_matrices=False)[2][0]
  return [float(row @ v) ** 2 for row in centered]


def divide_and_conquer(x, f, num_iterations=1, filter_fraction=1.0):
  """The mean of the rows that keep a low score in every iteration (DnC).

  Each keeps the `n - floor(c f)` lowest; with all coordinates in every
  iteration, all iterations agree. Shejwalkar, Houmansadr, 2021, NDSS.
  """
  x = rows_of(x)
  count = len(x) - math.floor(filter_fraction * f)
  good = set(range(len(x)))
  for _ in range(num_iterations):
    good &= set(smallest(divide_and_conquer_scores(x), count))
  return reference.mean(x[sorted(good)])


# Rules of directions.


def _cosine_distance(a, b):
  # A zero vector has no direction: it counts as orthogonal to all others.
  if not norm(a) or not norm(b):
    return 1.0
  return 1 - float((a / norm(a)) @ (b / norm(b)))


_LINKAGES = {'complete': max, 'single': min, 'average': statistics.fmean}


def largest_cluster(x, linkage):
  """The larger of two clusters; of equal ones that of the lowest index.

  Agglomerative: the two clusters at the least distance are merged until there
  are two; that distance is the largest, mean or least of their pairs.
  """
  x = rows_of(x)
  clusters = [[i] for i in range(len(x))]

  def distance(pair):
    a, b = clusters[pair[0]], clusters[pair[1]]
    return _LINKAGES[linkage](
      [_cosine_distance(x[i], x[j]) for i in a for j in b]
    )

  while len(clusters) > 2:
    pairs = itertools.combinations(range(len(clusters)), 2)
    i, j = min(pairs, key=distance)
    clusters[i] = sorted(clusters[i] + clusters.pop(j))
  return max(clusters, key=len)


def clustering(x, linkage='complete'):
  """The mean of the larger of two clusters by cosine distance.

  Sattler, Mueller, Wiegand, Samek, 2020, arXiv:1910.01991.
  """
  return reference.mean(rows_of(x)[largest_cluster(x, linkage)])


def clipped_clustering(x, past_norms=(), linkage='average'):
  """`clustering` after clipping to the median of all norms seen so far.

  Li, Ngai, Voigt, 2021, doi:10.36227/techrxiv.19560325.
  """
  x = rows_of(x)
  norms = [*past_norms, *(norm(row) for row in x)]
  return clustering(clip_messages(x, statistics.median(norms)), linkage)


# Pre-aggregators.


def clip_messages(x, max_norm):
  """`x_i min(1, c / |x_i|)`."""
  return np.array(
    [
      row if norm(row) <= max_norm else row * (max_norm / norm(row))
      for row in rows_of(x)
    ]
  )


def adaptive_clipping(x, f):
  """Clips the `k = floor(2 f (n - f) / n)` largest norms to the next (ARC).

  Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, 2025, arXiv:2405.14432.
  """
  x = rows_of(x)
  n = len(x)
  k = 2 * f * (n - f) // n
  return clip_messages(x, sorted(norm(row) for row in x)[n - 1 - k])
