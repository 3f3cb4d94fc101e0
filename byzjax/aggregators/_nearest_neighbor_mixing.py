"""Nearest-neighbour mixing: every message averaged with its neighbours."""

import jax.numpy as jnp

from byzjax._src import base, checks, grams, pre_aggregators, recipes, rules


@recipes.factory
def nearest_neighbor_mixing(*, num_byzantine: int) -> base.PreAggregator:
  """Replaces every message by the mean of its n - f nearest messages (NNM).

  `y_i = (1 / (n - f)) sum_{j in N(i)} x_j`, where N(i) holds the n - f messages
  nearest to x_i (x_i itself, at distance 0, included). Ties go to the lowest
  index. A masked (non-finite) message stays masked and enters no other mean;
  with fewer than n - f usable messages, the mean is over those that remain.

  With `worker_weights` p the mean is weighted. Nearest messages are added until
  their weight reaches the total minus that of the f heaviest workers; the last
  one counts with the part of its weight that is still needed.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`. 0 gives n copies of the
      mean.

  Returns:
    A linear `PreAggregator` without state, `[n, ...] -> [n, ...]`.

  Raises:
    ValueError: if f is not a non-negative int; at trace time if `n <= 2f`.

  References:
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.01772.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.pre_aggregate(
    ...   byzjax.nearest_neighbor_mixing(num_byzantine=1),
    ...   byzjax.coordinate_median(),
    ... )
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  checks.check_count('nearest_neighbor_mixing', 'num_byzantine', num_byzantine)

  def matrix_fn(gram, key):
    del key
    n = gram.mask.shape[0]
    checks.check_majority('nearest_neighbor_mixing', n, num_byzantine)
    distances = grams.squared_distances(gram)
    # Rounding may put a duplicate nearer than the message is to itself.
    distances = jnp.where(jnp.eye(n, dtype=bool), -1, distances)
    weights = gram.worker_weights
    if weights is None:
      weights = gram.mask.astype(distances.dtype)
      mass = jnp.minimum(weights.sum(), n - num_byzantine)
    else:
      mass = weights.sum() - rules.largest_share(weights, num_byzantine)
    near = rules.nearest(distances, weights, mass)
    near = jnp.where(gram.mask[:, None], near, 0)
    return (near / jnp.where(mass > 0, mass, 1)).astype(distances.dtype)

  return pre_aggregators.from_matrix(
    'nearest_neighbor_mixing', matrix_fn, weighted=True
  )
