"""FedAvg: local SGD, then the average of the workers' parameters."""

from typing import Literal

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, checks, local
from byzjax.aggregators import mean
from byzjax.rounds._local_round import NumLocalSteps, local_round
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad
from byzjax.transforms import Preconditioner

_NAME = 'fed_avg'


def fed_avg(
  loss_fn: LossFn,
  *,
  learning_rate: base.ScalarOrSchedule,
  num_local_steps: NumLocalSteps,
  num_workers: int,
  aggregator: base.Aggregator | None = None,
  sampler: local.LocalSampler | None = None,
  participation: int | local.Participation | None = None,
  preconditioner: Preconditioner | None = None,
  preconditioner_scope: Literal['global', 'local'] = 'global',
  side_aggregator: base.Aggregator | None = None,
  worker: optax.GradientTransformation | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  byzantine_chain: bool = True,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  root_batch: base.Batch | base.BatchSchedule | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """FedAvg: local SGD, then the average of the workers' parameters.

  `x_i <- x_i - eta grad loss_i(x_i)`, H times from w; then `w <- w - Agg(w -
  x_1, ..., w - x_n)`, which for the mean is `w <- mean of the x_i`. The paper
  weights workers by their numbers of examples:
  `worker_weights=partition.sizes`.

  Args:
    loss_fn: as for `local_round`.
    learning_rate: eta of the local steps; a schedule restarts in each round.
      For a rate that decays over rounds, use `local_round` with the local
      optimizer `scale_by_round(schedule)`.
    num_local_steps: H, as for `local_round`.
    num_workers: n, a Python int.
    aggregator: the aggregation rule; None for `mean()`.
    sampler: source of the batches of local steps. This and all arguments below
      are as for `local_round`.
    participation: m workers in every round, or a `Participation`; None for all.
    preconditioner: `scale_by_preconditioner(...)` of the local gradients.
    preconditioner_scope: 'global', one for all workers, or 'local', one each.
    side_aggregator: the rule for a global preconditioner; None for
      `aggregator`.
    worker: optax transform that a worker runs on its pseudo-gradient.
    attack: an `Attack` on messages, a data attack, or None.
    byzantine: the Byzantine workers among all n; required with an attack.
    byzantine_chain: whether Byzantine workers run the `worker` transform too.
    worker_weights: float[n], or a schedule of it.
    codec: compression of the workers' messages, or None for float32.
    server_codec: compression of the server's aggregate, or None for float32.
    root_batch: clean data of the server, for rules that need a `trusted`
      message, or None.
    value_and_grad: replaces the gradient of `loss_fn`, or None.
    needs_key: whether the loss is `loss_fn(params, batch_i, key_i)`.
    has_aux: whether the loss is `(loss, aux)`; aux is in `RoundInfo.aux`.
    worker_map: 'vmap', 'map' or an int.
    mesh: devices to split workers over, or None for one device.
    axis_name: the axis, or axes, of the mesh for workers.

  Returns:
    A `Round`.

  Raises:
    ValueError: if learning_rate is negative, or as for `local_round`.

  References:
    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, arXiv:1602.05629.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.fed_avg(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2) / 2, learning_rate=0.5,
    ...   num_local_steps=2, num_workers=2)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1, 1) * jnp.ones([2, 2, 4, 1])
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), x, jax.random.key(0))
    >>> print(state.params)
    [1.5]
  """
  checks.check_rate(_NAME, 'learning_rate', learning_rate)
  return local_round(
    loss_fn,
    local_optimizer=optax.sgd(learning_rate),
    local_state='reset',
    optimizer=optax.sgd(1.0),
    aggregator=mean() if aggregator is None else aggregator,
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    sampler=sampler,
    participation=participation,
    preconditioner=preconditioner,
    preconditioner_scope=preconditioner_scope,
    side_aggregator=side_aggregator,
    worker=worker,
    attack=attack,
    byzantine=byzantine,
    byzantine_chain=byzantine_chain,
    worker_weights=worker_weights,
    codec=codec,
    server_codec=server_codec,
    root_batch=root_batch,
    value_and_grad=value_and_grad,
    needs_key=needs_key,
    has_aux=has_aux,
    worker_map=worker_map,
    mesh=mesh,
    axis_name=axis_name,
  )
