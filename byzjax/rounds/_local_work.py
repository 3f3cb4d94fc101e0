"""The work of a local round: what its workers keep, share and send."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, flat, local
from byzjax.gradients import hutchinson_diagonal
from byzjax.rounds import _local_steps
from byzjax.rounds._work import Context, Work, WorkerOutput
from byzjax.rounds._worker_gradients import over_workers
from byzjax.transforms import Preconditioner, per_worker

_NAME = 'local_round'


class LocalRows(NamedTuple):
  """What the workers of `local_round` keep: leaves `[n, ...]`."""

  optimizer: base.State
  preconditioner: base.State
  sampler: base.State
  chain: base.State


class LocalShared(NamedTuple):
  """What the server of `local_round` keeps for all workers."""

  optimizer: base.State
  preconditioner: base.State


class Parts(NamedTuple):
  """The arguments of `local_round` that say what workers do."""

  loss_fn: local.LossFn | local.Objective
  value_and_grad: local.ValueAndGrad | None
  needs_key: bool
  has_aux: bool
  optimizer: optax.GradientTransformationExtraArgs
  state: str  # keep, reset or average
  steps_at: Callable[[jax.Array], jax.Array]
  sampler: local.LocalSampler
  preconditioner: Preconditioner | None
  is_global: bool
  side_rule: base.Aggregator
  chain: optax.GradientTransformation
  byzantine_chain: bool
  data_attack: base.DataAttack | None
  worker_map: str | int


def build(parts: Parts) -> Work:
  """The work of the round with these parts."""
  tx, preconditioner = parts.optimizer, parts.preconditioner
  scaler: Any = preconditioner
  averages = parts.state == 'average'
  has_global = preconditioner is not None and parts.is_global
  has_own = preconditioner is not None and not parts.is_global
  flags: dict[str, Any] = {
    'name': _NAME,
    'needs_key': parts.needs_key,
    'has_aux': parts.has_aux,
  }
  estimator = local.as_estimator(parts.loss_fn, parts.value_and_grad, **flags)
  walker = _local_steps.Walker(
    _NAME, estimator, tx, parts.sampler, parts.data_attack
  )
  if parts.value_and_grad is not None:  # Of which they speak then.
    flags = {'name': _NAME}

  def statistic(params, batch, context):
    """What the preconditioner is refreshed by."""
    if not scaler.uses_hessian:
      return local.estimate(estimator, params, batch, context).gradient
    objective = local.as_objective(parts.loss_fn, **flags)
    probe_key = context.key
    if flags.get('needs_key') or isinstance(parts.loss_fn, local.Objective):
      # What the loss draws must not depend on the signs of the probe.
      probe_key = jax.random.fold_in(context.key, 1)

    def loss(params, batch):
      return local.loss_and_aux(_NAME, objective, params, batch, context)[0]

    return hutchinson_diagonal(loss)(params, batch, probe_key)

  def refreshed(state, found):
    return scaler.update(found, state, statistic=found)[1]

  def init(params, n):
    def of_all(init, argument):
      return jax.vmap(init, in_axes=None, axis_size=n)(argument)

    vector = flat.row_layout(params).ravel(params)
    return LocalRows(
      of_all(tx.init, params) if parts.state == 'keep' else (),
      of_all(scaler.init, params) if has_own else (),
      of_all(parts.sampler.init, params),
      per_worker(parts.chain, n).init(vector),
    )

  def init_shared(params):
    return LocalShared(
      tx.init(params) if averages else (),
      scaler.init(params) if has_global else (),
    )

  def sides(params):
    """What is exchanged beside the messages: the preconditioner's first."""
    found = []
    if has_global:
      found.append((flat.row_layout(params).size, parts.side_rule))
    if averages:
      floats, _ = _split(jax.eval_shape(tx.init, params))
      if jax.tree.leaves(floats):
        found.append((flat.row_layout(floats).size, parts.side_rule))
    return tuple(found)

  def begin(params, data, is_byzantine, sampler_state, key, *, round):
    """The plan of the round, and the statistic on its first batch."""
    plan = parts.sampler.start(sampler_state, params, data, key)
    if preconditioner is None:
      return plan, ()
    first = jnp.zeros([], jnp.int32)
    batch, _, key = _local_steps.draw(
      walker, plan, data, is_byzantine, first, key
    )
    context = local.LocalContext(params, key, first, round)
    found = statistic(params, batch, context)
    return plan, flat.row_layout(params).ravel(found)

  def run(params, batch, rows, keys, *, context: Context, exchange):
    layout = flat.row_layout(params)
    shared, new_sides = context.shared, list(context.auxiliary)
    num_steps = parts.steps_at(context.step)
    own_steps = num_steps[context.ids] if num_steps.ndim else ()
    begins = functools.partial(begin, round=context.step)
    plans, statistics = over_workers(_NAME, begins, parts.worker_map)(
      params, batch, context.is_byzantine, rows.sampler, keys
    )
    scaling = shared.preconditioner
    if has_global:
      found, new_sides[0] = exchange(0, statistics, new_sides[0])
      scaling = refreshed(scaling, layout.unravel(found))

    def one_worker(params, data, is_byzantine, plan, own, kept, key, steps):
      scale_by = scaling
      if has_own:
        scale_by = refreshed(kept.preconditioner, layout.unravel(own))

      def scale(gradient):
        if preconditioner is None:
          return gradient
        return scaler.update(gradient, scale_by, refresh=False)[0]

      start = shared.optimizer if averages else kept.optimizer
      if parts.state == 'reset':
        start = tx.init(params)
      walk = _local_steps.walk(
        walker,
        params,
        _local_steps.varying(start, context.axis_name),
        plan,
        data,
        is_byzantine,
        key,
        steps if num_steps.ndim else num_steps,
        scale,
        lambda tree: _local_steps.varying(tree, context.axis_name),
        round=context.step,
      )
      gradient = layout.ravel(params) - layout.ravel(walk.params)
      keeps = LocalRows(
        walk.optimizer if parts.state == 'keep' else (),
        scale_by if has_own else (),
        parts.sampler.finish(kept.sampler, walk.params),
        (),
      )
      end = walk.optimizer if averages else ()
      return walk.loss, gradient, keeps, end, walk.aux

    losses, gradients, kept, ends, aux = over_workers(
      _NAME, one_worker, parts.worker_map
    )(
      params,
      batch,
      context.is_byzantine,
      plans,
      statistics,
      rows,
      keys,
      own_steps,
    )
    average = shared.optimizer
    if averages:
      average, new_sides = _average(
        shared.optimizer, ends, new_sides, exchange, context
      )
    messages, chain = per_worker(parts.chain, losses.shape[0]).update(
      gradients, rows.chain, layout.ravel(params)
    )
    if not parts.byzantine_chain:
      mine = context.is_byzantine[:, None]
      messages = jnp.where(mine, gradients, messages)
    taken = num_steps[context.cohort.ids] if num_steps.ndim else num_steps
    return WorkerOutput(
      losses,
      messages,
      kept._replace(chain=chain),
      LocalShared(average, scaling),
      tuple(new_sides),
      taken,
      estimator.count_gradients(taken),
      aux,
    )

  return Work(init, run, init_shared, sides)


def _average(start, ends, sides, exchange, context):
  """The aggregate of the optimizers' states, and the largest of their counts.

  All began with the same state, so counts differ only where steps do.
  """
  floats, others = _split(start)
  found_floats, found_others = _split(ends)
  if jax.tree.leaves(floats):
    layout = flat.row_layout(floats)
    *before, side = sides
    aggregate, side = exchange(
      len(before), layout.ravel_rows(found_floats), side
    )
    floats, sides = layout.unravel(aggregate), [*before, side]

  def largest(old, new):
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
      # Workers that took as many steps have the same one.
      words = largest(jax.random.key_data(old), jax.random.key_data(new))
      return jax.random.wrap_key_data(words, impl=jax.random.key_impl(old))
    if context.takes_part is not None:
      mask = context.takes_part.reshape((-1,) + (1,) * (new.ndim - 1))
      new = jnp.where(mask, new, old[None])
    new = jnp.max(new, axis=0)
    if context.axis_name is not None:
      new = lax.pmax(new, context.axis_name)
    return new.astype(old.dtype)

  others = jax.tree.map(largest, others, found_others)
  merged = jax.tree.map(
    lambda a, b: a if b is None else b,
    floats,
    others,
    is_leaf=lambda x: x is None,
  )
  return merged, sides


def _split(state: Any) -> tuple[Any, Any]:
  """The leaves that are real numbers, and the others; None elsewhere."""

  def is_real(x):
    return jnp.issubdtype(x.dtype, jnp.floating)

  return (
    jax.tree.map(lambda x: x if is_real(x) else None, state),
    jax.tree.map(lambda x: None if is_real(x) else x, state),
  )
