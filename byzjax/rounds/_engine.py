"""A round with a server, on one device or on a mesh: the stages in their order.

A round differs from another one in what its workers do before they send. That
is a `Work`; the stages after it are in `_stages`, once for all rounds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from byzjax._src import base, flat, layouts, reductions
from byzjax.rounds import _local_steps, _stages, _wire
from byzjax.rounds._sharded_step import place, rows_here, sharded_step
from byzjax.rounds._work import Cohort, Parts, WorkContext, WorkerOutput


class Engine(NamedTuple):
  """`init: params -> RoundState`; `step: (state, batch, key, cohort) -> ...`.

  `init` makes the rows of all workers, `step` takes those of its cohort.
  """

  init: Callable[[base.Params], base.RoundState]
  step: Callable[..., tuple[base.RoundState, base.RoundInfo]]


def build(parts: Parts) -> Engine:
  """The round with these parts."""
  return Engine(functools.partial(init, parts), functools.partial(step, parts))


def init(parts: Parts, params: base.Params) -> base.RoundState:
  """The state before the first round."""
  layout = flat.row_layout(params)
  zeros = jnp.zeros(parts.padded(layout.size), layout.dtype)
  server_state, sender = _init_server(parts, zeros)
  state = base.RoundState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    workers=parts.work.init(params, parts.num_workers),
    attack=server_state.attack,
    aggregator=server_state.aggregator,
    optimizer=parts.optimizer.init(params),
    codec=_wire.init_rows(parts.codec, zeros, parts.num_workers),
    server_codec=sender,
    shared=parts.work.init_shared(params),
    auxiliary=tuple(
      _init_auxiliary(parts, rule, jnp.zeros(parts.padded(size), layout.dtype))
      for size, rule in parts.work.auxiliary(params)
    ),
    trusted=parts.work.init(params, 1) if parts.root_at else (),
  )
  if parts.mesh is None:
    return state
  return place(state, parts.mesh, state_specs(parts, state))


def step(
  parts: Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
  cohort: Cohort,
) -> tuple[base.RoundState, base.RoundInfo]:
  """One round, with its workers divided over the devices of the mesh."""
  one_round = functools.partial(device_step, parts)
  if parts.mesh is None:
    return one_round(state, batch, key, cohort)
  sharded = sharded_step(
    one_round, parts.mesh, parts.axis_name, state_specs(parts, state)
  )
  return sharded(state, batch, key, cohort)


def device_step(
  parts: Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
  cohort: Cohort,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round of all workers, or of this device's workers under shard_map."""
  keys = _stages.keys_of(key, state.step)
  context = _stages.context_of(parts, state, cohort)
  output = _stages.local_update(parts, state, batch, context, keys)
  encoded = _stages.encode(
    parts, output.messages, state.codec, context, keys.codec
  )
  trusted, own_rows = _stages.own_update(parts, state, context, keys)
  aggregate, server_state, info = _stages.attack_and_aggregate(
    parts, encoded.payload, state, cohort, keys.server, trusted
  )
  aggregate, sender, bits_down = _stages.broadcast(
    parts, aggregate, state, keys.broadcast
  )
  params, optimizer = _stages.server_step(parts, aggregate, state)
  new_state = state._replace(
    step=state.step + 1,
    params=params,
    workers=output.rows,
    attack=server_state.attack,
    aggregator=server_state.aggregator,
    optimizer=optimizer,
    codec=encoded.state,
    server_codec=sender,
    shared=output.shared,
    auxiliary=output.auxiliary,
    trusted=own_rows,
  )
  beside = 32.0 * sum(size for size, _ in parts.work.auxiliary(state.params))
  bits = encoded.bits + beside
  if context.takes_part is not None:
    bits = jnp.where(context.takes_part, bits, 0)
  return new_state, round_info(
    parts, context, output, info, bits, bits_down + beside
  )


def round_info(
  parts: Parts,
  context: WorkContext,
  output: WorkerOutput,
  info: base.AggregationInfo,
  bits_up: jax.Array,
  bits_down: jax.Array,
) -> base.RoundInfo:
  """What the round says of itself, the same on all devices but for aux.

  `bits_up` float[k] are of every worker of this device, `bits_down` float[] of
  one receiver.
  """
  is_byzantine, weights = context.cohort.is_byzantine, context.cohort.weights
  num_receivers: int | jax.Array = parts.cohort_size
  counted = _local_steps.with_loss(~is_byzantine, output.num_local_steps)
  if weights is not None:
    num_receivers = jnp.sum(weights > 0)
    # Who is absent may have no examples, and then no loss.
    counted &= weights > 0
  counted_here = rows_here(counted, context.ids.size, parts.axes)
  loss = jnp.sum(jnp.where(counted_here, output.losses, 0))
  num_counted = jnp.maximum(jnp.sum(counted), 1)
  assert info.mask is not None and info.error is not None
  return base.RoundInfo(
    loss=reductions.psum(loss, parts.axes) / num_counted,
    aggregation_error=info.error,
    bits_up=reductions.psum(jnp.sum(bits_up), parts.axes),
    bits_down=bits_down * num_receivers,
    num_nonfinite=jnp.sum(~info.mask, dtype=jnp.int32),
    is_byzantine=is_byzantine,
    masked=~info.mask,
    weights=info.weights,
    kept=info.kept,
    scores=info.scores,
    factors=info.factors,
    num_local_steps=output.num_local_steps,
    num_gradients=output.num_gradients,
    aux=output.aux,
  )


def state_specs(parts: Parts, state: base.RoundState) -> base.RoundState:
  """Workers are split by row, and what the server keeps by coordinate."""
  rows, everywhere = PartitionSpec(parts.axis_name), PartitionSpec()
  layout = flat.row_layout(state.params)

  def by_coordinate(init, size):
    return coordinate_specs(
      init, parts.padded(size), layout.dtype, parts.axis_name
    )

  server_specs, sender_specs = by_coordinate(
    functools.partial(_init_server, parts), layout.size
  )
  specs = jax.tree.map(lambda _: everywhere, state)
  return specs._replace(
    workers=jax.tree.map(lambda _: rows, state.workers),
    attack=server_specs.attack,
    aggregator=server_specs.aggregator,
    codec=jax.tree.map(lambda _: rows, state.codec),
    server_codec=sender_specs,
    auxiliary=tuple(
      by_coordinate(functools.partial(_init_auxiliary, parts, rule), size)
      for size, rule in parts.work.auxiliary(state.params)
    ),
  )


def coordinate_specs(
  init: Callable[[jax.Array], base.State],
  size: int,
  dtype: jnp.dtype,
  axis_name: str | tuple[str, ...],
) -> base.State:
  """The specs of `init(float[size])`.

  A leaf has coordinates if it grows with their number.
  """
  small, large = (
    jax.eval_shape(init, jax.ShapeDtypeStruct((k * size,), dtype))
    for k in (1, 2)
  )
  return jax.tree.map(
    lambda a, b: PartitionSpec(
      *(axis_name if p != q else None for p, q in zip(a.shape, b.shape))
    ),
    small,
    large,
  )


def _init_server(parts, vector):
  codec = parts.server_codec
  return parts.server.init(vector), codec.init(vector) if codec else ()


def _init_auxiliary(parts, rule, vector):
  return layouts.attacked(rule, parts.attack).init(vector)
