"""Plain gossip averaging, without robustness."""

from byzjax.gossip._types import GossipRule


def plain() -> GossipRule:
  """Plain gossip: every node takes the weighted mean of its neighbourhood.

  `x_i <- sum_j W_ij x_j`. One Byzantine neighbour can move it arbitrarily far.
  A neighbour's vector that is not finite is replaced by the node's own.

  Returns:
    A `GossipRule`.

  References:
    Boyd, Ghosh, Prabhakar, Shah, 2006, "Randomized gossip algorithms".

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(
    ...   gossip.plain(), topology.complete(4), jnp.array([0., 1., 2., 5.]))
    Array([2., 2., 2., 2.], dtype=float32)
  """
  return GossipRule(lambda squared, mixing, is_neighbor: mixing, 'plain')
