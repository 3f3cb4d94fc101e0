"""What the nodes of a gossip round compute before they tell each other."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax import gossip
from byzjax._src import base, data_attacks, draws, flat, local
from byzjax.gossip import _sending
from byzjax.rounds import _local_steps
from byzjax.rounds._worker_gradients import over_workers
from byzjax.topology import Topology

NAME = 'gossip_round'
NumberSchedule = Callable[[jax.Array], jax.Array]  # step -> float[]


class LocalSteps(NamedTuple):
  """How many steps nodes take between two mixings, and on which batches."""

  steps_at: Callable[[jax.Array], jax.Array]
  longest: int | None  # most local steps, where known
  sampler: local.LocalSampler
  takes_slices: bool  # of the batch, for there is no sampler


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
  codec: base.Codec | None
  estimator: local.GradientEstimator
  local: LocalSteps | None  # None for one step on the batch itself
  keeps: bool  # the states of the optimizers, from round to round
  worker_map: str | int
  mesh: Mesh | AbstractMesh | None
  axis_name: base.AxisName  # None on one device
  num_local: int  # nodes of one device


class LocalRows(NamedTuple):
  """What nodes with local steps keep: leaves `[n, ...]`."""

  optimizer: base.State
  sampler: base.State
  num_steps: jax.Array  # int32[n], local steps of the rounds before


class NodeWork(NamedTuple):
  """What the m nodes of one device have computed."""

  loss: jax.Array  # float[m]
  updates: jax.Array  # float[m, d], what they add to their models
  rows: base.State  # leaves [m, ...], what they keep
  aux: Any  # leaves [m, ...], or None
  num_steps: jax.Array | None  # int32[] or int32[n], of all nodes


def init_rows(parts: Parts, params: base.Params) -> base.State:
  """What all nodes keep at the start: leaves `[n, ...]`."""
  n = parts.topology.num_nodes
  row = flat.row_layout(params).ravel(params)
  optimizer = of_all(n, parts.optimizer.init(row)) if parts.keeps else ()
  if parts.local is None:
    return optimizer
  start = jax.vmap(parts.local.sampler.init, in_axes=None, axis_size=n)
  return LocalRows(optimizer, start(params), jnp.zeros(n, jnp.int32))


def of_all(num_nodes: int, tree: Any) -> Any:
  """The same leaves for every node: `[...] -> [n, ...]`."""
  # With a dtype of their own: weak types would not survive the first step.
  return jax.tree.map(
    lambda p: jnp.tile(
      jnp.asarray(p, jnp.result_type(p))[None],
      (num_nodes,) + (1,) * jnp.ndim(p),
    ),
    tree,
  )


def compute(
  parts: Parts,
  layout: flat.RowLayout,
  state: base.RoundState,
  batch: base.Batch,
  is_byzantine: jax.Array,
  ids: jax.Array,
  keys: tuple[jax.Array, jax.Array],
) -> NodeWork:
  """The steps of the nodes with these numbers, from their own models.

  `is_byzantine` is bool[n], of all nodes; the keys are for data attacks and for
  the nodes.
  """
  data_key, work_key = keys
  attackers = data_attacks.ranks(is_byzantine)[ids]
  work_keys = draws.worker_keys(work_key, ids)
  if parts.local is not None:
    return several_steps(
      parts, parts.local, layout, state, batch, attackers, ids, work_keys
    )
  if parts.data_attack is not None:
    batch = data_attacks.corrupt(parts.data_attack, batch, attackers, data_key)
  return one_step(parts, layout, state, batch, work_keys)


def one_step(
  parts: Parts,
  layout: flat.RowLayout,
  state: base.RoundState,
  batch: base.Batch,
  keys: jax.Array,
) -> NodeWork:
  """One step of the nodes of this device, each on its batch."""
  gradients = over_workers(
    NAME, functools.partial(_own_gradient, parts.estimator), parts.worker_map
  )
  # No gradient is summed over devices: every device has models of its own.
  estimate = gradients(state.step, state.params, batch, keys)
  x = layout.ravel_rows(state.params)
  rows = state.workers if parts.keeps else jax.vmap(parts.optimizer.init)(x)
  updates, rows = jax.vmap(parts.optimizer.update)(
    layout.ravel_rows(estimate.gradient), rows, x
  )
  rows = rows if parts.keeps else ()
  return NodeWork(estimate.loss, updates, rows, estimate.aux, None)


def _own_gradient(estimator, round, params, batch, key):
  """The estimate of one node, at its own model."""
  return local.estimate_once(estimator, params, batch, key, round)


def several_steps(
  parts: Parts,
  steps: LocalSteps,
  layout: flat.RowLayout,
  state: base.RoundState,
  batch: base.Batch,
  attackers: jax.Array,
  ids: jax.Array,
  keys: jax.Array,
) -> NodeWork:
  """The local steps of the nodes of this device.

  `attackers` int32[m] are their ranks among the attackers, or -1.
  """
  num_steps = steps.steps_at(state.step)
  training = _local_steps.LocalTraining(
    NAME,
    _on_vectors(parts.estimator, layout),
    parts.optimizer,
    steps.sampler,
    None if parts.data_attack is None else _without_server(parts.data_attack),
  )

  def node_update(round, params, rows, data, attacker, key, count):
    x = layout.ravel(params)
    end = _local_steps.local_update(
      training,
      x,
      rows.optimizer if parts.keeps else parts.optimizer.init(x),
      steps.sampler.start(rows.sampler, params, data, key),
      data,
      attacker,
      key,
      count,
      round=round,
      progress=rows.num_steps,
      axis_name=parts.axis_name,
    )
    kept = _local_steps.sampler_state(
      steps.sampler,
      rows.sampler,
      end._replace(params=layout.unravel(end.params)),
    )
    new = LocalRows(
      end.optimizer if parts.keeps else (), kept, rows.num_steps + count
    )
    return NodeWork(end.loss, end.params - x, new, end.aux, None)

  counts = jnp.broadcast_to(num_steps, parts.topology.num_nodes)[ids]
  work = over_workers(NAME, node_update, parts.worker_map)(
    state.step, state.params, state.workers, batch, attackers, keys, counts
  )
  return work._replace(num_steps=num_steps)


def _on_vectors(
  estimator: local.GradientEstimator, layout: flat.RowLayout
) -> local.GradientEstimator:
  """The estimator for models that are one vector, as optimizers see them."""

  def estimate(x, batch, context):
    context = context._replace(anchor=layout.unravel(context.anchor))
    value, gradient = estimator.estimate(layout.unravel(x), batch, context)
    return value, layout.ravel(gradient)

  return estimator._replace(estimate=estimate)


def _without_server(attack: base.DataAttack) -> Any:
  """The attack for local steps, told of no parameters that a server sent."""

  def alone(batch, is_byzantine, key, rank):
    del is_byzantine
    return data_attacks.corrupt(attack, batch, rank, key)

  return alone
