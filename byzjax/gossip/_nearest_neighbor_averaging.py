"""Nearest-neighbour averaging: the mean of the nearest vectors (MoNNA)."""

import jax.numpy as jnp
from jax import lax

from byzjax._src import checks
from byzjax.gossip._types import GossipRule


def nearest_neighbor_averaging(*, num_byzantine: int) -> GossipRule:
  """Every node averages all but its f farthest neighbours (NNA, MoNNA).

  `x_i <- (1 / (deg_i + 1 - f)) sum_{j in S_i} x_j`, where S_i holds the `deg_i
  + 1 - f` vectors nearest to `x_i`, including its own. The weights of the graph
  are not used. Ties go to the neighbour with the lowest index, or on a mesh to
  the first direction.

  With local momentum this is MoNNA, which the paper states for a complete
  graph; `aggregate(lambda m: byzjax.monna(num_byzantine=f,
  reference_worker=0))` is the same rule. A node with at most f neighbours keeps
  its vector. Vectors that are not finite count as the farthest; if a node has
  to include one, it uses its own vector instead.

  Args:
    num_byzantine: f >= 0, a Python int, Byzantine nodes per neighbourhood; 0
      gives the mean.

  Returns:
    A `GossipRule`.

  Raises:
    ValueError: if f is not a non-negative int.

  References:
    Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, 2023,
    arXiv:2209.10931.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(
    ...   gossip.nearest_neighbor_averaging(num_byzantine=1),
    ...   topology.complete(4), jnp.array([0., 1., 2., 99.]))
    Array([ 1.,  1.,  1., 34.], dtype=float32)
  """
  name = 'nearest_neighbor_averaging'
  checks.check_count(name, 'num_byzantine', num_byzantine)

  def weights(squared, mixing, is_neighbor):
    del mixing
    squared = lax.stop_gradient(squared)
    # Who is no neighbour, or not usable, comes last, and weighs nothing.
    order = jnp.argsort(squared, stable=True)
    kept = jnp.maximum(is_neighbor.sum() - num_byzantine, 0)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return (place < kept) / (kept + 1).astype(squared.dtype)

  return GossipRule(weights, name)
