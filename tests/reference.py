"""The test oracle: every rule in NumPy float64, as slow as its formula.

Loops over workers, no Gram matrices, no vectorised tricks and nothing from
byzjax: a reader must see at a glance that a function is its formula. Rules take
finite `x` [n, d] and give [d]; ties go to the lowest index.
"""

import itertools
import math
import statistics

import numpy as np


def rows_of(x):
  x = np.asarray(x, np.float64)
  if x.ndim != 2:
    raise ValueError(f'expected [n, d], got the shape {x.shape}')
  return x


def norm(vector):
  # math.hypot neither under- nor overflows on the way.
  return math.hypot(*vector)


def smallest(values, count):
  """Indices of the `count` smallest values; ties go to the lowest index."""
  return sorted(range(len(values)), key=lambda i: (values[i], i))[:count]


# Rules.


def mean(x):
  """`(1/n) sum_i x_i`."""
  x = rows_of(x)
  return sum(x) / len(x)


def coordinate_median(x):
  """The median of each coordinate; for even n the mean of the two middles."""
  return np.array([statistics.median(column) for column in rows_of(x).T])


def trimmed_mean(x, f):
  """Per coordinate, the mean of what is left without the f ends of each side.

  Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498.
  """
  x = rows_of(x)
  n = len(x)
  return np.array([math.fsum(sorted(c)[f : n - f]) / (n - 2 * f) for c in x.T])


def krum_scores(x, f, num_neighbors=None, power=2):
  """`s_i = sum of |x_i - x_j|^power over the k nearest others`, k = n - f - 2.

  Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, arXiv:1703.02757.
  """
  x = rows_of(x)
  n = len(x)
  k = n - f - 2 if num_neighbors is None else num_neighbors
  scores = []
  for i in range(n):
    others = sorted(norm(x[i] - x[j]) ** power for j in range(n) if j != i)
    scores.append(math.fsum(others[:k]))
  return np.array(scores)


def krum(x, f, num_neighbors=None, power=2):
  """The row with the least Krum score."""
  best = smallest(krum_scores(x, f, num_neighbors, power), 1)
  return rows_of(x)[best[0]]


def multi_krum(x, f, num_selected=None, num_neighbors=None, power=2):
  """The mean of the m rows with the least Krum scores, m = n - f."""
  x = rows_of(x)
  m = len(x) - f if num_selected is None else num_selected
  return mean(x[smallest(krum_scores(x, f, num_neighbors, power), m)])


def sum_of_distances(x, z):
  """`sum_i |z - x_i|`, which the geometric median minimises."""
  return math.fsum(norm(z - row) for row in rows_of(x))


def geometric_median(x, tolerance=1e-14, max_iterations=100_000):
  """`argmin_z sum_i |z - x_i|`, converged.

  A row that occurs m times is the median exactly if the unit vectors from it to
  the other rows add up to a vector of length at most m; this is checked first.
  Otherwise the steps of Vardi and Zhang (2000, PNAS 97:1423) run from the mean,
  which are Weiszfeld's but do not stop at a row that is not the median.
  """
  x = rows_of(x)
  for row in x:
    pull, multiplicity = _pull(x, row)
    if norm(pull) <= multiplicity * (1 + 1e-14):
      return row
  z = mean(x)
  for _ in range(max_iterations):
    pull, multiplicity = _pull(x, z)
    away = [row for row in x if norm(row - z) > 0]
    inverses = [1 / norm(row - z) for row in away]
    target = sum(w * row for w, row in zip(inverses, away)) / sum(inverses)
    stay = min(1, multiplicity / norm(pull)) if multiplicity else 0
    step = (1 - stay) * (target - z)
    z = z + step
    # The middle distance is a scale that no outlier sets.
    scale = norm(z) + statistics.median(norm(row - z) for row in x)
    if norm(step) <= tolerance * scale:
      return z
  raise RuntimeError(f'no convergence in {max_iterations} steps')


def _pull(x, z):
  """The sum of the unit vectors from z to the other rows; the rows at z."""
  pull, multiplicity = np.zeros_like(z), 0
  for row in x:
    distance = norm(row - z)
    if distance == 0:
      multiplicity += 1
    else:
      pull = pull + (row - z) / distance
  return pull, multiplicity


def smoothed_weiszfeld(x, start, num_iterations, smoothing):
  """T times `z <- sum w_i x_i / sum w_i`, `w_i = 1 / max(|x_i - z|, nu)`.

  Pillutla, Kakade, Harchaoui, 2019, arXiv:1912.13445.
  """
  x = rows_of(x)
  z = np.asarray(start, np.float64)
  for _ in range(num_iterations):
    weights = [1 / max(norm(row - z), smoothing) for row in x]
    z = sum(w * row for w, row in zip(weights, x)) / math.fsum(weights)
  return z


def centered_clipping(x, v0, radius, num_iterations):
  """L times `v <- v + (1/n) sum_i (x_i - v) min(1, tau / |x_i - v|)`.

  Karimireddy, He, Jaggi, 2021, arXiv:2012.10333.
  """
  x = rows_of(x)
  v = np.asarray(v0, np.float64)
  for _ in range(num_iterations):
    step = np.zeros_like(v)
    for row in x:
      distance = norm(row - v)
      factor = 1.0 if distance <= radius else radius / distance
      step = step + factor * (row - v)
    v = v + step / len(x)
  return v


def quantile_clipping(x, v0, radius, quantile, num_iterations):
  """`centered_clipping` with tau = radius times the ceil(q n)-th distance."""
  x = rows_of(x)
  v = np.asarray(v0, np.float64)
  for _ in range(num_iterations):
    distances = sorted(norm(row - v) for row in x)
    unit = distances[max(math.ceil(quantile * len(x)), 1) - 1]
    v = centered_clipping(x, v, radius * unit, 1)
  return v


# Pre-aggregators.


def nearest_neighbor_mixing(x, f):
  """`y_i = ` the mean of the n - f rows nearest to x_i, itself included.

  Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
  arXiv:2302.01772.
  """
  x = rows_of(x)
  mixed = []
  for i, row in enumerate(x):
    others = [j for j in range(len(x)) if j != i]
    distances = [norm(row - x[j]) for j in others]
    near = [others[k] for k in smallest(distances, len(x) - f - 1)]
    mixed.append(mean(x[[i, *near]]))
  return np.array(mixed)


def bucketing(x, permutation, s):
  """Means of consecutive groups of s rows of `x[permutation]`.

  The last group may be smaller. Karimireddy, He, Jaggi, 2022, arXiv:2006.09365.
  """
  rows = rows_of(x)[np.asarray(permutation)]
  return np.array([mean(rows[i : i + s]) for i in range(0, len(rows), s)])


# Attacks, all functions of the honest rows.


def alie_factor(n, f):
  """`z = Phi^{-1}((n - f - s) / (n - f))`, `s = floor(n/2 + 1) - f`.

  Baruch, Baruch, Goldberg, 2019, arXiv:1902.06156.
  """
  s = math.floor(n / 2 + 1) - f
  return statistics.NormalDist().inv_cdf((n - f - s) / (n - f))


def standard_deviation(x, ddof):
  """`sqrt(sum_i (x_i - mean)^2 / (n - ddof))` per coordinate."""
  x = rows_of(x)
  center = mean(x)
  return np.sqrt(sum((row - center) ** 2 for row in x) / (len(x) - ddof))


def alie(honest, z, ddof=1):
  """`mu - z std`: what every attacker sends."""
  return mean(honest) - z * standard_deviation(honest, ddof)


def inner_product_manipulation(honest, epsilon):
  """`-epsilon mu`. Xie, Koyejo, Gupta, 2019, arXiv:1903.03936."""
  return -epsilon * mean(honest)


def sign_flip(honest, scale=1.0):
  """`-scale mu`."""
  return -scale * mean(honest)


def label_flip(labels, num_classes):
  """`K - 1 - y`."""
  return num_classes - 1 - np.asarray(labels)


# Optimizer steps.


def worker_momentum(gradients, decay):
  """`m_0 = g_0`, `m_t = beta m_{t-1} + (1 - beta) g_t`; over the leading axis.

  Yang, Shi, Li, 2023, arXiv:2305.13856.
  """
  momenta = [np.asarray(gradients[0], np.float64)]
  for gradient in gradients[1:]:
    momenta.append(decay * momenta[-1] + (1 - decay) * np.asarray(gradient))
  return np.array(momenta)


def sgd_step(params, direction, learning_rate):
  """`w - eta u`."""
  return np.asarray(params) - learning_rate * np.asarray(direction)


def normalized_step(params, direction, learning_rate):
  """`w - eta u / |u|`, one norm over the whole model; w where u = 0.

  Yang, Shi, Li, 2023, arXiv:2305.13856.
  """
  length = norm(np.asarray(direction))
  if length == 0:
    return np.asarray(params)
  return np.asarray(params) - learning_rate * np.asarray(direction) / length


# Answers up to ties.


def lowest_sets(values, count, relative_tolerance=1e-9):
  """All index sets of size `count` with the least sum of `values`.

  More than one where values are tied at the border, which is where the order of
  the rows, or the rounding, decides.
  """
  border = sorted(values)[count - 1]
  slack = relative_tolerance * abs(border)
  inside = [i for i, v in enumerate(values) if v < border - slack]
  tied = [i for i, v in enumerate(values) if abs(v - border) <= slack]
  for chosen in itertools.combinations(tied, count - len(inside)):
    yield [*inside, *chosen]
