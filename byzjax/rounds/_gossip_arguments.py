"""What rounds of gossip check, beside what all rounds check."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks
from byzjax.gossip import EdgeAttack, _sending

ORDERS = ('adapt_then_combine', 'combine_while_adapt')


def check_slots(name: str, topology: Any, rule: Any, attack: Any) -> None:
  """Raises ValueError for a slot that holds what does not belong there."""
  _sending.check_topology(name, topology)
  _sending.check_rule(name, rule)
  if attack is not None and not isinstance(attack, _sending.Attack):
    if not callable(attack):
      raise ValueError(
        f'{name} needs attack to be an Attack, an attack of byzjax.gossip, a'
        f' data attack (batch, is_byzantine, key) -> batch, or None, got'
        f' {attack!r}'
      )


def check_num_workers(name: str, topology: Any, num_workers: Any) -> None:
  """Raises ValueError unless there is one worker for each node."""
  n = topology.num_nodes
  if num_workers is not None and num_workers != n:
    raise ValueError(
      f'{name} needs num_workers to equal the {n} nodes of the topology, got'
      f' {num_workers}'
    )


def check_mesh_attack(name: str, attack: Any) -> None:
  """Raises ValueError for attacks that need the vectors of several nodes."""
  if isinstance(attack, base.Attack | EdgeAttack):
    raise ValueError(
      f'{name} needs an attack that sees one node at a time when mesh is given,'
      f' got {attack!r}: no device has the vectors of all nodes (wrap it in'
      ' gossip.alone, or use mesh=None)'
    )


def check_codec(name: str, codec: Any) -> None:
  """Raises ValueError unless it is a codec or None."""
  if codec is not None and not isinstance(codec, base.Codec):
    raise ValueError(f'{name} needs codec to be a Codec or None, got {codec!r}')


def byzantine_schedule(
  name: str, num_nodes: int, byzantine: Any
) -> base.ByzantineSchedule:
  """The Byzantine nodes, as a schedule; None for none.

  A majority may be Byzantine, because robustness is per neighbourhood.
  """
  if byzantine is None:
    byzantine = 0
  if callable(byzantine):
    return byzantine
  if checks.is_whole(byzantine):
    checks.check_count(name, 'byzantine', byzantine)
    mask = np.arange(num_nodes) < byzantine
    if byzantine >= num_nodes:
      raise ValueError(
        f'{name} needs byzantine < {num_nodes} nodes, got {byzantine}'
      )
    return lambda step: jnp.asarray(mask)
  traced = isinstance(byzantine, jax.core.Tracer)
  given = byzantine if traced else np.asarray(byzantine)
  if given.shape != (num_nodes,) or given.dtype != jnp.bool_:
    raise ValueError(
      f'{name} needs byzantine to be an int, a schedule or'
      f' bool[{num_nodes}], got {given.dtype}{list(given.shape)}'
    )
  if not traced and given.all():
    raise ValueError(
      f'{name} needs byzantine to leave at least one honest node, got all'
      f' {num_nodes} nodes'
    )
  return lambda step: jnp.asarray(given)


def number_schedule(
  name: str, argument: str, value: Any
) -> Callable[[jax.Array], jax.Array]:
  """A number by step, from a number or a schedule."""
  if callable(value):
    return value
  checks.check_range(name, argument, value, 0)
  return lambda step: jnp.asarray(value)
