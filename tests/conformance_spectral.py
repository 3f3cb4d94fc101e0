"""Rules of eigenvectors, of which some libraries take a step or three.

There byzjax answers something else, on purpose. What is checked is that this is
the reason, to the last digit: NumPy with their steps gives their answer.
"""

import itertools
import math

import numpy as np

import byzjax
from tests import conformance_cases as stored
from tests import reference, reference_rules


def covariance_filter_exact(case):
  x, f = stored.messages(case), case['params']['f']
  actual, _ = stored.compiled(x, byzjax.covariance_filter, num_byzantine=f)
  stored.check(case, actual, stored.output(case, 'output'))


def covariance_filter(starts_of, num_steps, name=None):
  """The peer's `num_steps` power steps in round r are from `starts_of()[r]`."""

  def run(case):
    x, f = stored.messages(case), case['params']['f']
    actual, _ = stored.compiled(x, byzjax.covariance_filter, num_byzantine=f)
    stored.check(case, actual, reference_rules.covariance_filter(x, f))
    stored.check_bounded(case, actual)
    if 'returns_none' in case or 'raises' in case:
      # With no second round, or no end.
      return
    theirs = _covariance_filter_of_peers(x, f, starts_of(case), num_steps)
    stored.check(case, theirs, stored.output(case, name), rtol=1e-6)

  return run


def _power_steps(covariance, start, num_steps):
  v = start / np.linalg.norm(start)
  for _ in range(num_steps):
    v = covariance @ v
    eigenvalue = np.linalg.norm(v)
    v = v / eigenvalue
  return eigenvalue, v


def _covariance_filter_of_peers(x, f, starts, num_steps):
  """As the oracle, but for v and lambda, and max t over all rows."""
  c, best, least = np.ones(len(x)), None, math.inf
  for start in starts:
    if c.sum() <= len(x) - 2 * f:
      return best
    mean = np.average(x, axis=0, weights=c)
    y = x - mean
    eigenvalue, v = _power_steps((c * y.T) @ y / c.sum(), start, num_steps)
    if eigenvalue < least:
      best, least = mean, eigenvalue
    t = (y @ v) ** 2
    c = c * (1 - t / t.max())
  return best


def of_byzfl(case):
  return stored.output(case, 'init_vectors')


def of_byzpy(case):
  start = np.random.default_rng(0).normal(size=stored.messages(case).shape[1])
  return [start] * 300


def no_smaller_eigenvalue(case):
  """The peer's subset is the one of least *estimated* eigenvalue."""
  x, f = stored.messages(case), case['params']['f']
  subsets = list(itertools.combinations(range(len(x)), len(x) - f))
  means = [reference.mean(x[list(subset)]) for subset in subsets]
  actual, _ = stored.compiled(
    x, byzjax.smallest_max_eigenvalue_averaging, num_byzantine=f
  )
  ours = np.argmin([np.abs(mean - actual).max() for mean in means])
  stored.check(case, actual, means[ours])

  def estimate(k):
    rows = x[list(subsets[k])] - means[k]
    return _power_steps(rows.T @ rows / len(rows), of_byzfl(case)[k], 1)[0]

  theirs = min(range(len(subsets)), key=estimate)
  stored.check(case, means[theirs], stored.output(case, 'output'))
  least = reference_rules.max_eigenvalue(x, subsets[ours])
  other = reference_rules.max_eigenvalue(x, subsets[theirs])
  assert least <= other * (1 + 1e-9), case['id']
