"""The test oracle of the attacks that `reference.py` does not have.

In the same manner: NumPy float64, loops over workers, nothing from byzjax, each
function its formula. `honest` [h, d] are the rows of the honest workers; where
an attack has a memory, there is one such matrix per round.
"""

import math

import numpy as np

from tests import reference
from tests.reference import norm


def unit(vector):
  length = norm(vector)
  return vector / length if length else vector


# Shejwalkar, Houmansadr, 2021, NDSS.


def deviation(honest, kind, ddof=1):
  """`std`, `mu / |mu|` or `sign(mu)`."""
  mu = reference.mean(honest)
  if kind == 'std':
    return reference.standard_deviation(honest, ddof)
  return unit(mu) if kind == 'unit' else np.sign(mu)


def squared_distances(point, rows):
  return [norm(point - row) ** 2 for row in rows]


def min_max_allows(honest, point):
  """`max_i |point - x_i|^2 <= max_ij |x_i - x_j|^2`."""
  bound = max(max(squared_distances(row, honest)) for row in honest)
  return max(squared_distances(point, honest)) <= bound


def min_sum_allows(honest, point, bound='min'):
  """`sum_i |point - x_i|^2 <= min_i sum_j |x_i - x_j|^2`, or the max_i."""
  sums = [math.fsum(squared_distances(row, honest)) for row in honest]
  limit = min(sums) if bound == 'min' else max(sums)
  return math.fsum(squared_distances(point, honest)) <= limit


def largest(allowed, num_steps=60):
  """The largest gamma >= 0 that is allowed, by bisection."""
  low, high = 0.0, 1.0
  while allowed(high):
    low, high = high, 2 * high
  for _ in range(num_steps):
    middle = (low + high) / 2
    low, high = (middle, high) if allowed(middle) else (low, middle)
  return low


def halving_search(allowed, start=10.0, tolerance=1e-5):
  """The search of the official code, which never reaches `2 start`."""
  gamma, step, success = start, start, 0.0
  while abs(success - gamma) > tolerance:
    if allowed(gamma):
      success = gamma
      gamma += step / 2
    else:
      gamma -= step / 2
    step /= 2
  return success


def shifted(honest, allows, kind='std', ddof=1, search=largest):
  """`mu - gamma p` for the gamma that a search finds."""
  mu, p = reference.mean(honest), deviation(honest, kind, ddof)
  if not p.any():
    return mu
  return mu - search(lambda gamma: allows(honest, mu - gamma * p)) * p


# Karimireddy, He, Jaggi, 2022, arXiv:2006.09365.


def mimic(rounds, z0, num_warmup_rounds):
  """Which honest worker is copied in each round, and the last direction."""
  mu, z, targets = np.zeros_like(z0), z0, []
  for t, honest in enumerate(rounds):
    if t < num_warmup_rounds:
      mu = t / (1 + t) * mu + reference.mean(honest) / (1 + t)
      pull = sum(((g - mu) @ z) * (g - mu) for g in honest)
      z = unit(t / (1 + t) * z + unit(pull) / (1 + t))
      target = int(np.argmax([g @ z for g in honest]))
    targets.append(target)
  return targets, z


# Fang, Cao, Jia, Gong, 2020, arXiv:1911.11815.


def fang_interval(honest, b):
  """The ends between which each coordinate is drawn: [d], [d]."""
  ends = []
  for column in np.asarray(honest).T:
    low, high = min(column), max(column)
    if math.fsum(column) > 0:
      ends.append((low * b, low) if low < 0 else (low / b, low))
    else:
      ends.append((high, high * b) if high > 0 else (high, high / b))
  return np.array(ends).T


# Ozfatura, Ozfatura, Kupcu, Gunduz, 2022, arXiv:2208.09894.


def relocated_orthogonal_perturbation(honest, previous, pi, lam, angle, z):
  """What is sent after the aggregate `previous`, None in the first round."""
  mu = reference.mean(honest)
  known = np.zeros_like(mu) if previous is None else previous
  u = mu if previous is None else previous
  location = pi * known + (1 - pi) * mu
  direction = lam * u + (1 - lam) * mu
  p = np.ones_like(mu)
  p = p - (p @ direction) / (direction @ direction) * direction
  p = p / norm(p)
  angle = math.radians(angle)
  p = math.sin(angle) * p + math.cos(angle) * direction / norm(direction)
  return location + z * p / norm(p)


# Coupled over time.


def drift(honest, u, strength):
  """`mu + a rho u`, rho the mean distance to mu."""
  mu = reference.mean(honest)
  rho = math.fsum(norm(row - mu) for row in honest) / len(honest)
  return mu + strength * rho * u


def replay(values, delay):
  """In round t the value of round t - delay, or of round 0."""
  return [values[max(t - delay, 0)] for t in range(len(values))]


# On votes.


def flip_vote(honest, scale=1.0):
  """Per coordinate, against most of the honest signs."""
  row = []
  for column in np.asarray(honest).T:
    votes = sum(int(v > 0) - int(v < 0) for v in column)
    row.append(-scale * np.sign(votes or math.fsum(column)))
  return np.array(row)


def majority(rows):
  """The sign that more rows have, per coordinate; 0 for a tie."""
  return np.sign(sum(np.sign(row) for row in rows))
