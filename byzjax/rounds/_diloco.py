"""DiLoCo: AdamW on the workers, Nesterov momentum on the server."""

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, checks, local
from byzjax.aggregators import mean
from byzjax.rounds._local_round import NumLocalSteps, local_round
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad

_NAME = 'diloco'


def diloco(
  loss_fn: LossFn,
  *,
  learning_rate: base.ScalarOrSchedule,
  num_local_steps: NumLocalSteps,
  num_workers: int,
  weight_decay: base.Scalar = 0.1,
  outer_learning_rate: base.Scalar = 0.7,
  outer_momentum: base.Scalar = 0.9,
  aggregator: base.Aggregator | None = None,
  sampler: local.LocalSampler | None = None,
  participation: int | local.Participation | None = None,
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
  """DiLoCo: AdamW on the workers, Nesterov momentum on the server.

  With `g = Agg(w - x_1, ..., w - x_n)`: `m <- beta m + g`, `w <- w - epsilon (g
  + beta m)`. Each worker keeps the moments of its AdamW between rounds.

  Args:
    loss_fn: as for `local_round`.
    learning_rate: of AdamW; a schedule counts the steps of all rounds.
    num_local_steps: H, as for `local_round`.
    num_workers: n, a Python int.
    weight_decay: of AdamW.
    outer_learning_rate: epsilon >= 0.
    outer_momentum: beta in [0, 1].
    aggregator: the aggregation rule; None for `mean()`.
    sampler: source of the batches of local steps. This and all arguments below
      are as for `local_round`.
    participation: m workers in every round, or a `Participation`; None for all.
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
    ValueError: if a rate or weight_decay is negative, outer_momentum is not in
      [0, 1], or as for `local_round`.

  References:
    Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen,
    2023, arXiv:2311.08105.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> training = byzjax.diloco(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2), learning_rate=0.1,
    ...   num_local_steps=4, num_workers=2, weight_decay=0.0)
    >>> state, _ = training.step(
    ...   training.init(jnp.zeros(1)), jnp.ones([2, 4, 8, 1]),
    ...   jax.random.key(0))
    >>> print(state.params.round(2))  # 0.7 (1 + 0.9) of four steps of 0.1
    [0.53]
  """
  checks.check_rate(_NAME, 'learning_rate', learning_rate)
  checks.check_range(_NAME, 'weight_decay', weight_decay, 0)
  checks.check_range(_NAME, 'outer_learning_rate', outer_learning_rate, 0)
  checks.check_range(_NAME, 'outer_momentum', outer_momentum, 0, 1)
  return local_round(
    loss_fn,
    local_optimizer=optax.adamw(learning_rate, weight_decay=weight_decay),
    local_state='keep',
    optimizer=optax.sgd(outer_learning_rate, outer_momentum, nesterov=True),
    aggregator=mean() if aggregator is None else aggregator,
    num_local_steps=num_local_steps,
    num_workers=num_workers,
    sampler=sampler,
    participation=participation,
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
