"""An asynchronous round, message by message: its job, and the server's step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from byzjax._src import base, data_attacks, flat, layouts
from byzjax.asynchrony._plan import Plan
from byzjax.rounds import (
  _asynchronous_arguments,
  _asynchronous_server,
  _asynchronous_work,
  _wire,
)
from byzjax.rounds._asynchronous_rows import (
  place_of,
  put,
  put_anywhere,
  take,
  take_anywhere,
)
from byzjax.rounds._asynchronous_work import Parts
from byzjax.rounds._engine import coordinate_specs
from byzjax.rounds._sharded_step import place, sharded_step

NAME = 'asynchronous_round'


def init(parts: Parts, params: base.Params) -> base.RoundState:
  """The state before the first message."""
  layout = flat.row_layout(params)
  zeros = jnp.zeros(parts.padded(layout.size), layout.dtype)
  optimizer = parts.optimizer.init(params)
  rows, shared = _asynchronous_work.init(
    parts, parts.broadcast(params, optimizer)
  )
  state = base.RoundState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    workers=rows,
    attack=_init_attack(parts, zeros),
    aggregator=_init_rule(parts, zeros),
    optimizer=optimizer,
    codec=_wire.init_rows(
      parts.codec,
      jnp.zeros(layouts.padded_size(layout.size, 1), layout.dtype),
      parts.num_workers,
    ),
    shared=shared,
  )
  if parts.mesh is None:
    return state
  return place(state, parts.mesh, state_specs(parts, state))


def state_specs(parts: Parts, state: base.RoundState) -> base.RoundState:
  """Workers and versions are split by row, what the rule sees by coordinate."""
  rows = PartitionSpec(parts.axis_name)
  columns = PartitionSpec(None, parts.axis_name)
  layout = flat.row_layout(state.params)

  def all_of(spec, tree):
    return jax.tree.map(lambda _: spec, tree)

  def by_coordinate(init):
    return coordinate_specs(
      functools.partial(init, parts),
      parts.padded(layout.size),
      layout.dtype,
      parts.axis_name,
    )

  specs, shared = all_of(PartitionSpec(), state), state.shared
  return specs._replace(
    workers=all_of(rows, state.workers),
    attack=by_coordinate(_init_attack),
    aggregator=by_coordinate(_init_rule),
    codec=all_of(rows, state.codec),
    shared=specs.shared._replace(
      versions=all_of(rows, shared.versions),
      places=all_of(columns, shared.places),
      latest=all_of(columns, shared.latest),
    ),
  )


def step(
  parts: Parts, state: base.RoundState, batch: base.Batch, key: jax.Array
) -> tuple[base.RoundState, base.RoundInfo]:
  """Message `state.step`, from its job to the server's step."""
  _asynchronous_arguments.check_batch(
    NAME, batch, parts.num_shards, parts.takes_slices
  )
  if parts.mesh is None:
    return device_step(parts, state, batch, key)
  sharded = sharded_step(
    lambda state, batch, key, _: device_step(parts, state, batch, key),
    parts.mesh,
    parts.axis_name,
    state_specs(parts, state),
    # A worker may compute on any part of the data.
    batch_specs=PartitionSpec(),
  )
  now, _ = message_of(parts.plan, parts.num_events, state.step)
  new_state, info = sharded(state, batch, key, ())
  # What others have there is nothing.
  device = now.worker // parts.num_local
  aux = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, device, 1), info.aux)
  return new_state, info._replace(aux=aux)


def device_step(
  parts: Parts, state: base.RoundState, batch: base.Batch, key: jax.Array
) -> tuple[base.RoundState, base.RoundInfo]:
  """A message, on one device or on this device under `jax.shard_map`."""
  now, is_over = message_of(parts.plan, parts.num_events, state.step)
  shared, k = state.shared, now.worker
  is_byzantine = parts.byzantine_at(state.step)
  job_key, step_key = jax.random.split(key)
  keys = jax.random.split(jax.random.fold_in(step_key, state.step), 3)
  stale = take_anywhere(shared.versions, now.read, parts.axes)
  worked = _asynchronous_work.work(
    parts,
    now,
    state,
    stale,
    take(batch, now.shard),
    data_attacks.ranks(is_byzantine)[k],
    job_key,
    keys[0],
  )
  sent = _asynchronous_work.send(
    parts, state, now, worked, is_byzantine, keys[1]
  )
  extra = extra_arguments(now, stale)
  received = _asynchronous_server.receive(
    parts, now, state, sent, is_byzantine[k], extra
  )
  server, outcome = _asynchronous_server.serve(
    parts, now, state, sent.attack, received, extra, keys[2], is_over
  )
  version = parts.broadcast(server.params, server.optimizer)
  has_buffer = parts.num_places is not None
  # Elsewhere it is the row that was there.
  _, mine = place_of(k, parts.num_local, parts.axes)
  new_state = state._replace(
    **server._asdict(),
    step=state.step + 1,
    workers=put(state.workers, worked.rows, mine),
    codec=put(state.codec, worked.coder, mine),
    shared=shared._replace(
      versions=put_anywhere(shared.versions, version, now.write, parts.axes),
      places=received.places if has_buffer else None,
      is_byzantine=received.is_byzantine if has_buffer else None,
      latest=sent.latest,
      incoming=received.incoming,
    ),
  )
  return new_state, base.RoundInfo(
    loss=worked.loss,
    aggregation_error=outcome.error,
    bits_up=worked.bits,
    bits_down=jnp.asarray(32.0 * flat.row_layout(state.params).size),
    num_nonfinite=jnp.sum(outcome.masked, dtype=jnp.int32),
    is_byzantine=received.is_byzantine,
    masked=outcome.masked,
    num_local_steps=now.num_local_steps,
    staleness=now.staleness,
    time=now.time,
    num_gradients=parts.training.estimator.count_gradients(now.num_local_steps),
    aux=jax.tree.map(lambda x: jnp.asarray(x)[None], worked.aux),
  )


def message_of(
  plan: Plan, num_events: jax.Array | int, step: jax.Array
) -> tuple[Plan, jax.Array]:
  """What is known of the message of this step; whether there is none left."""
  last = jnp.minimum(step, num_events - 1)
  return Plan(*(x[last] for x in plan)), step >= num_events


def extra_arguments(now: Plan, stale: base.Params) -> dict[str, Any]:
  """What the server's transforms get beside the message."""
  return {
    'worker': now.worker,
    'num_local_steps': now.num_local_steps,
    'issued_at': now.issued_at,
    'staleness': now.staleness,
    'is_waiting': now.is_waiting,
    'stale_params': stale,
    'progress': now.progress,
  }


def _init_attack(parts: Parts, vector: jax.Array) -> base.State:
  return parts.attack.init(vector) if parts.attack else ()


def _init_rule(parts: Parts, vector: jax.Array) -> base.State:
  return parts.aggregator.init(vector) if parts.aggregator else ()
