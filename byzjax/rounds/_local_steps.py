"""What a worker does on its own: local steps of any optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, flat, local


class Walk(NamedTuple):
  """Where a worker's local steps led."""

  params: base.Params
  optimizer: optax.OptState
  loss: jax.Array  # float32[], mean over the steps
  aux: Any  # in float, mean over the steps, or None


class Walker(NamedTuple):
  """The parts of a local step that are the same for all workers.

  Attributes:
    name: of the round, for errors.
    estimator: of the gradient.
    optimizer: of the local steps, with extra arguments.
    sampler: where the batches come from.
    data_attack: what attackers do to their batches, or None.
  """

  name: str
  estimator: local.GradientEstimator
  optimizer: optax.GradientTransformationExtraArgs
  sampler: local.LocalSampler
  data_attack: base.DataAttack | None


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


def draw(walker: Walker, plan, data, is_byzantine, step, key):
  """The batch of a local step, the plan after it, and a key for its loss."""
  keys = jax.random.split(jax.random.fold_in(key, step), 3)
  batch, plan = walker.sampler.draw(plan, data, step, keys[0])
  if walker.data_attack is not None:
    rows = jax.tree.map(lambda x: x[None], batch)
    rows = walker.data_attack(rows, is_byzantine[None], keys[1])
    batch = jax.tree.map(lambda x: x[0], rows)
  return batch, plan, keys[2]


def walk(
  walker: Walker,
  params: base.Params,
  optimizer_state: optax.OptState,
  plan: base.State,
  data: Any,
  is_byzantine: jax.Array,
  key: jax.Array,
  num_steps: jax.Array | int,
  scale: Callable[[base.Params], base.Params],
  as_carry: Callable[[Any], Any],
  progress: jax.Array | None = None,
  *,
  round: jax.Array,
  anchor: base.Params | None = None,
) -> Walk:
  """The steps of one worker from `params`; gradients go through `scale`.

  With `progress`, the local steps that its data has seen before, batches are
  drawn as the later ones that they are, and the optimizer is told. `anchor` is
  what the worker received, if that is not where it begins.
  """
  anchor = params if anchor is None else anchor
  loss_type = flat.compute_dtype(*map(jnp.result_type, jax.tree.leaves(params)))

  def body(step, carry):
    w, state, plan, total, aux_total = carry
    seen = step if progress is None else progress + step
    batch, plan, loss_key = draw(walker, plan, data, is_byzantine, seen, key)
    context = local.LocalContext(anchor, loss_key, step, round)
    known = {} if progress is None else {'progress': seen}

    def at(v):
      return local.estimate(walker.estimator, v, batch, context)

    def gradient_fn(v):
      return scale(at(v).gradient)

    def value_fn(v):
      return at(v).loss

    loss, gradient, aux = at(w)
    updates, state = walker.optimizer.update(
      scale(gradient),
      state,
      w,
      value=loss,
      grad=gradient,
      value_fn=value_fn,
      gradient_fn=gradient_fn,
      **known,
    )
    # Whatever an optimizer makes of a type, the loop needs it as it was.
    state = jax.tree.map(
      lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype),
      state,
      carry[1],
    )
    w = optax.apply_updates(w, updates)
    aux_total = jax.tree.map(
      lambda t, x: t + jnp.asarray(x, t.dtype), aux_total, aux
    )
    return w, state, plan, total + loss.astype(total.dtype), aux_total

  def first_aux(w, plan):
    zero = jnp.zeros([], jnp.int32)
    batch, _, loss_key = draw(walker, plan, data, is_byzantine, zero, key)
    context = local.LocalContext(anchor, loss_key, zero, round)
    return local.estimate(walker.estimator, w, batch, context).aux

  aux_zeros = None
  if walker.estimator.has_aux:
    shapes = jax.eval_shape(first_aux, params, plan)
    aux_zeros = local.zeros_of_mean(walker.name, shapes)
  start = (params, optimizer_state, plan, jnp.zeros([], loss_type), aux_zeros)
  w, state, _, total, aux = lax.fori_loop(0, num_steps, body, as_carry(start))
  count = jnp.maximum(num_steps, 1)
  return Walk(w, state, total / count, jax.tree.map(lambda t: t / count, aux))


def varying(tree: Any, axis_name: base.AxisName) -> Any:
  """Replicated leaves as each device's own, as the carry of a loop must be."""
  if axis_name is None:
    return tree
  # A choice that devices make alike, but that is each device's own; a cast
  # would refuse what varies already.
  mine = lax.axis_index(axis_name) >= 0
  return jax.tree.map(lambda x: jnp.where(mine, x, x), tree)
