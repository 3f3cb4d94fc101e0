"""The work of a local round: what its workers keep, share and send."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, data_attacks, flat, local
from byzjax.gradients import hutchinson_diagonal
from byzjax.rounds import _local_steps
from byzjax.rounds._work import Work, WorkContext, WorkerOutput
from byzjax.rounds._worker_gradients import (
  only_for,
  over_workers,
  worker_messages,
)
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
  num_steps: jax.Array  # int32[] or int32[n], local steps of the rounds before


class Parts(NamedTuple):
  """The arguments of `local_round` that say what workers do."""

  training: _local_steps.LocalTraining
  state: str  # keep, reset or average
  steps_at: Callable[[jax.Array], jax.Array]
  preconditioner: Preconditioner | None
  has_global: bool  # a preconditioner that all workers share
  has_own: bool  # one that every worker has
  statistic: Callable[..., base.Params]  # what it is refreshed by
  side_rule: base.Aggregator
  chain: optax.GradientTransformation
  byzantine_chain: bool
  worker_map: str | int


class LocalOutput(NamedTuple):
  """What the local update of one worker leaves behind."""

  loss: jax.Array
  message: jax.Array  # float[d], the pseudo-gradient
  rows: LocalRows
  optimizer: base.State  # to be averaged, or ()
  aux: Any


def build(parts: Parts) -> Work:
  """The work of the round with these parts."""
  bind = functools.partial
  return Work(
    bind(init_rows, parts),
    bind(run, parts),
    bind(init_shared, parts),
    bind(auxiliary, parts),
  )


def statistic_of(
  loss_fn: local.LossFn | local.Objective,
  estimator: local.GradientEstimator,
  preconditioner: Preconditioner | None,
  *,
  needs_key: bool = False,
  has_aux: bool = False,
) -> Callable[..., base.Params]:
  """`(params, batch, context) -> what a preconditioner is refreshed by`."""
  if preconditioner is None or not preconditioner.uses_hessian:
    return lambda *known: local.estimate(estimator, *known).gradient
  draws = needs_key or isinstance(loss_fn, local.Objective)

  def statistic(params, batch, context):
    objective = local.as_objective(
      loss_fn, name=_NAME, needs_key=needs_key, has_aux=has_aux
    )

    def loss(params, batch):
      return local.loss_and_aux(_NAME, objective, params, batch, context)[0]

    # What the loss draws must not depend on the signs of the probe.
    key = jax.random.fold_in(context.key, 1) if draws else context.key
    return hutchinson_diagonal(loss)(params, batch, key)

  return statistic


def init_rows(parts: Parts, params: base.Params, n: int) -> LocalRows:
  """What n workers keep at the start."""
  training, scaler = parts.training, parts.preconditioner

  def of_all(init, argument):
    return jax.vmap(init, in_axes=None, axis_size=n)(argument)

  vector = flat.row_layout(params).ravel(params)
  return LocalRows(
    of_all(training.optimizer.init, params) if parts.state == 'keep' else (),
    of_all(scaler.init, params) if scaler and parts.has_own else (),
    of_all(training.sampler.init, params),
    per_worker(parts.chain, n).init(vector),
  )


def init_shared(parts: Parts, params: base.Params) -> LocalShared:
  """What the server keeps for its workers at the start."""
  scaler = parts.preconditioner
  return LocalShared(
    parts.training.optimizer.init(params) if parts.state == 'average' else (),
    scaler.init(params) if scaler and parts.has_global else (),
    _no_steps(parts),
  )


def _no_steps(parts: Parts) -> jax.Array:
  """The clock at the start: one for all, or one of every worker."""
  try:
    steps = jax.eval_shape(parts.steps_at, jnp.zeros([], jnp.int32))
  except ValueError:  # Said again where the round is traced.
    return jnp.zeros([], jnp.int32)
  return jnp.zeros(steps.shape, steps.dtype)


def auxiliary(
  parts: Parts, params: base.Params
) -> tuple[tuple[int, base.Aggregator], ...]:
  """What is aggregated beside the messages: the preconditioner's first."""
  sizes = []
  if parts.has_global:
    sizes.append(flat.row_layout(params).size)
  if parts.state == 'average':
    state = jax.eval_shape(parts.training.optimizer.init, params)
    floats, _ = _split(state)
    if jax.tree.leaves(floats):
      sizes.append(flat.row_layout(floats).size)
  return tuple((size, parts.side_rule) for size in sizes)


def run(
  parts: Parts, params, batch, rows, keys, *, context: WorkContext, exchange
) -> WorkerOutput:
  """A round of the workers of one device, up to their messages."""
  shared, states = context.shared, list(context.auxiliary)
  attackers = data_attacks.ranks_of(context)
  num_steps = parts.steps_at(context.step)
  begin = functools.partial(begin_round, parts, context.step)
  plans, statistics = _over(parts, context, begin)(
    params, batch, attackers, rows.sampler, keys
  )
  scaling = shared.preconditioner
  if parts.has_global:
    layout = flat.row_layout(params)
    statistic, states[0] = exchange(0, statistics, states[0])
    scaling = _refreshed(parts, scaling, layout.unravel(statistic))
  clock = (num_steps, shared.num_steps)
  update = functools.partial(
    worker_update, parts, context, shared.optimizer, scaling, clock
  )
  output = _over(parts, context, update)(
    params,
    batch,
    attackers,
    plans,
    statistics,
    rows,
    keys,
    tuple(x[context.ids] for x in clock) if num_steps.ndim else (),
  )
  average = shared.optimizer
  if parts.state == 'average':
    average, states = _average(
      average, output.optimizer, states, exchange, context
    )
  messages, chain = worker_messages(
    parts, output.message, rows.chain, params, context.is_byzantine
  )
  taken = num_steps[context.cohort.ids] if num_steps.ndim else num_steps
  return WorkerOutput(
    output.loss,
    messages,
    output.rows._replace(chain=chain),
    LocalShared(average, scaling, shared.num_steps + num_steps),
    tuple(states),
    taken,
    parts.training.estimator.count_gradients(taken),
    output.aux,
  )


def begin_round(
  parts: Parts, round, params, data, is_byzantine, sampler_state, key
) -> tuple[base.State, Any]:
  """A worker's plan of the round, and the statistic on its first batch."""
  training = parts.training
  plan = training.sampler.start(sampler_state, params, data, key)
  if parts.preconditioner is None:
    return plan, ()
  first = jnp.zeros([], jnp.int32)
  batch, _, key = _local_steps.draw_batch(
    training, plan, data, is_byzantine, first, key, params
  )
  context = local.LocalContext(params, key, first, round)
  statistic = parts.statistic(params, batch, context)
  return plan, flat.row_layout(params).ravel(statistic)


def worker_update(
  parts: Parts,
  context: WorkContext,
  average: base.State,
  scaling: base.State,
  clock: tuple[jax.Array, jax.Array],
  params,
  data,
  is_byzantine,
  plan,
  statistic,
  rows: LocalRows,
  key,
  own_clock,
) -> LocalOutput:
  """The local update of one worker, from what the server sent.

  `average` and `scaling` are what all workers share, `statistic` and what is
  behind it are of this worker. The clock is the steps of this round and those
  of the rounds before; of this worker where they differ, else ().
  """
  training, layout = parts.training, flat.row_layout(params)
  if parts.has_own:
    scaling = _refreshed(parts, rows.preconditioner, layout.unravel(statistic))
  start = average if parts.state == 'average' else rows.optimizer
  if parts.state == 'reset':
    start = training.optimizer.init(params)
  num_steps, progress = own_clock or clock
  end = _local_steps.local_update(
    training,
    params,
    start,
    plan,
    data,
    is_byzantine,
    key,
    num_steps,
    round=context.step,
    progress=progress,
    scale=functools.partial(_scaled, parts, scaling),
    axis_name=context.axis_name,
  )
  return LocalOutput(
    end.loss,
    layout.ravel(params) - layout.ravel(end.params),
    LocalRows(
      end.optimizer if parts.state == 'keep' else (),
      scaling if parts.has_own else (),
      _local_steps.sampler_state(training.sampler, rows.sampler, end),
      (),
    ),
    end.optimizer if parts.state == 'average' else (),
    end.aux,
  )


def _over(parts: Parts, context: WorkContext, one_worker: Callable) -> Callable:
  of_all = over_workers(_NAME, one_worker, parts.worker_map)
  return only_for(context.computes, of_all)


def _refreshed(parts: Parts, state: base.State, statistic: Any) -> base.State:
  scaler: Any = parts.preconditioner
  return scaler.update(statistic, state, statistic=statistic)[1]


def _scaled(parts: Parts, state: base.State, gradient: Any) -> base.Params:
  scaler: Any = parts.preconditioner
  if scaler is None:
    return gradient
  return scaler.update(gradient, state, refresh=False)[0]


def _average(start, ends, states, exchange, context):
  """The aggregate of the optimizers' states, and the largest of their counts.

  All began with the same state, so counts differ only where steps do.
  """
  floats, counts = _split(start)
  end_floats, end_counts = _split(ends)
  if jax.tree.leaves(floats):
    layout = flat.row_layout(floats)
    *before, state = states
    aggregate, state = exchange(
      len(before), layout.ravel_rows(end_floats), state
    )
    floats, states = layout.unravel(aggregate), [*before, state]
  counts = jax.tree.map(
    functools.partial(_largest, context), counts, end_counts
  )
  merged = jax.tree.map(
    lambda a, b: a if b is None else b,
    floats,
    counts,
    is_leaf=lambda x: x is None,
  )
  return merged, states


def _largest(context: WorkContext, old: jax.Array, new: jax.Array):
  """The largest of the leaves `[k, ...]` of those that take part."""
  if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
    # Workers that took as many steps have the same one.
    words = _largest(
      context, jax.random.key_data(old), jax.random.key_data(new)
    )
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(old))
  if context.takes_part is not None:
    mask = context.takes_part.reshape((-1,) + (1,) * (new.ndim - 1))
    new = jnp.where(mask, new, old[None])
  new = jnp.max(new, axis=0)
  if context.axis_name is not None:
    new = lax.pmax(new, context.axis_name)
  return new.astype(old.dtype)


def _split(state: Any) -> tuple[Any, Any]:
  """The leaves that are real numbers, and the others; None elsewhere."""

  def is_real(x):
    return jnp.issubdtype(x.dtype, jnp.floating)

  return (
    jax.tree.map(lambda x: x if is_real(x) else None, state),
    jax.tree.map(lambda x: None if is_real(x) else x, state),
  )
