"""What a node of a gossip round does: its own step, and that of gossip."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from byzjax._src import base, draws, flat, reductions
from byzjax.gossip import _dense, _neighbors, _sending
from byzjax.rounds import _gossip_codec, _gossip_work, _local_steps
from byzjax.rounds._gossip_work import Parts
from byzjax.rounds._sharded_step import place


class Mixed(NamedTuple):
  """What gossip has made of the models of this device."""

  x: jax.Array  # float[m, d]
  usable: jax.Array  # bool[m], whose message was
  attack: base.State
  codec: base.State
  bits: jax.Array  # float[], of what all nodes have sent


def init(parts: Parts, params: base.Params) -> base.RoundState:
  """All nodes with the same model."""
  layout = flat.row_layout(params)
  n = parts.topology.num_nodes
  models = _gossip_work.of_all(n, params)
  codec: base.State = ()
  if parts.codec is not None:
    codec = _gossip_codec.init(parts.codec, layout.ravel_rows(models))
  state = base.RoundState(
    step=jnp.zeros([], jnp.int32),
    params=models,
    workers=_gossip_work.init_rows(parts, params),
    attack=_sending.init(parts.attack, layout.ravel(params)),
    aggregator=(),
    optimizer=(),
    codec=codec,
  )
  if parts.mesh is None:
    return state
  return place(state, parts.mesh, state_specs(parts, state))


def state_specs(parts: Parts, state: base.RoundState) -> base.RoundState:
  """Nodes are split over devices, and all else is everywhere."""
  rows = PartitionSpec(parts.axis_name)
  specs = jax.tree.map(lambda _: PartitionSpec(), state)
  return specs._replace(
    params=jax.tree.map(lambda _: rows, state.params),
    workers=jax.tree.map(lambda _: rows, state.workers),
    codec=jax.tree.map(lambda _: rows, state.codec),
  )


def node_step(
  parts: Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
  is_byzantine: jax.Array,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round of all nodes, or of those of one device under `jax.shard_map`."""
  layout = flat.row_layout(jax.tree.map(lambda p: p[0], state.params))
  key = jax.random.fold_in(key, state.step)
  data_key, work_key, noise_key, gossip_key = jax.random.split(key, 4)
  ids = node_ids(parts)
  mine = is_byzantine[ids]
  work = _gossip_work.compute(
    parts, layout, state, batch, is_byzantine, ids, (data_key, work_key)
  )
  x = layout.ravel_rows(state.params)
  updates = with_noise(parts, work.updates, x, state.step, noise_key, ids)
  mixed = gossip_update(parts, x, updates, state, is_byzantine, ids, gossip_key)
  mean, distance = consensus_distance(mixed.x, ~mine, parts.axis_name)
  new_state = state._replace(
    step=state.step + 1,
    params=layout.unravel_rows(mixed.x),
    workers=work.rows,
    attack=_sending.observe(parts.attack, mixed.attack, mean),
    codec=mixed.codec,
  )
  counted = _local_steps.with_loss(~is_byzantine, work.num_steps)
  loss = jnp.sum(jnp.where(counted[ids], work.loss, 0))
  num_counted = jnp.maximum(counted.sum(), 1)
  num_masked = jnp.sum(~mixed.usable, dtype=jnp.int32)
  num_steps = 1 if work.num_steps is None else work.num_steps
  return new_state, base.RoundInfo(
    loss=reductions.psum(loss, parts.axis_name) / num_counted,
    aggregation_error=distance,
    bits_up=mixed.bits,
    bits_down=jnp.zeros([]),
    num_nonfinite=reductions.psum(num_masked, parts.axis_name),
    is_byzantine=is_byzantine,
    masked=~mixed.usable,
    num_local_steps=work.num_steps,
    num_gradients=parts.estimator.count_gradients(num_steps),
    aux=work.aux,
  )


def node_ids(parts: Parts) -> jax.Array:
  """The numbers of the nodes of this device: int32[m]."""
  first = jnp.zeros([], jnp.int32)
  if parts.axis_name is not None:
    first = lax.axis_index(parts.axis_name) * parts.num_local
  return first + jnp.arange(parts.num_local)


def with_noise(parts: Parts, updates, x, step, noise_key, ids) -> jax.Array:
  """What the nodes add to their models x, with a noise of their own: [m, d]."""
  if parts.noise_at is None:
    return updates
  std = jnp.asarray(parts.noise_at(step)).astype(x.dtype)
  noise = jax.vmap(lambda k, row: draws.draw(jax.random.normal, k, row))(
    draws.worker_keys(noise_key, ids), x
  )
  return updates + std * noise


def gossip_update(
  parts: Parts, x, updates, state: base.RoundState, is_byzantine, ids, key
) -> Mixed:
  """The models after their step and that of gossip, in the order of the round.

  x and updates are float[m, d], is_byzantine is bool[n].
  """
  beta = jnp.asarray(parts.consensus_at(state.step)).astype(x.dtype)
  start = x + updates if parts.adapts_first else x
  attack_key, rule_key = jax.random.split(key)
  told = tell(parts, start, state, is_byzantine, ids, key, attack_key)
  mix: Callable = _dense.displacement
  if parts.axis_name is not None:
    mix = functools.partial(_neighbors.displacement, axis_name=parts.axis_name)
  moved, usable = mix(parts.rule, parts.topology, told.sent, rule_key)
  # The step is added last: models that agree stay those of plain SGD.
  x = start + beta * moved
  if not parts.adapts_first:
    x = x + updates
  return Mixed(x, usable, told.attack, told.copies, told.bits)


def tell(
  parts: Parts, x, state: base.RoundState, is_byzantine, ids, key, attack_key
) -> _gossip_codec.Broadcast:
  """What the nodes tell their neighbours: their vectors, or public copies.

  Its bits are float[], those of all nodes together.
  """
  degrees = parts.topology.degrees
  if parts.codec is None:
    sent, attack = _sending.byzantine_messages(
      parts.attack,
      x,
      state.attack,
      is_byzantine=is_byzantine,
      ids=ids,
      key=attack_key,
    )
    bits = jnp.asarray(32.0 * x.shape[1] * degrees.sum())
    return _gossip_codec.Broadcast(sent, attack, state.codec, bits)
  told = _gossip_codec.broadcast(
    parts.codec,
    parts.attack,
    x,
    state.codec,
    state.attack,
    is_byzantine=is_byzantine,
    ids=ids,
    # Two keys are split from it already, and this is none of them.
    keys=draws.worker_keys(jax.random.fold_in(key, 2), ids),
    attack_key=attack_key,
  )
  # One message of a node goes to each of its neighbours.
  bits = jnp.sum(told.bits * jnp.asarray(degrees, told.bits.dtype)[ids])
  return told._replace(bits=reductions.psum(bits, parts.axis_name))


def consensus_distance(
  x: jax.Array, is_honest: jax.Array, axis_name: base.AxisName
) -> tuple[jax.Array, jax.Array]:
  """The mean m of the finite honest models, and `sqrt(mean_i |x_i - m|^2)`."""
  counted = is_honest & reductions.finite_rows(x)
  total = jnp.maximum(reductions.psum(counted.sum(), axis_name), 1)
  share = (counted / total).astype(x.dtype)
  mean = reductions.psum(reductions.weighted_sum(share, x), axis_name)
  squared = reductions.squared_norms(x, center=mean)
  spread = jnp.where(counted, share * squared, 0).sum()
  return mean, reductions.sqrt(reductions.psum(spread, axis_name))
