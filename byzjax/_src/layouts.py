"""Two layouts of the messages, and the one place that changes between them.

*Worker layout*: each device holds all coordinates of its own workers,
`[n/p, d]`; gradients, momentum and codecs live there. *Coordinate layout*: each
device holds its own coordinates of all workers, `[n, d/p]`; attacks and rules
live there. A tiled all-to-all leads from one to the other, and no device ever
holds n x d.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, flat, reductions

# Coordinates per device are a multiple of this, for any number of devices that
# divides 8 the same total: what noise is drawn for does not depend on it.
_COORDINATE_MULTIPLE = 32
_LEAST_PADDING = 256


class WorkerShardedState(NamedTuple):
  """State of `worker_sharded`: the rule's, and the attack's in front of it."""

  aggregator: base.State
  attack: base.State


def attacked(
  aggregator: base.Aggregator,
  attack: base.Attack | None,
  codec: base.Codec | None = None,
) -> base.Aggregator:
  """The rule as the server meets it: after the attack, with full diagnostics.

  `inspect` takes an extra `is_byzantine` bool[n]; its info has the finite mask
  and the distance to the honest mean for every rule. With a codec the messages
  are decoded ones, and what attackers send is made such.
  """

  def init(params):
    return WorkerShardedState(
      aggregator.init(params), attack.init(params) if attack else ()
    )

  def inspect(
    messages,
    state,
    params=None,
    *,
    key=None,
    axis_name=None,
    is_byzantine=None,
    columns=None,
    num_coordinates=None,
    coordinates=None,
    **extra,
  ):
    if num_coordinates is None:
      num_coordinates = sum(x[0].size for x in jax.tree.leaves(messages))
    attack_key, rule_key = (
      (None, None) if key is None else jax.random.split(key)
    )
    if coordinates is not None:
      extra['coordinates'] = coordinates
    honest, attack_state = messages, state.attack
    if is_byzantine is not None:
      n = checks.num_workers('messages', messages)
      is_byzantine = checks.byzantine_mask('an attack', is_byzantine, n)
    if attack is not None:
      if is_byzantine is None:
        raise ValueError('an attack needs is_byzantine, got None')
      messages, attack_state = attack.apply(
        messages,
        state.attack,
        is_byzantine=is_byzantine,
        key=attack_key,
        axis_name=axis_name,
        aggregator_state=state.aggregator,
        num_coordinates=num_coordinates,
        **({} if coordinates is None else {'coordinates': coordinates}),
      )
      if codec is not None:
        x = messages if columns is None else jnp.where(columns, messages, 0)
        constrain = functools.partial(
          codec.constrain, num_coordinates=num_coordinates, axis_name=axis_name
        )
        messages = jnp.where(is_byzantine[:, None], jax.vmap(constrain)(x), x)
    if columns is not None:
      # Padding is nobody's coordinate: whatever was sent there is dropped.
      messages = jnp.where(columns, messages, 0)
    aggregate, rule_state, info = aggregator.inspect(
      messages,
      state.aggregator,
      params,
      key=rule_key,
      axis_name=axis_name,
      num_coordinates=num_coordinates,
      **extra,
    )
    if columns is not None:
      # A vote on nothing is +1.
      aggregate = jnp.where(columns[0], aggregate, 0)
    if attack is not None and attack.observe is not None:
      attack_state = attack.observe(attack_state, aggregate)
    x, layout = flat.ravel_rows('round', messages)
    info = info._replace(mask=reductions.finite_rows(x, axis_name=axis_name))
    if is_byzantine is not None:
      honest = layout.ravel_rows(honest)
      finite = reductions.finite_rows(honest, axis_name=axis_name)
      counted = ~is_byzantine & finite
      if extra.get('worker_weights') is not None:
        weights = extra['worker_weights']
        counted &= (weights > 0) & jnp.isfinite(weights)  # who took part
      honest_mean = reductions.rows_mean(honest, counted)
      error = reductions.distance(
        layout.ravel(aggregate), honest_mean, axis_name=axis_name
      )
      info = info._replace(error=error)
    return aggregate, WorkerShardedState(rule_state, attack_state), info

  return base.Aggregator(init, inspect, name=aggregator.name)


def padded_size(size: int, num_shards: int) -> int:
  """The number of coordinates that are split over `num_shards` devices."""
  multiple = _COORDINATE_MULTIPLE * num_shards
  multiple *= -(-_LEAST_PADDING // multiple)
  return -(-size // multiple) * multiple


def coordinates(local_size: int, axis_name: base.AxisName = None) -> jax.Array:
  """The numbers of the coordinates here, padding among them: int32[s]."""
  first = 0 if axis_name is None else lax.axis_index(axis_name) * local_size
  return first + jnp.arange(local_size)


def columns(
  local_size: int, num_coordinates: int, axis_name: base.AxisName = None
) -> jax.Array:
  """Which of the coordinates here are no padding: bool[local_size]."""
  return coordinates(local_size, axis_name) < num_coordinates


def to_coordinates(
  payload: base.Payload, axis_name: base.AxisName
) -> base.Payload:
  """From worker layout to coordinate layout: `[n/p, .., s] -> [n, .., s/p]`.

  Leaves [n/p] of one number per worker become [n] everywhere. The identity if
  nothing is split.
  """
  if axis_name is None:
    return payload

  def move(x):
    if x.ndim == 1:
      return lax.all_gather(x, axis_name, tiled=True, to='invarying')
    return lax.all_to_all(
      x, axis_name, split_axis=x.ndim - 1, concat_axis=0, tiled=True
    )

  return jax.tree.map(move, payload)


def to_everyone(
  payload: base.Payload, axis_name: base.AxisName
) -> base.Payload:
  """All coordinates of one vector: `[.., s/p] -> [.., s]`; scalars stay."""
  if axis_name is None:
    return payload

  def gather(x):
    if x.ndim == 0:
      return x
    return lax.all_gather(
      x, axis_name, axis=x.ndim - 1, tiled=True, to='invarying'
    )

  return jax.tree.map(gather, payload)
