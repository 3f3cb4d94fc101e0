"""Attacks that are specific to decentralised training."""

import jax.numpy as jnp

from byzjax._src import base, checks
from byzjax.gossip._types import AloneAttack, EdgeAttack


def dissensus(*, epsilon: base.Scalar = 1.0) -> EdgeAttack:
  """Byzantine nodes push every neighbour away from its honest neighbours.

  The Byzantine neighbours of node i send it `x_i - epsilon (sum_{k honest} W_ik
  (x_k - x_i)) / sum_{b Byzantine} W_ib`. With epsilon = 1 plain gossip leaves
  the node exactly where it was, as if it had no neighbours; with a larger
  epsilon it moves away from them. Every neighbour gets a different vector.

  In the official code each Byzantine node has a single neighbour; here it may
  have any number. For rules that ignore W, that code uses the weight `1 /
  (deg_i + 1)` throughout, which gives the same vector if the weights of node i
  are equal.

  Args:
    epsilon: strength of the attack; may be traced.

  Returns:
    An `EdgeAttack`, for `gossip_round` without a mesh.

  References:
    He, Karimireddy, Jaggi, 2022, arXiv:2202.01545.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(
    ...   gossip.plain(), topology.complete(4), jnp.array([0., 1., 2., 9.]),
    ...   attack=gossip.dissensus(), is_byzantine=jnp.arange(4) == 3)[:3]
    Array([0., 1., 2.], dtype=float32)
  """

  checks.check_range('dissensus', 'epsilon', epsilon)

  def coefficients(mixing, is_byzantine):
    n = mixing.shape[0]
    other = ~jnp.eye(n, dtype=bool)
    honest = jnp.where(other & ~is_byzantine[None], mixing, 0)
    byzantine = jnp.where(other & is_byzantine[None], mixing, 0).sum(axis=1)
    push = honest / jnp.where(byzantine != 0, byzantine, 1)[:, None]
    push = jnp.asarray(epsilon).astype(mixing.dtype) * push
    own = jnp.eye(n, dtype=mixing.dtype)
    return own * (1 + push.sum(axis=1))[:, None] - push

  return EdgeAttack(coefficients, 'dissensus')


def alone(attack: base.Attack) -> AloneAttack:
  """Byzantine nodes that know only their own vector.

  Runs an attack on messages at one node at a time, without access to the
  vectors of other nodes: `sign_flip(own=True)`, `constant`, `gaussian`. An
  attack that uses honest messages finds none. Such an attack needs no
  communication, so it works on a mesh.

  Args:
    attack: an `Attack` without state.

  Returns:
    An `AloneAttack`, for `gossip_round`.

  Raises:
    ValueError: if it is not an `Attack`.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(
    ...   gossip.plain(), topology.complete(2), jnp.array([1., 3.]),
    ...   attack=gossip.alone(byzjax.sign_flip(own=True)),
    ...   is_byzantine=jnp.array([True, False]))[1]
    Array(1., dtype=float32)
  """
  if not isinstance(attack, base.Attack):
    raise ValueError(f'alone needs attack to be an Attack, got {attack!r}')
  return AloneAttack(attack)
