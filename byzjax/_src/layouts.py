"""Two layouts of the messages, and the one place that changes between them.

*Worker layout*: each device holds all coordinates of its own workers,
`[n/p, d]`; gradients, momentum and codecs live there. *Coordinate layout*: each
device holds its own coordinates of all workers, `[n, d/p]`; attacks and rules
live there. A tiled all-to-all leads from one to the other, and no device ever
holds n x d.
"""

import functools
from typing import Any, NamedTuple

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


class Message(NamedTuple):
  """The messages of a round after the attack, maybe not yet written out.

  Attributes:
    x: leaves [n, ...]; what the Byzantine workers send stands in `common`, if
      that is not None.
    common: the one row that they all send, or None.
    is_finite: bool[n], of what is sent; None if it has still to be looked at.
    squared_norms: float[n], of `x`; or None.
  """

  x: base.Messages
  common: base.CommonRow | None
  is_finite: jax.Array | None
  squared_norms: jax.Array | None


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
    is_byzantine=None,
    columns=None,
    num_coordinates=None,
    **options,
  ):
    attack_key, rule_key = (
      (None, None) if key is None else jax.random.split(key)
    )
    if is_byzantine is not None:
      n = checks.num_workers('messages', messages)
      is_byzantine = checks.byzantine_mask('an attack', is_byzantine, n)
    if num_coordinates is None:
      num_coordinates = sum(x[0].size for x in jax.tree.leaves(messages))
    options = {k: v for k, v in options.items() if v is not None}
    options['num_coordinates'] = num_coordinates
    sent = look_at(messages, aggregator, options.get('axis_name'))
    honest, attack_state = sent, state.attack
    if attack is not None:
      if is_byzantine is None:
        raise ValueError('an attack needs is_byzantine, got None')
      sent, attack_state = byzantine_message(
        attack,
        codec,
        sent,
        state,
        key=attack_key,
        is_byzantine=is_byzantine,
        columns=columns,
        **{k: options[k] for k in _KNOWLEDGE if k in options},
      )
    aggregate, rule_state, info = _aggregate(
      aggregator, sent, state.aggregator, params, rule_key, options
    )
    if columns is not None:
      # A vote on nothing is +1.
      aggregate = jnp.where(columns[0], aggregate, 0)
    if attack is not None and attack.observe is not None:
      attack_state = attack.observe(attack_state, aggregate)
    mask = sent.is_finite
    if mask is None:
      mask = look_at(sent.x, None, options.get('axis_name')).is_finite
    info = info._replace(mask=mask)
    if is_byzantine is not None:
      error = _error(aggregate, honest, is_byzantine, options)
      info = info._replace(error=error)
    return aggregate, WorkerShardedState(rule_state, attack_state), info

  return base.Aggregator(init, inspect, name=aggregator.name)


# What an attack may know of a round, of all that the rule is told.
_KNOWLEDGE = ('axis_name', 'num_coordinates', 'coordinates')


def look_at(
  messages: base.Messages,
  aggregator: base.Aggregator | None,
  axis_name: base.AxisName,
) -> Message:
  """The messages and which are finite, in one pass over them.

  A rule that needs their norms gets those of the same pass.
  """
  x, _ = flat.ravel_rows('round', messages)
  if aggregator is None or not aggregator.update.takes_norms:
    is_finite = reductions.finite_rows(x, axis_name=axis_name)
    return Message(messages, None, is_finite, None)
  norms = reductions.squared_norms(x, axis_name=axis_name)
  # The square of a large number is not finite either: only then look again.
  is_finite = lax.cond(
    jnp.all(jnp.isfinite(norms)),
    lambda x: jnp.ones(x.shape[0], bool),
    lambda x: reductions.finite_rows(x, axis_name=axis_name),
    x,
  )
  return Message(messages, None, is_finite, norms)


def byzantine_message(
  attack: base.Attack,
  codec: base.Codec | None,
  honest: Message,
  state: WorkerShardedState,
  *,
  key: jax.Array | None,
  is_byzantine: jax.Array,
  columns: jax.Array | None,
  **knowledge: Any,
) -> tuple[Message, base.State]:
  """What is sent after the attack, in the form that the codec can carry.

  Padding is nobody's coordinate: what the attack puts there is dropped.
  """
  options = {'axis_name': None, **knowledge}

  def as_carried(x):
    """Messages float[m, d] as they would come out of the wire."""
    if columns is not None:
      x = jnp.where(columns, x, 0)
    if codec is None:
      return x
    constrain = functools.partial(
      codec.constrain,
      num_coordinates=options['num_coordinates'],
      axis_name=options['axis_name'],
    )
    return jax.vmap(constrain)(x)

  told = dict(
    knowledge,
    is_byzantine=is_byzantine,
    is_finite=honest.is_finite,
    key=key,
    aggregator_state=state.aggregator,
  )
  if attack.send is not None:
    row, attack_state = attack.send(honest.x, state.attack, **told)
    row, layout = flat.ravel_rows(
      'attack', jax.tree.map(lambda r: r[None], row)
    )
    row = as_carried(row)
    finite = reductions.finite_rows(row, axis_name=options['axis_name'])
    common = base.CommonRow(layout.unravel(row[0]), is_byzantine)
    mask = jnp.where(is_byzantine, finite, honest.is_finite)
    return honest._replace(common=common, is_finite=mask), attack_state
  x, attack_state = attack.apply(honest.x, state.attack, **told)
  if codec is not None or columns is not None:
    x = jnp.where(is_byzantine[:, None], as_carried(x), honest.x)
  return Message(x, None, None, None), attack_state


def with_common_row(
  messages: base.Messages, row: base.Aggregate, mask: jax.Array
) -> base.Messages:
  """The messages with one row in place of those where `mask`: bool[n]."""

  def leaf(x, row):
    # Otherwise XLA:CPU computes the row once for every worker.
    row = reductions.materialized(row.astype(x.dtype), x)
    return jnp.where(mask.reshape((-1,) + (1,) * row.ndim), row[None], x)

  return jax.tree.map(leaf, messages, row)


def _aggregate(aggregator, sent, state, params, key, options):
  """The rule on what was sent, with as much as it can take of the rest."""
  x, common = sent.x, sent.common
  if common is not None and aggregator.update.takes_common:
    options = dict(options, common=common)
  elif common is not None:
    x = with_common_row(x, *common)
  if sent.squared_norms is not None and aggregator.update.takes_norms:
    if common is None or aggregator.update.takes_common:
      options = dict(options, squared_norms=sent.squared_norms)
  return aggregator.inspect(x, state, params, key=key, **options)


def _error(aggregate, honest, is_byzantine, options):
  """The distance from the aggregate to the mean of those who took part."""
  axis_name = options.get('axis_name')
  x, layout = flat.ravel_rows('round', honest.x)
  counted = ~is_byzantine & honest.is_finite
  weights = options.get('worker_weights')
  if weights is not None:
    counted &= (weights > 0) & jnp.isfinite(weights)
  honest_mean = reductions.rows_mean(x, counted)
  return reductions.distance(
    layout.ravel(aggregate), honest_mean, axis_name=axis_name
  )


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
