"""The test oracle of rules with worker weights, as in `reference.py`.

NumPy float64, each function its formula. `w` holds one weight >= 0 a row; of
equal weights every rule is the one without weights, and a weight of 2 is a row
that is there twice.
"""

import math

import numpy as np

from tests.reference import norm


def _rows(x, w):
  x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
  if x.ndim != 2 or w.shape != x.shape[:1]:
    raise ValueError(f'expected [n, d] and [n], got {x.shape} and {w.shape}')
  return x, w


def _largest_mass(w, f):
  """What the f heaviest rows weigh together."""
  return math.fsum(sorted(w, reverse=True)[:f])


def weighted_mean(x, w):
  """`sum_i w_i x_i / sum_i w_i`."""
  x, w = _rows(x, w)
  return sum(wi * row for wi, row in zip(w, x)) / math.fsum(w)


def weighted_median(x, w):
  """Per coordinate, where the weights of the sorted values pass half the total.

  Where they come to exactly half of it: the mean of that value and the next.
  """
  x, w = _rows(x, w)
  half = math.fsum(w) / 2

  def median(column):
    pairs = sorted((v, wi) for v, wi in zip(column, w) if wi > 0)
    below = 0.0
    for k, (value, weight) in enumerate(pairs):
      below += weight
      if math.isclose(below, half, rel_tol=1e-12):
        return (value + pairs[k + 1][0]) / 2
      if below > half:
        return value
    raise ValueError('no weight is above zero')

  return np.array([median(column) for column in x.T])


def weighted_trimmed_mean(x, w, f):
  """Per coordinate, the mean without the mass b of each side.

  b is what the f heaviest rows weigh together. The sorted values take up one
  interval each, as long as their weight; a value counts with the overlap of its
  interval with [b, total - b].
  """
  x, w = _rows(x, w)
  low = _largest_mass(w, f)
  high = math.fsum(w) - low

  def trimmed(column):
    below, total, mass = 0.0, 0.0, 0.0
    for value, weight in sorted(zip(column, w)):
      overlap = max(min(below + weight, high) - max(below, low), 0)
      total += overlap * value
      mass += overlap
      below += weight
    return total / mass

  return np.array([trimmed(column) for column in x.T])


def weighted_geometric_median(x, w, tolerance=1e-14, max_iterations=100_000):
  """`argmin_z sum_i w_i |z - x_i|`, converged.

  As `reference.geometric_median`: a row of weight m (with its copies) is the
  median exactly if the weighted unit vectors from it to the others add up to a
  length of at most m; if none is, Weiszfeld's steps never stop at one.
  """
  x, w = _rows(x, w)
  x, w = x[w > 0], w[w > 0]
  for row in x:
    pull, mass = np.zeros_like(row), 0.0
    for other, weight in zip(x, w):
      distance = norm(other - row)
      if distance == 0:
        mass += weight
      else:
        pull = pull + weight * (other - row) / distance
    if norm(pull) <= mass * (1 + 1e-14):
      return row
  z = weighted_mean(x, w)
  for _ in range(max_iterations):
    distances = [norm(row - z) for row in x]
    if min(distances) == 0:
      # Not the median, as was checked: any way out of it will do.
      z = z + 1e-3 * (weighted_mean(x, w) + x[0] - 2 * z)
      continue
    previous = z
    z = weighted_mean(x, w / distances)
    if norm(z - previous) <= tolerance * (norm(z) + min(distances)):
      return z
  raise RuntimeError(f'no convergence in {max_iterations} steps')


def weighted_centered_clipping(x, w, v0, radius, num_iterations):
  """L times `v <- v + sum_i p_i (x_i - v) min(1, tau / |x_i - v|)`.

  `p_i = w_i / sum_j w_j` in the place of 1/n.
  """
  x, w = _rows(x, w)
  v = np.asarray(v0, np.float64)
  for _ in range(num_iterations):
    step = np.zeros_like(v)
    for row, share in zip(x, w / math.fsum(w)):
      distance = norm(row - v)
      factor = 1.0 if distance <= radius else radius / distance
      step = step + share * factor * (row - v)
    v = v + step
  return v


def weighted_quantile_clipping(x, w, v0, radius, quantile, num_iterations):
  """tau = radius times the least distance within which a share q is."""
  x, w = _rows(x, w)
  v = np.asarray(v0, np.float64)
  for _ in range(num_iterations):
    distances = np.array([norm(row - v) for row in x])
    unit = min(
      d for d in distances if w[distances <= d].sum() >= quantile * w.sum()
    )
    v = weighted_centered_clipping(x, w, v, radius * unit, 1)
  return v


def weighted_nearest_neighbor_mixing(x, w, f):
  """`y_i` = the mean of the rows nearest to x_i, itself first.

  They are taken until their weights reach the total less that of the f heaviest
  rows; the last counts with what is missing.
  """
  x, w = _rows(x, w)
  n = len(x)
  target = math.fsum(w) - _largest_mass(w, f)
  mixed = []
  for i in range(n):
    order = sorted(range(n), key=lambda j: (j != i, norm(x[i] - x[j]), j))
    total, missing = np.zeros_like(x[i]), target
    for j in order:
      taken = min(w[j], missing)
      total = total + taken * x[j]
      missing = missing - taken
    mixed.append(total / target)
  return np.array(mixed)


def cap_weights(w, max_share):
  """Shares `p_i = min(s w_i, c)` with the s for which they sum to one.

  s is where `sum_i min(s w_i, c)`, which rises with s, reaches one: bisection.
  """
  w = np.asarray(w, np.float64)
  if np.count_nonzero(w) * max_share < 1:
    raise ValueError('the rows of weight above zero cannot reach one')
  low, high = 0.0, 1 / w[w > 0].min()
  for _ in range(200):
    s = (low + high) / 2
    reached = math.fsum(min(s * wi, max_share) for wi in w) >= 1
    low, high = (low, s) if reached else (s, high)
  return np.array([min(high * wi, max_share) for wi in w])
