"""The stages of a round with a server, each alone.

local update -> encode -> attack and aggregate -> broadcast -> server step
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, data_attacks, draws, flat, layouts, reductions
from byzjax.rounds import _wire
from byzjax.rounds._sharded_step import rows_here
from byzjax.rounds._work import Cohort, Parts, WorkContext, WorkerOutput


class Keys(NamedTuple):
  """What is drawn from, stage by stage."""

  data: jax.Array
  server: jax.Array
  work: jax.Array
  codec: jax.Array
  broadcast: jax.Array


class Encoded(NamedTuple):
  """Messages as they go over the wire, of the workers of one device."""

  payload: base.Payload  # leaves [k, ...]
  state: base.State  # of their codecs, leaves [k, ...]
  bits: jax.Array  # float[k]


def keys_of(key: jax.Array, step: jax.Array) -> Keys:
  """The keys of one round."""
  return Keys(*jax.random.split(jax.random.fold_in(key, step), 5))


def context_of(
  parts: Parts, state: base.RoundState, cohort: Cohort
) -> WorkContext:
  """The round as the workers of this device see it."""
  num_local = parts.cohort_size // parts.num_shards

  def of_this_device(x):
    return rows_here(x, num_local, parts.axes)

  takes_part = None
  if cohort.weights is not None:
    takes_part = of_this_device(cohort.weights > 0)
  return WorkContext(
    state.step,
    cohort,
    of_this_device(cohort.ids),
    of_this_device(cohort.is_byzantine),
    takes_part,
    state.shared,
    state.auxiliary,
    parts.axes,
    parts.computes,
  )


def local_update(
  parts: Parts,
  state: base.RoundState,
  batch: base.Batch,
  context: WorkContext,
  keys: Keys,
) -> WorkerOutput:
  """What the workers of this device compute from their batches `[k, ...]`."""
  params = state.params
  if parts.axes is not None:
    # Without this, gradients of replicated parameters are silently summed over
    # the devices.
    params = lax.pcast(params, parts.axes, to='varying')
  if parts.data_attack is not None:
    batch = data_attacks.corrupt(
      parts.data_attack,
      batch,
      data_attacks.ranks_of(context),
      keys.data,
      params,
    )
  exchange = functools.partial(
    auxiliary_aggregation,
    parts,
    parts.work.auxiliary(state.params),
    context.cohort,
    jax.random.fold_in(keys.server, 0),
  )
  output = parts.work.run(
    params,
    batch,
    state.workers,
    draws.worker_keys(keys.work, context.ids),
    context=context,
    exchange=exchange,
  )
  if context.takes_part is None:
    return output
  rows = where_rows(context.takes_part, output.rows, state.workers)
  return output._replace(rows=rows)


def own_update(
  parts: Parts, state: base.RoundState, context: WorkContext, keys: Keys
) -> tuple[jax.Array | None, base.State]:
  """The server's own message float[d] on its root batch, and what it keeps.

  It works as one worker more, whom nobody attacks; on a mesh every device does
  the same.
  """
  if parts.root_at is None:
    return None, state.trusted
  own = jnp.full(1, parts.num_workers)
  output = parts.work.run(
    state.params,
    jax.tree.map(lambda x: jnp.asarray(x)[None], parts.root_at(state.step)),
    state.trusted,
    draws.worker_keys(keys.work, own),
    context=context._replace(
      ids=own,
      is_byzantine=jnp.zeros(1, bool),
      takes_part=None,
      axis_name=None,
      computes=None,
    ),
    exchange=None,
  )
  return output.messages[0], output.rows


def auxiliary_aggregation(
  parts: Parts,
  auxiliary: tuple[tuple[int, base.Aggregator], ...],
  cohort: Cohort,
  key: jax.Array,
  i: int,
  rows: jax.Array,
  state: layouts.WorkerShardedState,
) -> tuple[jax.Array, layouts.WorkerShardedState]:
  """The i-th aggregate beside the messages, uncompressed both ways.

  `rows float[k, size] -> float[size]`, the same on all devices.
  """
  size, rule = auxiliary[i]
  rows = jnp.pad(rows, ((0, 0), (0, parts.padded(size) - size)))
  x = layouts.to_coordinates(rows, parts.axes)
  aggregate, state, _ = layouts.attacked(rule, parts.attack).inspect(
    x,
    state,
    key=jax.random.fold_in(key, i),
    axis_name=parts.axes,
    is_byzantine=cohort.is_byzantine,
    columns=true_columns(parts, x, size),
    num_coordinates=size,
    worker_weights=cohort.weights,
  )
  return layouts.to_everyone(aggregate, parts.axes)[:size], state


def encode(
  parts: Parts,
  messages: jax.Array,
  state: base.State,
  context: WorkContext,
  key: jax.Array,
) -> Encoded:
  """The messages float[k, d] as they go over the wire, padded."""
  size = parts.padded(messages.shape[1])
  payload, new_state, bits = _wire.encode_rows(
    parts.codec, messages, state, draws.worker_keys(key, context.ids), size
  )
  if context.takes_part is not None:
    new_state = where_rows(context.takes_part, new_state, state)
  return Encoded(payload, new_state, bits)


def attack_and_aggregate(
  parts: Parts,
  payload: base.Payload,
  state: base.RoundState,
  cohort: Cohort,
  key: jax.Array,
  trusted: jax.Array | None = None,
) -> tuple[jax.Array, layouts.WorkerShardedState, base.AggregationInfo]:
  """What the server makes of the payload, on its local coordinates.

  `trusted` float[d] is the server's own message, the same on all devices, or
  None. Returns the aggregate float[D / p], the states of rule and attack, and
  the diagnostics.
  """
  server_state = layouts.WorkerShardedState(state.aggregator, state.attack)
  layout = flat.row_layout(state.params)
  payload = layouts.to_coordinates(payload, parts.axes)
  if votes_on_words(parts, cohort):
    assert parts.codec is not None
    assert parts.aggregator.inspect_words is not None
    vote, info = parts.aggregator.inspect_words(
      payload, is_byzantine=cohort.is_byzantine, axis_name=parts.axes
    )
    return parts.codec.decode(vote).astype(layout.dtype), server_state, info
  x = _wire.decode_rows(parts.codec, payload, layout.dtype)
  columns = true_columns(parts, x, layout.size)
  if columns is not None and parts.codec is not None:
    x = jnp.where(columns, x, 0)
  if trusted is not None:
    trusted = layouts.from_everyone(
      trusted, parts.padded(layout.size), parts.axes
    )
  return parts.server.inspect(
    x,
    server_state,
    key=key,
    axis_name=parts.axes,
    is_byzantine=cohort.is_byzantine,
    columns=columns,
    num_coordinates=layout.size,
    worker_weights=cohort.weights,
    trusted=trusted,
  )


def votes_on_words(parts: Parts, cohort: Cohort) -> bool:
  """Whether packed signs are counted as they are.

  Unpacking would take most of the server's time, and only an attack on messages
  needs it.
  """
  packed = parts.codec is not None and parts.codec.packs_signs
  counted = parts.attack is None and cohort.weights is None
  small = parts.cohort_size <= reductions.MAX_UNROLLED
  has_words = parts.aggregator.inspect_words is not None
  return packed and counted and small and has_words


def broadcast(
  parts: Parts, aggregate: jax.Array, state: base.RoundState, key: jax.Array
) -> tuple[jax.Array, base.State, jax.Array]:
  """The aggregate float[D] as all workers get it, and the bits of that."""
  return _wire.broadcast(
    parts.server_codec,
    aggregate,
    state.server_codec,
    key,
    num_coordinates=flat.row_layout(state.params).size,
    axis_name=parts.axes,
  )


def server_step(
  parts: Parts, aggregate: jax.Array, state: base.RoundState
) -> tuple[base.Params, optax.OptState]:
  """The parameters after the server's step, and its optimizer."""
  layout = flat.row_layout(state.params)
  updates, optimizer = parts.optimizer.update(
    layout.unravel(aggregate), state.optimizer, state.params
  )
  return optax.apply_updates(state.params, updates), optimizer


def where_rows(mask: jax.Array, new: base.State, old: base.State) -> base.State:
  """The rows of the leaves `[n, ...]` from one tree or the other."""

  def rows(x, y):
    return jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)

  return jax.tree.map(rows, new, old)


def true_columns(parts: Any, x: jax.Array, size: int) -> jax.Array | None:
  """Which local coordinates are no padding: bool[1, s], or None if all are."""
  if parts.padded(size) == size:
    return None
  return layouts.columns(x.shape[1], size, parts.axes)[None]
