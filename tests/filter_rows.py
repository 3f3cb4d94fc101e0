"""Rules that filter by covariance, norm or direction: one row each."""

import math

import jax
import numpy as np

import byzjax
from byzjax.aggregators import _divide_and_conquer
from tests import claims, reference, reference_rules


def covariance_filter_ball(honest, v0, f):
  """`sqrt(R L) (1 + (1 + sqrt(2)) sqrt(K))` around the honest mean.

  R = f / (n - 2f), K = 2 (n - f) / (n - 2f), and L is the top eigenvalue of the
  honest covariance. With h and b the weights of the honest and the others and
  C = h + b, as long as the others lose more than the honest in every round,
  h - b > n - 2f, and the rounds go on. In the first where they do not, along v,
  the variance within the honest exceeds what the others add: with g between the
  two means, `b (h - b) g^2 / C^2 <= (n - f) L / h`, so that lambda is at most
  twice the honest part of it, K L. There, the honest messages with weight 1 and
  all with c overlap by at least (n - 2f) / (n - f), so their means differ by at
  most `sqrt(R) (sqrt(K L) + sqrt(L))`. The mean that is remembered has a lambda
  no larger. If it is an earlier one, the same holds; if it is a later one, it
  has at least (n - 2f) / n of that weight, and moved by at most `sqrt(2 R K
  L)`.
  """
  del v0
  n = len(honest) + f
  r, k = f / (n - 2 * f), 2 * (n - f) / (n - 2 * f)
  largest = reference_rules.max_eigenvalue(honest, range(len(honest)))
  radius = math.sqrt(r * largest) * (1 + (1 + math.sqrt(2)) * math.sqrt(k))
  return honest.mean(axis=0), radius


def longest_honest_ball(honest, v0, f):
  """No longer than an honest message: at most f of the norms are above that."""
  del v0, f
  return np.zeros(honest.shape[1]), np.linalg.norm(honest, axis=1).max()


SAMPLED = {'num_iterations': 3, 'num_coordinates': 5}


def _divide_and_conquer_sampled(x, v0, f, key):
  del v0
  times_kept = np.zeros(len(x))
  for sample_key in jax.random.split(key, SAMPLED['num_iterations']):
    columns = _divide_and_conquer.sample_coordinates(
      sample_key, x.shape[1], SAMPLED['num_coordinates']
    )
    scores = reference_rules.divide_and_conquer_scores(x[:, columns])
    times_kept[np.argsort(scores, kind='stable')[: len(x) - f]] += 1
  return reference.mean(x[times_kept == times_kept.max()])


RULES = [
  claims.Rule(
    'covariance_filter',
    lambda f, unit: byzjax.covariance_filter(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.covariance_filter(x, f),
    5,
    covariance_filter_ball,
  ),
  claims.Rule(
    'divide_and_conquer',
    lambda f, unit: byzjax.divide_and_conquer(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.divide_and_conquer(x, f),
    5,
    # One outlier hides another that is across it: `filter_test`.
    None,
  ),
  claims.Rule(
    'divide_and_conquer_sampled',
    lambda f, unit: byzjax.divide_and_conquer(num_byzantine=f, **SAMPLED),
    _divide_and_conquer_sampled,
    5,
    None,
    rotation=False,
  ),
  claims.Rule(
    'comparative_gradient_elimination',
    lambda f, unit: byzjax.comparative_gradient_elimination(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.comparative_gradient_elimination(
      x, f
    ),
    5,
    longest_honest_ball,
    translation=False,
  ),
  claims.Rule(
    'clustering',
    lambda f, unit: byzjax.clustering(),
    lambda x, v0, f, key: reference_rules.clustering(x),
    5,
    # A long message in the common direction is in the cluster.
    None,
    translation=False,
  ),
  claims.Rule(
    'clipped_clustering',
    lambda f, unit: byzjax.clipped_clustering(),
    lambda x, v0, f, key: reference_rules.clipped_clustering(x),
    5,
    longest_honest_ball,
    translation=False,
  ),
]
