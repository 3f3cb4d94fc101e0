"""What rounds share whose workers keep parameters of their own."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import (
  base,
  checks,
  flat,
  local,
  parameters,
  round_arguments,
)
from byzjax.rounds import _engine, _local_steps
from byzjax.rounds._work import Cohort, Context, Parts, Work, WorkerOutput
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad, over_workers


class ReplicaRows(NamedTuple):
  """What the workers of `parle` and `elastic_averaging` keep.

  Attributes:
    params: float[n, d], the parameters of every worker, leaf after leaf; see
      `replicas`.
    average: float[n, d], of the local steps, or () if none is kept.
    momentum: float[n, d], of the step that begins a round, or ().
    optimizer: of the local steps, leaves `[n, ...]`.
    sampler: of the batches, leaves `[n, ...]`.
    end: float[n, d], where the local steps ended, or ().
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
    work: `(walk, layout, params, row, round) -> (Walk, message float[d],
      row)`, where params are the server's, and `walk(start float[d], tx, state,
      force)` takes the local steps, with `force(w)` added to a gradient.
    server: optax transform of the aggregate.
  """

  init: Callable[..., ReplicaRows]
  work: Callable[..., tuple[_local_steps.Walk, jax.Array, ReplicaRows]]
  server: optax.GradientTransformation


def build(
  name: str,
  method: Method,
  loss_fn: LossFn,
  *,
  num_local_steps: int,
  num_workers: int,
  aggregator: base.Aggregator,
  sampler: local.LocalSampler | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
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
  round_arguments.check_layout(name, mesh, axis_name)
  checks.check_kind(name, 'sampler', sampler, local.LocalSampler, optional=True)
  schedule = round_arguments.byzantine_schedule(name, num_workers, byzantine)
  num_shards = 1
  if mesh is not None:
    mesh, num_shards = round_arguments.check_mesh(
      name, mesh, axis_name, num_workers
    )
  message_attack = attack if isinstance(attack, base.Attack) else None
  data_attack = None if isinstance(attack, base.Attack) else attack
  estimator = local.as_estimator(
    loss_fn,
    value_and_grad,
    name=name,
    needs_key=needs_key,
    has_aux=has_aux,
  )
  batches = sampler or _local_steps.take_in_turn()

  def init_rows(params, n):
    def of_worker(params):
      rows = method.init(params, flat.row_layout(params))
      return rows._replace(sampler=batches.init(params))

    return jax.vmap(of_worker, in_axes=None, axis_size=n)(params)

  def run(params, batch, rows, keys, *, context: Context, exchange):
    del exchange
    layout = flat.row_layout(params)

    def one_worker(params, data, is_byzantine, row, key):
      def walk(start, tx, state, force=None):
        def forced(w, batch, context):
          value, gradient = estimator.estimate(w, batch, context)
          if force is not None:
            gradient = jax.tree.map(jnp.add, gradient, force(w))
          return value, gradient

        start = layout.unravel(start)
        return _local_steps.walk(
          _local_steps.Walker(
            name,
            estimator._replace(estimate=forced),
            tx,
            batches,
            data_attack,
          ),
          start,
          state,
          batches.start(row.sampler, start, data, key),
          data,
          is_byzantine,
          key,
          num_local_steps,
          lambda gradient: gradient,
          lambda tree: _local_steps.varying(tree, context.axis_name),
          round=context.step,
          anchor=params,
        )

      end, message, new = method.work(walk, layout, params, row, context.step)
      kept = batches.finish(row.sampler, end.params)
      return end.loss, message, new._replace(sampler=kept), end.aux

    losses, messages, rows, aux = over_workers(name, one_worker, worker_map)(
      params, batch, context.is_byzantine, rows, keys
    )
    return WorkerOutput(
      losses,
      messages,
      rows,
      context.shared,
      context.auxiliary,
      jnp.asarray(num_local_steps, jnp.int32),
      estimator.count_gradients(num_local_steps),
      aux,
    )

  engine = _engine.build(
    Parts(
      Work(init_rows, run),
      aggregator=aggregator,
      optimizer=optax.with_extra_args_support(method.server),
      num_workers=num_workers,
      cohort_size=num_workers,
      attack=message_attack,
      data_attack=None,
      codec=codec,
      server_codec=server_codec,
      mesh=mesh,
      num_shards=num_shards,
      axis_name=axis_name,
    )
  )

  def init(params, key=None):
    del key
    parameters.check_parameters(name, params)
    return engine.init(params)

  def step(state, batch, key):
    round_arguments.check_batch(name, batch, num_workers)
    if sampler is None:
      round_arguments.check_slices(name, batch, num_local_steps)
    everybody = Cohort(
      jnp.arange(num_workers),
      round_arguments.byzantine_of(name, schedule, state.step, num_workers),
      None,
    )
    return engine.step(state, batch, key, everybody)

  return base.Round(init, step)


def replicas(state: base.RoundState) -> base.Params:
  """The parameters of every worker of `parle` or `elastic_averaging`.

  Those of attackers are what honest workers in their place would have. A rule
  makes one model of them, `byzjax.mean()(byzjax.replicas(state))`: the master
  of Parle.

  Args:
    state: of such a round.

  Returns:
    A tree with leaves `[n, *shape]`, in the dtypes of `state.params`.

  Raises:
    ValueError: if it is the state of another round.

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
