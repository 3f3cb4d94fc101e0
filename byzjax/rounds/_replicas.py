"""What rounds share whose workers keep parameters of their own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import (
  base,
  checks,
  data_attacks,
  flat,
  local,
  round_arguments,
)
from byzjax.rounds import _local_steps
from byzjax.rounds._assemble import assemble
from byzjax.rounds._work import Work, WorkContext, WorkerOutput
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad, over_workers


class ReplicaRows(NamedTuple):
  """The worker states of `parle` and `elastic_averaging`.

  Attributes:
    params: float[n, d], the parameters of every worker as one vector; see
      `replicas`.
    average: float[n, d], the average of the local steps, or ().
    momentum: float[n, d], of the first step of a round, or ().
    optimizer: state of the local optimizer, leaves `[n, ...]`.
    sampler: state of the sampler of batches, leaves `[n, ...]`.
    end: float[n, d], the end of the last local steps, or ().
  """

  params: jax.Array
  average: base.State = ()
  momentum: base.State = ()
  optimizer: base.State = ()
  sampler: base.State = ()
  end: base.State = ()


class Method(NamedTuple):
  """What tells one of these rounds from another.

  Attributes:
    init: `(params, layout) -> ReplicaRows` of one worker.
    work: `(local_update, layout, params, row, round) -> (LocalUpdate, message
      float[d], row)`, where params are the server's, and `local_update(start
      float[d], tx, state, force=None)` takes the local steps, with `force(w)`
      added to a gradient.
    server: optax transform of the aggregate.
  """

  init: Callable[..., ReplicaRows]
  work: Callable[..., tuple[_local_steps.LocalUpdate, jax.Array, ReplicaRows]]
  server: optax.GradientTransformation


class Parts(NamedTuple):
  """What the workers of one of these rounds do."""

  name: str
  method: Method
  estimator: local.GradientEstimator
  sampler: local.LocalSampler
  data_attack: base.DataAttack | None
  num_local_steps: int
  worker_map: str | int


def build(
  name: str,
  method: Method,
  loss_fn: LossFn,
  *,
  num_local_steps: int,
  num_workers: int,
  aggregator: base.Aggregator,
  sampler: local.LocalSampler | None = None,
  participation: int | local.Participation | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """The round of a method; arguments as in `local_round`."""
  checks.check_count(name, 'num_workers', num_workers, 1)
  checks.check_count(name, 'num_local_steps', num_local_steps, 1)
  aggregator = round_arguments.check_slots(
    name, aggregator, attack, {'codec': codec, 'server_codec': server_codec}
  )
  round_arguments.check_attackers(name, attack, byzantine)
  checks.check_kind(name, 'sampler', sampler, local.LocalSampler, optional=True)
  message_attack, data_attack = round_arguments.split_attack(attack)
  parts = Parts(
    name,
    method,
    local.as_estimator(
      loss_fn, value_and_grad, name=name, needs_key=needs_key, has_aux=has_aux
    ),
    sampler or _local_steps.take_in_turn(),
    data_attack,
    num_local_steps,
    worker_map,
  )
  work = Work(
    functools.partial(init_rows, parts), functools.partial(run, parts)
  )

  def check(state, batch):
    del state
    if sampler is None:
      round_arguments.check_slices(name, batch, num_local_steps)

  return assemble(
    name,
    work,
    num_workers=num_workers,
    aggregator=aggregator,
    optimizer=method.server,
    message_attack=message_attack,
    byzantine=byzantine,
    worker_weights=worker_weights,
    participation=participation,
    codec=codec,
    server_codec=server_codec,
    mesh=mesh,
    axis_name=axis_name,
    check=check,
  )


def init_rows(parts: Parts, params: base.Params, n: int) -> ReplicaRows:
  """What n workers keep at the start."""

  def of_worker(params):
    rows = parts.method.init(params, flat.row_layout(params))
    return rows._replace(sampler=parts.sampler.init(params))

  return jax.vmap(of_worker, in_axes=None, axis_size=n)(params)


def run(
  parts: Parts, params, batch, rows, keys, *, context: WorkContext, exchange
) -> WorkerOutput:
  """A round of the workers of one device, up to their messages."""
  del exchange
  update = functools.partial(worker_update, parts, context)
  losses, messages, rows, aux = over_workers(
    parts.name, update, parts.worker_map
  )(params, batch, data_attacks.ranks_of(context), rows, keys)
  return WorkerOutput(
    losses,
    messages,
    rows,
    context.shared,
    context.auxiliary,
    jnp.asarray(parts.num_local_steps, jnp.int32),
    parts.estimator.count_gradients(parts.num_local_steps),
    aux,
  )


def worker_update(
  parts: Parts,
  context: WorkContext,
  params,
  data,
  is_byzantine,
  row: ReplicaRows,
  key,
) -> tuple[jax.Array, jax.Array, ReplicaRows, Any]:
  """The round of one worker: its loss, message, row and auxiliary output."""
  layout = flat.row_layout(params)

  def local_update(start, tx, state, force=None):
    start = layout.unravel(start)
    return _local_steps.local_update(
      _local_steps.LocalTraining(
        parts.name,
        _forced(parts.estimator, force),
        tx,
        parts.sampler,
        parts.data_attack,
      ),
      start,
      state,
      parts.sampler.start(row.sampler, start, data, key),
      data,
      is_byzantine,
      key,
      parts.num_local_steps,
      round=context.step,
      anchor=params,
      axis_name=context.axis_name,
    )

  end, message, new = parts.method.work(
    local_update, layout, params, row, context.step
  )
  kept = _local_steps.sampler_state(parts.sampler, row.sampler, end)
  return end.loss, message, new._replace(sampler=kept), end.aux


def _forced(
  estimator: local.GradientEstimator, force: Callable | None
) -> local.GradientEstimator:
  """The estimator, with `force(w)` added to its gradients."""
  if force is None:
    return estimator

  def estimate(w, batch, context):
    value, gradient = estimator.estimate(w, batch, context)
    return value, jax.tree.map(jnp.add, gradient, force(w))

  return estimator._replace(estimate=estimate)


def replicas(state: base.RoundState) -> base.Params:
  """The parameters of every worker of `parle` or `elastic_averaging`.

  The rows of Byzantine workers are those that honest workers in their place
  would have. An aggregation rule combines them into one model:
  `byzjax.mean()(byzjax.replicas(state))` is the master of Parle.

  Args:
    state: the `RoundState` of such a round.

  Returns:
    A tree with leaves `[n, *shape]`, in the dtypes of `state.params`.

  Raises:
    ValueError: if the state belongs to another round.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> training = byzjax.elastic_averaging(
    ...   lambda w, x: jnp.sum((w - x) ** 2), num_workers=3, num_local_steps=1,
    ...   local_optimizer=optax.sgd(0.1))
    >>> print(byzjax.replicas(training.init(jnp.array([1., 2.]))))
    [[1. 2.]
     [1. 2.]
     [1. 2.]]
  """
  if not isinstance(state.workers, ReplicaRows):
    raise ValueError(
      'replicas needs the state of parle or elastic_averaging, got workers of'
      f' type {type(state.workers).__name__}'
    )
  layout = flat.row_layout(state.params)
  return layout.unravel_rows(state.workers.params)
