"""Nearest-neighbour mixing: every message averaged with its neighbours."""

import jax.numpy as jnp

from byzjax._src import base, rules


def nearest_neighbor_mixing(*, num_byzantine: int) -> base.PreAggregator:
  """Replaces every message by the mean of its n - f nearest, itself included.

  `y_i = (1 / (n - f)) sum_{j in N(i)} x_j`, N(i) the n - f messages nearest to
  x_i (x_i at distance 0). Ties go to the lowest index. A masked message has no
  mixture and is in nobody's; with fewer than n - f usable messages the mean is
  over those there are.

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
  base.check_count('nearest_neighbor_mixing', 'num_byzantine', num_byzantine)

  def matrix_fn(gram, key):
    del key
    n = gram.mask.shape[0]
    base.check_majority('nearest_neighbor_mixing', n, num_byzantine)
    distances = rules.squared_distances(gram)
    # Rounding may put a duplicate nearer than the message is to itself.
    itself = jnp.eye(n, dtype=bool)
    order = jnp.argsort(jnp.where(itself, -1, distances), axis=1, stable=True)
    ranks = jnp.argsort(order, axis=1)
    near = (ranks < n - num_byzantine) & gram.mask[:, None] & gram.mask[None]
    counts = jnp.maximum(near.sum(axis=1, keepdims=True), 1)
    return (near / counts).astype(gram.inner.dtype)

  return rules.stateless_matrix(matrix_fn)
