"""What a worker does on its own: local steps of any optimizer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, data_attacks, flat, local


class LocalUpdate(NamedTuple):
  """What a worker has after its local steps."""

  params: base.Params
  optimizer: optax.OptState
  loss: jax.Array  # float32[], mean over the steps
  aux: Any  # in float, mean over the steps, or None
  plan: base.State  # of the sampler


class LocalTraining(NamedTuple):
  """The parts of a local step that are the same for all workers.

  Attributes:
    name: of the round, for errors.
    estimator: of the gradient.
    optimizer: of the local steps, with extra arguments; or None where there are
      none, and a worker sends a gradient.
    sampler: where the batches come from.
    data_attack: what attackers do to their batches, or None.
  """

  name: str
  estimator: local.GradientEstimator
  optimizer: Any
  sampler: local.LocalSampler
  data_attack: base.DataAttack | None


class _Job(NamedTuple):
  """What does not change from one local step of a worker to the next."""

  training: LocalTraining
  data: Any
  is_byzantine: jax.Array
  key: jax.Array
  scale: Callable[[base.Params], base.Params]
  first_step: jax.Array | None
  progress: jax.Array | None
  round: jax.Array
  anchor: base.Params


class _Carry(NamedTuple):
  """What one local step hands to the next."""

  params: base.Params
  optimizer: optax.OptState
  plan: base.State
  loss: jax.Array  # sum over the steps
  aux: Any  # sum over the steps, or None


def take_in_turn() -> local.LocalSampler:
  """Local step k takes slice `k mod S` of the leaves `[S, ...]`."""

  def draw(plan, data, step, key):
    del key
    batch = jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, step % x.shape[0], keepdims=False),
      data,
    )
    return batch, plan

  return local.LocalSampler(
    init=lambda params: (),
    start=lambda state, params, data, key: (),
    draw=draw,
    finish=lambda state, params: state,
  )


def draw_batch(
  training: LocalTraining,
  plan: base.State,
  data: Any,
  is_byzantine: jax.Array,
  step: jax.Array,
  key: jax.Array,
  anchor: base.Params,
) -> tuple[Any, base.State, jax.Array]:
  """The batch of a local step, the plan after it, and a key for its loss.

  `is_byzantine` is bool[], or the worker's number among the attackers, int32[],
  or -1. `anchor` is what the worker received.
  """
  keys = jax.random.split(jax.random.fold_in(key, step), 3)
  batch, plan = training.sampler.draw(plan, data, step, keys[0])
  if training.data_attack is not None:
    rows = jax.tree.map(lambda x: x[None], batch)
    rows = data_attacks.corrupt(
      training.data_attack, rows, is_byzantine[None], keys[1], anchor
    )
    batch = jax.tree.map(lambda x: x[0], rows)
  return batch, plan, keys[2]


def local_update(
  training: LocalTraining,
  params: base.Params,
  optimizer_state: optax.OptState,
  plan: base.State,
  data: Any,
  is_byzantine: jax.Array,
  key: jax.Array,
  num_steps: jax.Array | int,
  *,
  round: jax.Array,
  scale: Callable[[base.Params], base.Params] = lambda gradient: gradient,
  first_step: jax.Array | None = None,
  progress: jax.Array | None = None,
  anchor: base.Params | None = None,
  axis_name: base.AxisName = None,
) -> LocalUpdate:
  """The steps of one worker from `params`; gradients go through `scale`.

  The optimizer is told `round`, and `progress`, the local steps before this
  one. Batches are drawn as those of the steps from `first_step` on. `anchor` is
  what the worker received, if that is not where it begins. `axis_name` is of
  the devices that workers are split over, under `jax.shard_map`.
  """
  anchor = params if anchor is None else anchor
  job = _Job(
    training,
    data,
    is_byzantine,
    key,
    scale,
    first_step,
    progress,
    round,
    anchor,
  )
  loss_type = flat.compute_dtype(*map(jnp.result_type, jax.tree.leaves(params)))
  start = _Carry(
    params,
    optimizer_state,
    plan,
    jnp.zeros([], loss_type),
    _zero_aux(job, params, plan),
  )
  end = lax.fori_loop(
    0,
    num_steps,
    functools.partial(_local_step, job),
    varying(start, axis_name),
  )
  count = jnp.maximum(num_steps, 1)
  aux = jax.tree.map(lambda total: total / count, end.aux)
  return LocalUpdate(end.params, end.optimizer, end.loss / count, aux, end.plan)


def with_loss(
  workers: jax.Array, num_steps: jax.Array | int | None
) -> jax.Array:
  """Of these workers, bool[n], those that took a step, and so have a loss.

  `num_steps` is int32[n] where they differ.
  """
  if num_steps is None or not jnp.ndim(num_steps):
    return workers
  return workers & (num_steps > 0)


def sampler_state(
  sampler: local.LocalSampler, state: base.State, end: LocalUpdate
) -> base.State:
  """What a sampler keeps of a round."""
  return sampler.carry_over(end.plan, sampler.finish(state, end.params))


def _local_step(job: _Job, step: jax.Array, carry: _Carry) -> _Carry:
  """One local step of a worker."""
  training, w = job.training, carry.params
  seen = step if job.first_step is None else job.first_step + step
  batch, plan, loss_key = draw_batch(
    training, carry.plan, job.data, job.is_byzantine, seen, job.key, job.anchor
  )
  context = local.LocalContext(job.anchor, loss_key, step, job.round)
  known = {} if job.progress is None else {'progress': job.progress + step}

  def estimate(params):
    return local.estimate(training.estimator, params, batch, context)

  loss, gradient, aux = estimate(w)
  updates, state = training.optimizer.update(
    job.scale(gradient),
    carry.optimizer,
    w,
    value=loss,
    grad=gradient,
    value_fn=lambda params: estimate(params).loss,
    gradient_fn=lambda params: job.scale(estimate(params).gradient),
    round=job.round,
    **known,
  )
  return _Carry(
    optax.apply_updates(w, updates),
    _in_types_of(state, carry.optimizer),
    plan,
    carry.loss + loss.astype(carry.loss.dtype),
    jax.tree.map(
      lambda total, x: total + jnp.asarray(x, total.dtype), carry.aux, aux
    ),
  )


def _in_types_of(new: Any, old: Any) -> Any:
  """Whatever an optimizer makes of a type, the loop needs it as it was."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), new, old
  )


def _zero_aux(job: _Job, params: base.Params, plan: base.State) -> Any:
  """Where auxiliary outputs are added up, or None if there are none."""
  training = job.training
  if not training.estimator.has_aux:
    return None

  def first_aux(params, plan):
    zero = jnp.zeros([], jnp.int32)
    batch, _, loss_key = draw_batch(
      training, plan, job.data, job.is_byzantine, zero, job.key, job.anchor
    )
    context = local.LocalContext(job.anchor, loss_key, zero, job.round)
    return local.estimate(training.estimator, params, batch, context).aux

  shapes = jax.eval_shape(first_aux, params, plan)
  return local.zeros_of_mean(training.name, shapes)


def varying(tree: Any, axis_name: base.AxisName) -> Any:
  """Replicated leaves as each device's own, as the carry of a loop must be."""
  if axis_name is None:
    return tree
  # A choice that devices make alike, but that is each device's own; a cast
  # would refuse what varies already.
  mine = lax.axis_index(axis_name) >= 0
  return jax.tree.map(lambda x: jnp.where(mine, x, x), tree)
