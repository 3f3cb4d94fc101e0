"""Rules that average the best subset of messages: one row each."""

import itertools

import numpy as np

import byzjax
from tests import claims, reference_rules

# A worker in the middle: breakdown tests put bad messages at both ends.
REFERENCE_WORKER = 5


def diameter_ball(honest, v0, f):
  """`2 f / (n - f)` honest diameters around the honest mean.

  Each of at most f bad members of the subset stands for an honest message that
  is not in it; both are within a diameter of an honest member. (Farhadkhani et
  al., 2022, arXiv:2205.12173.)
  """
  del v0
  pairs = itertools.combinations(honest, 2)
  diameter = max((np.linalg.norm(a - b) for a, b in pairs), default=0.0)
  return honest.mean(axis=0), 2 * f / len(honest) * diameter


def kappa_smea(n, f):
  """Allouah et al., 2023, arXiv:2302.01772."""
  return 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2


RULES = [
  claims.Rule(
    'minimum_diameter_averaging',
    lambda f, unit: byzjax.minimum_diameter_averaging(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.minimum_diameter_averaging(x, f),
    5,
    diameter_ball,
    # The diameter is that of one pair, and several subsets have that pair: the
    # first is chosen.
    permutation=False,
  ),
  claims.Rule(
    'smallest_max_eigenvalue_averaging',
    lambda f, unit: byzjax.smallest_max_eigenvalue_averaging(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.smallest_max_eigenvalue_averaging(
      x, f
    ),
    5,
    claims.robust_ball(kappa_smea),
  ),
  claims.Rule(
    'monna',
    lambda f, unit: byzjax.monna(
      num_byzantine=f, reference_worker=REFERENCE_WORKER
    ),
    lambda x, v0, f, key: reference_rules.monna(x, f, REFERENCE_WORKER),
    5,
    # Some tests have the reference lie; `subset_test` has the ball of an honest
    # one.
    None,
    permutation=False,
  ),
]
