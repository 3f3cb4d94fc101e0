"""What nodes tell each other, and what may stand in the slots of gossip."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base
from byzjax.gossip._types import (
  AggregateRule,
  AloneAttack,
  EdgeAttack,
  GossipRule,
)
from byzjax.topology import Topology

Attack = base.Attack | EdgeAttack | AloneAttack


class Sent(NamedTuple):
  """What the nodes have told each other.

  Attributes:
    own: float[m, d], the vectors of the nodes.
    x: float[m, d], what they sent; equal to `own` for honest ones.
    is_byzantine: bool[n], who of all nodes may have sent something else, or
      None if nobody can.
    edges: what Byzantine nodes send instead to each neighbour, or None.
  """

  own: jax.Array
  x: jax.Array
  is_byzantine: jax.Array | None = None
  edges: EdgeAttack | None = None


def init(attack: Any, vector: jax.Array) -> base.State:
  """The state of an attack, if it is one that keeps one."""
  if not isinstance(attack, base.Attack):
    return ()
  return attack.init(jnp.zeros_like(vector))


def byzantine_messages(
  attack: Attack | None,
  x: jax.Array,
  state: base.State,
  *,
  is_byzantine: jax.Array | None,
  ids: jax.Array,
  key: jax.Array | None,
) -> tuple[Sent, base.State]:
  """What the nodes with these numbers send: Byzantine ones as they like.

  `is_byzantine` is of all nodes; None only without an attack.
  """
  if attack is None:
    return Sent(x, x), state
  assert is_byzantine is not None
  if isinstance(attack, EdgeAttack):
    return Sent(x, x, is_byzantine, attack), state
  if isinstance(attack, AloneAttack):
    sent = _send_alone(attack, x, is_byzantine[ids], ids, key)
    return Sent(x, sent, is_byzantine), state
  sent, state = attack.apply(
    x,
    state,
    is_byzantine=is_byzantine,
    key=key,
    num_coordinates=x.shape[1],
  )
  return Sent(x, sent, is_byzantine), state


def observe(attack: Any, state: base.State, mean: jax.Array) -> base.State:
  """The state of an attack that has seen the mean of the honest models."""
  if not isinstance(attack, base.Attack) or attack.observe is None:
    return state
  return attack.observe(state, mean)


def _send_alone(attack, x, is_byzantine, ids, key):
  apply = functools.partial(attack.attack.apply, num_coordinates=x.shape[1])
  if jax.tree.leaves(attack.attack.init(jnp.zeros_like(x[0]))):
    raise ValueError(
      'alone needs attack to be an attack without state, got one with a state'
    )

  def send_one(row, node):
    own_key = None if key is None else jax.random.fold_in(key, node)
    rows, _ = apply(row[None], (), is_byzantine=jnp.ones(1, bool), key=own_key)
    return rows[0]

  return jnp.where(is_byzantine[:, None], jax.vmap(send_one)(x, ids), x)


def check_rule(name: str, rule: Any) -> None:
  """Raises ValueError unless it is a rule of gossip."""
  if not isinstance(rule, GossipRule | AggregateRule):
    raise ValueError(
      f'{name} needs rule to be one of byzjax.gossip (gossip.aggregate makes'
      f' one of an Aggregator), got {type(rule).__name__}'
    )


def check_topology(name: str, topology: Any) -> None:
  """Raises ValueError unless it is a topology."""
  if not isinstance(topology, Topology):
    raise ValueError(
      f'{name} needs topology to be a Topology, such as topology.ring(8), got'
      f' {type(topology).__name__}'
    )


def check_attack(name: str, attack: Any) -> None:
  """Raises ValueError unless it is an attack on messages or on edges."""
  if not isinstance(attack, base.Attack | EdgeAttack | AloneAttack):
    raise ValueError(
      f'{name} needs attack to be an Attack, an EdgeAttack or an AloneAttack,'
      f' got {attack!r}'
    )
