"""Two layouts of the messages, and the conversion between them.

*Worker layout*: each device holds all coordinates of its own workers, `[n/p,
d]`; used by gradients, momentum and codecs. *Coordinate layout*: each device
holds its own coordinates of all workers, `[n, d/p]`; used by attacks and rules.
A tiled all-to-all converts one into the other, and no device ever holds n x d.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, flat, message_rows, reductions

# Coordinates per device are a multiple of this, for any number of devices that
# divides 8 the same total: what noise is drawn for does not depend on it.
_COORDINATE_MULTIPLE = 32
_LEAST_PADDING = 256


class WorkerShardedState(NamedTuple):
  """State of `worker_sharded`: those of the rule and of the attack."""

  aggregator: base.State
  attack: base.State


# What an attack may know of the call, of all that the rule is told.
_KNOWLEDGE = ('axis_name', 'num_coordinates', 'coordinates')


class Seen(NamedTuple):
  """What one pass over the messages finds, before any attack.

  Attributes:
    is_finite: bool[n]; may be True for any message that an attack overwrites by
      one row anyway.
    counted: bool[n], the honest and finite messages of participants; None if it
      is not known which workers are honest.
    mean: float[d], the mean of these, or None.
    squared_norms: float[n], or None if the rule does not take them.
  """

  is_finite: jax.Array
  counted: jax.Array | None
  mean: jax.Array | None
  squared_norms: jax.Array | None


class Sent(NamedTuple):
  """The messages after the attack.

  Attributes:
    messages: leaves [n, ...], without the row in `common`.
    common: the one row that all Byzantine workers send, or None.
    is_finite: bool[n].
    squared_norms: float[n], of `messages`; None if they are not known.
  """

  messages: base.Messages
  common: base.CommonRow | None
  is_finite: jax.Array
  squared_norms: jax.Array | None


def attacked(
  aggregator: base.Aggregator,
  attack: base.Attack | None,
  codec: base.Codec | None = None,
) -> base.Aggregator:
  """The rule after the attack, with all diagnostics.

  `inspect` takes an extra `is_byzantine` bool[n]; its info has the finite mask
  and the distance to the honest mean for every rule. With a codec the messages
  are decoded ones, and Byzantine messages are constrained to possible ones.
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
    **told,
  ):
    n = checks.num_workers('messages', messages)
    if is_byzantine is not None:
      is_byzantine = checks.byzantine_mask('an attack', is_byzantine, n)
    elif attack is not None:
      raise ValueError('an attack needs is_byzantine, got None')
    told = {name: value for name, value in told.items() if value is not None}
    size = sum(x[0].size for x in jax.tree.leaves(messages))
    told.setdefault('num_coordinates', size)
    attack_key, rule_key = (
      (None, None) if key is None else jax.random.split(key)
    )
    seen = look_at(aggregator, attack, messages, is_byzantine, told)
    sent = Sent(messages, None, seen.is_finite, seen.squared_norms)
    attack_state = state.attack
    if attack is not None:
      sent, attack_state = byzantine_message(
        attack, codec, messages, seen, state, attack_key, is_byzantine, columns,
        told,
      )  # fmt: skip
    aggregate, rule_state, info = aggregate_sent(
      aggregator, sent, state.aggregator, params, rule_key, told
    )
    if columns is not None:
      # A vote on nothing is +1.
      aggregate = jnp.where(columns[0], aggregate, 0)
    if attack is not None and attack.observe is not None:
      attack_state = attack.observe(attack_state, aggregate)
    info = info._replace(mask=sent.is_finite)
    if seen.mean is not None:
      vector, _ = flat.ravel_rows('round', jax.tree.map(_as_rows, aggregate))
      error = reductions.distance(
        vector[0], seen.mean, axis_name=told.get('axis_name')
      )
      info = info._replace(error=error)
    return aggregate, WorkerShardedState(rule_state, attack_state), info

  return base.Aggregator(init, inspect, name=aggregator.name)


def look_at(
  aggregator: base.Aggregator,
  attack: base.Attack | None,
  messages: base.Messages,
  is_byzantine: jax.Array | None,
  told: dict[str, Any],
) -> Seen:
  """Finite messages and the honest mean, in as few passes as possible."""
  x, _ = flat.ravel_rows('round', messages)
  axis_name, weights = told.get('axis_name'), told.get('worker_weights')
  norms = mean = all_finite = None
  if aggregator.update.takes_norms:
    norms = reductions.squared_norms(x, axis_name=axis_name)
    # The square of a large number is not finite either: only then look again.
    all_finite = jnp.all(jnp.isfinite(norms))
  if attack is not None and attack.send is not None and weights is None:
    assert is_byzantine is not None
    mean = reductions.rows_mean(x, ~is_byzantine)
    if norms is None:
      # A mean is finite if and only if all of its rows are, as they are divided
      # first; and of the other rows nothing is read.
      all_finite = reductions.finite_rows(mean[None])[0]
  is_finite = reductions.finite_rows(x, axis_name=axis_name, known=all_finite)
  if is_byzantine is None:
    return Seen(is_finite, None, None, norms)
  counted = ~is_byzantine & is_finite
  if weights is not None:
    counted &= (weights > 0) & jnp.isfinite(weights)
  if mean is None:
    mean = reductions.rows_mean(x, counted)
  else:
    mean = lax.cond(
      jnp.all(is_finite),
      lambda x, mean: mean,
      lambda x, mean: reductions.rows_mean(x, counted),
      x,
      mean,
    )
  return Seen(is_finite, counted, mean, norms)


def byzantine_message(
  attack: base.Attack,
  codec: base.Codec | None,
  messages: base.Messages,
  seen: Seen,
  state: WorkerShardedState,
  key: jax.Array | None,
  is_byzantine: jax.Array,
  columns: jax.Array | None,
  told: dict[str, Any],
) -> tuple[Sent, base.State]:
  """The messages after the attack, in the form that the codec can carry.

  What the attack writes into padding is dropped.
  """
  axis_name = told.get('axis_name')

  def as_carried(x):
    """Messages float[m, d] as they are after encoding and decoding."""
    if columns is not None:
      x = jnp.where(columns, x, 0)
    if codec is None:
      return x
    constrain = functools.partial(
      codec.constrain,
      num_coordinates=told['num_coordinates'],
      axis_name=axis_name,
    )
    return jax.vmap(constrain)(x)

  knowledge = {name: told[name] for name in _KNOWLEDGE if name in told}
  knowledge |= {
    'is_byzantine': is_byzantine,
    'key': key,
    'aggregator_state': state.aggregator,
    'is_finite': seen.is_finite,
  }
  if 'worker_weights' not in told:
    knowledge['honest_mean'] = seen.mean
  if attack.send is None:
    x, attack_state = attack.apply(messages, state.attack, **knowledge)
    if codec is not None or columns is not None:
      x = jnp.where(is_byzantine[:, None], as_carried(x), messages)
    rows, _ = flat.ravel_rows('attack', x)
    is_finite = reductions.finite_rows(rows, axis_name=axis_name)
    return Sent(x, None, is_finite, None), attack_state
  row, attack_state = attack.send(messages, state.attack, **knowledge)
  rows, layout = flat.ravel_rows('attack', jax.tree.map(_as_rows, row))
  rows = as_carried(rows)
  is_finite = reductions.finite_rows(rows, axis_name=axis_name)
  is_finite = jnp.where(is_byzantine, is_finite, seen.is_finite)
  common = base.CommonRow(layout.unravel(rows[0]), is_byzantine)
  return Sent(messages, common, is_finite, seen.squared_norms), attack_state


def written(messages: base.Messages, common: base.CommonRow) -> base.Messages:
  """The messages with the common row in its places, computed only once."""
  # Otherwise XLA:CPU computes it again for every worker. An empty leaf has no
  # number that depends on data.
  always = reductions.always(max(jax.tree.leaves(messages), key=jnp.size))
  row = jax.tree.map(lambda x: reductions.materialized(x, always), common.row)
  return message_rows.put(messages, common._replace(row=row))


def aggregate_sent(
  aggregator: base.Aggregator,
  sent: Sent,
  state: base.State,
  params: base.Params | None,
  key: jax.Array | None,
  told: dict[str, Any],
) -> tuple[base.Aggregate, base.State, base.AggregationInfo]:
  """The rule on the messages sent, with the keywords that it takes."""
  messages, rule = sent.messages, aggregator.update
  if sent.common is not None and rule.takes_common:
    told = dict(told, common=sent.common)
  elif sent.common is not None:
    messages = written(messages, sent.common)
  if messages is sent.messages and sent.squared_norms is not None:
    told = dict(told, squared_norms=sent.squared_norms)
  return aggregator.inspect(messages, state, params, key=key, **told)


def _as_rows(leaf):
  return jnp.asarray(leaf)[None]


def padded_size(size: int, num_shards: int) -> int:
  """The number of coordinates that are split over `num_shards` devices."""
  multiple = _COORDINATE_MULTIPLE * num_shards
  multiple *= -(-_LEAST_PADDING // multiple)
  return -(-size // multiple) * multiple


def coordinates(local_size: int, axis_name: base.AxisName = None) -> jax.Array:
  """The indices of the coordinates here, with padding: int32[s]."""
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


def from_everyone(
  vector: jax.Array, size: int, axis_name: base.AxisName
) -> jax.Array:
  """The coordinates here of a vector that all devices have: `[d] -> [s/p]`.

  It is padded to s, `size`, first.
  """
  vector = jnp.pad(vector, (0, size - vector.size))
  if axis_name is None:
    return vector
  local_size = size // lax.axis_size(axis_name)
  first = lax.axis_index(axis_name) * local_size
  return lax.dynamic_slice_in_dim(vector, first, local_size)


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
