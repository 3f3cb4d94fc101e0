"""ClippedGossip: the influence of each neighbour is clipped to a radius."""

import jax.numpy as jnp

from byzjax._src import base, checks, reductions
from byzjax.gossip._types import GossipRule


def clipped(
  *, radius: base.Scalar | None = None, num_byzantine: int = 1
) -> GossipRule:
  """Every node clips the differences to its neighbours (ClippedGossip).

  `x_i <- x_i + sum_j W_ij clip(x_j - x_i, tau_i)`, `clip(v, tau) = v min(1, tau
  / |v|)`. Also called self-centered clipping: centered clipping around the
  node's own vector, with the weights of the graph. Byzantine neighbours
  together move the node by at most `tau_i` times their weight.

  With `radius=None`, `tau_i` is the distance to the (f + 1)-th farthest
  neighbour, so f Byzantine neighbours cannot increase it arbitrarily. The
  official code takes the second farthest, f = 1, for any number of Byzantine
  nodes: two of them then control the radius. A node with at most f neighbours
  takes the distance to the nearest one (as that code does for a single
  neighbour), and so trusts it. The radius of the theory requires knowing who is
  honest: `tau_i^2 = (1 / delta_i) sum_{j honest} W_ij E|x_i - x_j|^2`, with
  delta_i the weight of Byzantine neighbours.

  Args:
    radius: tau >= 0, the clipping radius of all nodes; inf for plain gossip, 0
      to ignore the neighbours; may be traced. None for the distances above.
    num_byzantine: f >= 0, a Python int: the maximum number of Byzantine
      neighbours of a node; used only if radius is None.

  Returns:
    A `GossipRule`.

  Raises:
    ValueError: if an argument is out of range.

  References:
    He, Karimireddy, Jaggi, 2022, arXiv:2202.01545.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(
    ...   gossip.clipped(radius=1.0), topology.complete(4),
    ...   jnp.array([0., 1., 2., 99.]))
    Array([ 0.75,  1.25,  1.75, 98.25], dtype=float32)
  """
  checks.check_count('clipped', 'num_byzantine', num_byzantine)
  if radius is not None:
    checks.check_range('clipped', 'radius', radius, 0)

  def weights(squared, mixing, is_neighbor):
    distances = reductions.sqrt(jnp.where(jnp.isinf(squared), 0, squared))
    distances = jnp.where(jnp.isinf(squared), jnp.inf, distances)
    if radius is None:
      tau = _distance_to(distances, is_neighbor, num_byzantine)
    else:
      tau = jnp.asarray(radius).astype(distances.dtype)
    near = distances <= tau
    return mixing * jnp.where(near, 1, tau / jnp.where(near, 1, distances))

  return GossipRule(weights, 'clipped')


def _distance_to(distances, is_neighbor, num_nearer):
  """The distance to the neighbour that so many are farther than."""
  among = jnp.sort(jnp.where(is_neighbor, distances, jnp.inf))
  last = is_neighbor.sum() - 1 - num_nearer
  return among[jnp.clip(last, 0, len(among) - 1)]
