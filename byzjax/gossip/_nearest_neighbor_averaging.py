"""Nearest-neighbour averaging: the mean of the vectors nearest to one's own."""

import jax.numpy as jnp
from jax import lax

from byzjax._src import checks
from byzjax.gossip._types import GossipRule


def nearest_neighbor_averaging(*, num_byzantine: int) -> GossipRule:
  """Every node leaves out the f neighbours that are farthest from it.

  `x_i <- (1 / (deg_i + 1 - f)) sum_{j in S_i} x_j`, S_i the `deg_i + 1 - f`
  vectors nearest to `x_i`, its own included. The weights of the graph play no
  part. Among neighbours at the same distance the one that comes first is taken:
  the lowest index, or with neighbours on a mesh the first direction.

  With local momentum before it this is MoNNA, which is stated for a complete
  graph; `aggregate(lambda m: byzjax.monna(num_byzantine=f,
  reference_worker=0))` is the same rule. A node with no more than f neighbours
  keeps its vector. Vectors that are not usable are the farthest; a node that
  has to take one of them counts its own in its place.

  Args:
    num_byzantine: f >= 0, a Python int, per neighbourhood. 0 gives the mean.

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
