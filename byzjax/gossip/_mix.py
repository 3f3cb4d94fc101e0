"""One step of gossip on given vectors."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat
from byzjax.gossip import _dense, _sending
from byzjax.gossip._types import Rule
from byzjax.topology import Topology


def mix(
  rule: Rule,
  topology: Topology,
  messages: base.Messages,
  *,
  attack: _sending.Attack | None = None,
  is_byzantine: jax.Array | None = None,
  key: jax.Array | None = None,
) -> base.Messages:
  """One step of gossip on n given vectors, without training.

  Each node replaces its vector by the result of the rule, applied to its own
  vector and those sent by its neighbours. With an attack, Byzantine nodes send
  other vectors, and themselves take the plain mean with their honest
  neighbours.

  All nodes are on one device, so the weights come from one n x n matrix of
  inner products, and are applied by one product without n x n x d numbers.

  Args:
    rule: a rule of `byzjax.gossip`, such as `clipped()`.
    topology: a `Topology` of n nodes, such as `topology.ring(n)`.
    messages: leaves `[n, *shape]`, one row per node.
    attack: an `Attack` (all neighbours get the same vector), an edge attack
      such as `dissensus()`, an `alone(attack)`, or None.
    is_byzantine: bool[n], the Byzantine nodes; required with an attack.
    key: for attacks and rules that need a random key.

  Returns:
    The vectors after the step: leaves `[n, *shape]`.

  Raises:
    ValueError: if an argument has the wrong type, or numbers of nodes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(gossip.plain(), topology.ring(4), jnp.arange(4.) * 3)
    Array([4., 3., 6., 5.], dtype=float32)
  """
  _sending.check_rule('mix', rule)
  _sending.check_topology('mix', topology)
  x, layout = flat.ravel_rows('mix', messages)
  n = topology.num_nodes
  if x.shape[0] != n:
    raise ValueError(f'mix needs messages with {n} rows, got {x.shape[0]}')
  attack_key, rule_key = (None,) * 2 if key is None else jax.random.split(key)
  if is_byzantine is not None:
    is_byzantine = checks.byzantine_mask('mix', is_byzantine, n)
  if attack is not None:
    _sending.check_attack('mix', attack)
    if is_byzantine is None:
      raise ValueError(
        f'mix needs is_byzantine to be bool[{n}] for an attack, got None'
      )
  sent, _ = _sending.byzantine_messages(
    attack,
    x,
    _sending.init(attack, x[0]),
    is_byzantine=is_byzantine,
    ids=jnp.arange(n),
    key=attack_key,
  )
  moved, _ = _dense.displacement(rule, topology, sent, rule_key)
  return layout.unravel_rows(x + moved)
