"""What a node of a gossip round does: its own step, and that of gossip."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from byzjax import gossip
from byzjax._src import base, data_attacks, draws, flat, local, reductions
from byzjax.gossip import _dense, _neighbors, _sending
from byzjax.rounds._sharded_step import place
from byzjax.topology import Topology

NumberSchedule = Callable[[jax.Array], jax.Array]  # step -> float[]


class Parts(NamedTuple):
  """The arguments of `gossip_round`."""

  topology: Topology
  optimizer: optax.GradientTransformationExtraArgs
  rule: gossip.GossipRule | gossip.AggregateRule
  adapts_first: bool
  consensus_at: NumberSchedule
  noise_at: NumberSchedule | None
  attack: _sending.Attack | None
  data_attack: base.DataAttack | None
  byzantine_at: base.ByzantineSchedule
  estimator: local.GradientEstimator
  gradients: Callable[..., local.Estimate]  # of the nodes of one device
  mesh: Mesh | AbstractMesh | None
  axis_name: base.AxisName  # None on one device
  num_local: int  # nodes of one device


def init(parts: Parts, params: base.Params) -> base.RoundState:
  """All nodes with the same model."""
  row = flat.row_layout(params).ravel(params)

  def of_all(tree):
    # With a dtype of their own: weak types would not survive the first step.
    return jax.tree.map(
      lambda p: jnp.tile(
        jnp.asarray(p, jnp.result_type(p))[None],
        (parts.topology.num_nodes,) + (1,) * jnp.ndim(p),
      ),
      tree,
    )

  state = base.RoundState(
    step=jnp.zeros([], jnp.int32),
    params=of_all(params),
    workers=of_all(parts.optimizer.init(row)),
    attack=_sending.init(parts.attack, row),
    aggregator=(),
    optimizer=(),
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
  )


def own_gradient(estimator, round, params, batch, key):
  """The estimate of one node, at its own model."""
  return local.estimate_once(estimator, params, batch, key, round)


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
  if parts.data_attack is not None:
    attackers = data_attacks.ranks(is_byzantine)[ids]
    batch = data_attacks.corrupt(parts.data_attack, batch, attackers, data_key)
  # No gradient is summed over devices: every device has models of its own.
  estimate = parts.gradients(
    state.step, state.params, batch, draws.worker_keys(work_key, ids)
  )
  x = layout.ravel_rows(state.params)
  updates, workers = local_update(
    parts,
    layout.ravel_rows(estimate.gradient),
    state.workers,
    x,
    state.step,
    noise_key,
    ids,
  )
  x, usable, attack_state = gossip_update(
    parts, x, updates, state, is_byzantine, ids, gossip_key
  )
  mean, distance = consensus_distance(x, ~mine, parts.axis_name)
  new_state = state._replace(
    step=state.step + 1,
    params=layout.unravel_rows(x),
    workers=workers,
    attack=_sending.observe(parts.attack, attack_state, mean),
  )
  honest = jnp.maximum((~is_byzantine).sum(), 1)
  loss = jnp.sum(jnp.where(mine, 0, estimate.loss))
  num_masked = jnp.sum(~usable, dtype=jnp.int32)
  return new_state, base.RoundInfo(
    loss=reductions.psum(loss, parts.axis_name) / honest,
    aggregation_error=distance,
    bits_up=jnp.asarray(32.0 * layout.size * parts.topology.degrees.sum()),
    bits_down=jnp.zeros([]),
    num_nonfinite=reductions.psum(num_masked, parts.axis_name),
    is_byzantine=is_byzantine,
    masked=~usable,
    num_gradients=parts.estimator.count_gradients(1),
    aux=estimate.aux,
  )


def node_ids(parts: Parts) -> jax.Array:
  """The numbers of the nodes of this device: int32[m]."""
  first = jnp.zeros([], jnp.int32)
  if parts.axis_name is not None:
    first = lax.axis_index(parts.axis_name) * parts.num_local
  return first + jnp.arange(parts.num_local)


def local_update(
  parts: Parts, gradients, states, x, step, noise_key, ids
) -> tuple[jax.Array, base.State]:
  """What the optimizers of the nodes add to their models, with noise: [m, d].

  Args:
    parts: of the round.
    gradients: float[m, d].
    states: of the optimizers.
    x: float[m, d], the models.
    step: of the round.
    noise_key: of all nodes.
    ids: int32[m].
  """
  updates, states = jax.vmap(parts.optimizer.update)(gradients, states, x)
  if parts.noise_at is None:
    return updates, states
  std = jnp.asarray(parts.noise_at(step)).astype(x.dtype)
  noise = jax.vmap(lambda k, row: draws.draw(jax.random.normal, k, row))(
    draws.worker_keys(noise_key, ids), x
  )
  return updates + std * noise, states


def gossip_update(
  parts: Parts, x, updates, state, is_byzantine, ids, key
) -> tuple[jax.Array, jax.Array, base.State]:
  """The models after their step and that of gossip, in the order of the round.

  Returns:
    The models float[m, d], whose message was usable bool[m], and the state of
    the attack.
  """
  beta = jnp.asarray(parts.consensus_at(state.step)).astype(x.dtype)
  start = x + updates if parts.adapts_first else x
  attack_key, rule_key = jax.random.split(key)
  sent, attack_state = _sending.byzantine_messages(
    parts.attack,
    start,
    state.attack,
    is_byzantine=is_byzantine,
    ids=ids,
    key=attack_key,
  )
  mix: Callable = _dense.displacement
  if parts.axis_name is not None:
    mix = functools.partial(_neighbors.displacement, axis_name=parts.axis_name)
  moved, usable = mix(parts.rule, parts.topology, sent, rule_key)
  # The step is added last: models that agree stay those of plain SGD.
  x = start + beta * moved
  if not parts.adapts_first:
    x = x + updates
  return x, usable, attack_state


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
