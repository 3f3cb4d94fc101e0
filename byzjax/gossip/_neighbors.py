"""A step of gossip on a mesh: nodes see their neighbours, and nobody else.

Nodes of a ring or a torus lie on devices in blocks of whole rows of the grid. A
device sends the first and the last row of its block to the devices next to it,
and receives theirs: two rows of vectors, however many nodes there are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax._src import nonfinite, reductions
from byzjax.gossip._dense import aggregator_of
from byzjax.gossip._sending import Sent
from byzjax.gossip._types import GossipRule, Rule
from byzjax.topology import Topology


def check_grid(name: str, topology: Topology, num_shards: int) -> None:
  """Raises ValueError unless the nodes are a grid of rows that can be split."""
  if topology.grid is None:
    raise ValueError(
      f'{name} needs a ring or a torus on a mesh: other graphs have no exchange'
      ' between neighbouring devices (leave mesh=None)'
    )
  if topology.grid[0] % num_shards:
    raise ValueError(
      f'{name} needs the rows of the grid to be a multiple of the {num_shards}'
      f' devices, got {topology.grid[0]} rows'
    )


def displacement(
  rule: Rule,
  topology: Topology,
  messages: Sent,
  key: jax.Array | None,
  axis_name: str | tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
  """`gossip(x) - x` of this device's nodes; and which sent a usable vector.

  Under `jax.shard_map`, of messages of the m nodes of this device.
  """
  own, sent, is_byzantine, _ = messages
  assert topology.grid is not None
  rows, columns = topology.grid
  m = own.shape[0]
  first = lax.axis_index(axis_name) * m
  directions = _directions(rows, columns)
  table = _neighbors(rows, columns, directions)  # [n, s]
  mixing = np.take_along_axis(topology.mixing, table, axis=1)

  def of_mine(x):
    return lax.dynamic_slice_in_dim(jnp.asarray(x), first, m)

  slots = _slots(sent.reshape(m // columns, columns, -1), directions, axis_name)
  slots = [slot.reshape(own.shape) for slot in slots]
  usable = nonfinite.usable_norms(reductions.squared_norms(sent))
  if not slots:
    return jnp.zeros_like(own), usable
  norms = [reductions.squared_norms(slot) for slot in slots]
  heard = nonfinite.usable_norms(jnp.stack(norms, axis=1))
  weight = of_mine(mixing).astype(own.dtype)
  if is_byzantine is not None:
    # They take the plain mean with their honest neighbours.
    mine = of_mine(is_byzantine)[:, None]
    among_honest = jnp.where(of_mine(is_byzantine[table]), 0, weight)
  if isinstance(rule, GossipRule):
    weights = _weights(rule, slots, own, heard, weight)
    if is_byzantine is not None:
      weights = jnp.where(mine, among_honest, weights)
    return _moved(weights, heard, slots, own), usable
  ids = first + jnp.arange(m)
  moved = _aggregated(rule, slots, own, heard, ids, key)
  if is_byzantine is not None:
    plain = _moved(among_honest, heard, slots, own)
    moved = jnp.where(mine, plain, moved)
  return moved, usable


def _weights(rule, slots, own, heard, mixing):
  """What each node weighs each direction: [m, s]."""
  apart = [reductions.squared_norms(slot - own) for slot in slots]
  squared = jnp.where(heard, jnp.stack(apart, axis=1), jnp.inf)
  # A node whose own vector is not usable has no distances.
  squared = jnp.where(jnp.isnan(squared), jnp.inf, squared)
  return jax.vmap(rule.weights)(squared, mixing, jnp.ones_like(heard))


def _moved(weights, heard, slots, own):
  """`sum_s w_s (y_s - own)` over the directions s: [m, d]."""
  total = jnp.zeros_like(own)
  for s, slot in enumerate(slots):
    counts = (heard[:, s] & (weights[:, s] != 0))[:, None]
    total += jnp.where(counts, weights[:, s, None] * (slot - own), 0)
  return total


def _aggregated(rule, slots, own, heard, ids, key):
  """What the rule makes of every neighbourhood, minus the node's vector."""
  aggregate = aggregator_of(rule, len(slots) + 1, own[0])

  def of_node(node):
    i, own_row, heard_row, *others = node
    others = [
      jnp.where(heard_row[s], other, own_row) for s, other in enumerate(others)
    ]
    return aggregate(jnp.stack([own_row, *others]), i, key) - own_row

  return lax.map(of_node, (ids, own, heard, *slots))


def _directions(rows, columns):
  """Steps in the grid to the neighbours of a node, each neighbour once."""

  def along(length):
    return [] if length == 1 else [1] if length == 2 else [-1, 1]

  return [(r, 0) for r in along(rows)] + [(0, c) for c in along(columns)]


def _neighbors(rows, columns, directions):
  """The neighbour of every node in every direction: int[n, s]."""
  row, column = np.divmod(np.arange(rows * columns), columns)
  ids = [
    (row + r) % rows * columns + (column + c) % columns for r, c in directions
  ]
  return np.array(ids, int).reshape(len(directions), rows * columns).T


def _slots(block, directions, axis_name):
  """What the neighbours sent: of [k, columns, d], one such per direction."""
  p = lax.axis_size(axis_name)
  k = block.shape[0]

  def shifted(rows, by):
    """The rows of the device that is `by` before this one."""
    return lax.ppermute(rows, axis_name, [(i, (i + by) % p) for i in range(p)])

  slots = []
  for r, c in directions:
    if c:
      slots.append(jnp.roll(block, -c, axis=1))
    elif r > 0:
      slots.append(jnp.concatenate([block[1:], shifted(block[:1], -1)]))
    else:
      slots.append(jnp.concatenate([shifted(block[k - 1 :], 1), block[:-1]]))
  return slots
