"""The local round: several local steps of every worker per communication."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import (
  base,
  checks,
  injected,
  local,
  round_arguments,
)
from byzjax.rounds import _local_steps, _local_work
from byzjax.rounds._assemble import assemble
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad
from byzjax.transforms import Preconditioner

NumLocalSteps = int | np.ndarray | Callable[[jax.Array], jax.Array]
_NAME = 'local_round'


def local_round(
  loss_fn: LossFn,
  *,
  local_optimizer: optax.GradientTransformation,
  num_local_steps: NumLocalSteps,
  aggregator: base.Aggregator,
  optimizer: optax.GradientTransformation,
  num_workers: int,
  local_state: Literal['keep', 'reset', 'average'] = 'keep',
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
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  root_batch: base.Batch | base.BatchSchedule | None = None,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  r"""H local steps of every worker, then one robust aggregation.

  .. math::
    x_i^0 = w, \quad x_i^{k+1} = x_i^k + \mathrm{opt}(\nabla \ell_i(x_i^k)),
    \quad g_i = w - x_i^H, \quad u = \mathrm{Agg}(g_1, \dots, g_n), \quad
    w \leftarrow w + \mathrm{optimizer}(u)

  The message `g_i` of a worker is a *pseudo-gradient*: like a gradient, it
  points in the direction of ascent. So `optimizer=optax.sgd(1.0)` with `mean()`
  replaces w by the average of the workers' parameters, and codecs, attacks,
  rules and server optimizers apply as to gradients. The round is one XLA
  program, and H may change from round to round without recompilation.

  `fed_avg`, `fed_prox`, `fed_opt` and `diloco` call this function with some of
  its arguments fixed.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, or an `Objective` of
      `byzjax.objectives`, which also depends on the parameters at the start of
      the round.
    local_optimizer: optax transform of the local steps, on the tree of
      parameters, such as `optax.sgd(0.1)`. `update` gets the extra arguments
      `gradient_fn` (of parameters, on the current batch, as
      `scale_by_delta_sgd` needs), `value`, `grad`, `value_fn`, `round` and
      `progress` (the number of earlier local steps, in all rounds). A learning
      rate schedule inside counts the steps of this worker, over all rounds if
      the state is kept; `scale_by_round` and `scale_by_progress` use `round`
      and `progress` instead.
    num_local_steps: H: an int; int[R], the length of every round, such as
      `quadratic_synchronization(...)` (after round R no more steps are taken);
      or a schedule `round -> int32[]`, or `-> int32[n]` for workers of
      different speeds.
    aggregator: the aggregation rule for pseudo-gradients.
    optimizer: optax optimizer of the server, applied to the aggregate.
    num_workers: n >= 1, a Python int.
    local_state: the state of the local optimizer between rounds: 'keep', each
      worker keeps its own; 'reset', it is initialised in every round and not
      stored; 'average', the final states of the workers are aggregated too, by
      `side_aggregator`, and all workers start the next round from the
      aggregate. Under attack 'average' is safe only with a rule that stays
      within the range of the honest values in each coordinate, such as
      `coordinate_median` or `trimmed_mean`: other rules can make a second
      moment negative, and then every step of Adam is NaN.
    sampler: source of the batch of a local step, such as
      `data.local_sampler(...)` or `data.curriculum(...)`; the round is then
      given each worker's data. None: batch leaves are `[n, S, ...]` and local
      step k takes slice `k mod S`.
    participation: m, the number of workers drawn in every round, uniformly
      without replacement, or a `Participation` such as
      `data.client_curriculum(...)`. Only these compute, and the rule gets m
      messages; the states of the others do not change. None for all.
    preconditioner: `scale_by_preconditioner(...)`, applied to gradients before
      the local optimizer. It is refreshed once per round, at the start, at the
      parameters that all workers share and on the batch of the first local
      step.
    preconditioner_scope: 'global', one for all workers, refreshed by an
      aggregate of their statistics (which are attacked like messages); or
      'local', one for each worker.
    side_aggregator: the rule for auxiliary exchanges (a global preconditioner,
      an average of states); None for `aggregator`, with a separate state.
    worker: optax transform that every worker applies to its own
      pseudo-gradient, such as `worker_momentum(0.9)`; see `robust_round`.
    attack: an `Attack` on messages, a data attack such as `label_flip(10)` on
      the batch of every local step, a `joint_attack` of both, or None.
    byzantine: the Byzantine workers among all n; required with an attack; see
      `robust_round`.
    byzantine_chain: whether Byzantine workers run the `worker` transform too.
    worker_weights: float[n], such as the numbers of examples, or a schedule of
      it; see `robust_round`.
    codec: compression of the workers' messages, or None for float32.
    server_codec: compression of the server's aggregate, or None for float32.
    value_and_grad: `(params, batch_i, key) -> (loss, gradient)`, or a
      `GradientEstimator`, of a local step; `loss_fn` is then used only by
      preconditioners that need its Hessian.
    needs_key: whether `loss_fn(params, batch_i, key)` takes a key; every worker
      gets a new one in every local step; see `robust_round`.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`.
      `RoundInfo.aux` has its mean over the local steps (0 without any), in
      float, for every worker, leaves `[n, ...]`, or `[m, ...]` with
      `participation`; see `robust_round`.
    root_batch: clean data of the server, of the same form as one worker's data,
      for a rule that needs a `trusted` message; see `robust_round`. The server
      takes as many local steps as a worker. Not supported with a global
      preconditioner, `local_state='average'` or workers of different speeds.
    worker_map: 'vmap', 'map', or an int: see `robust_round`.
    mesh: devices to split workers over, or None for one device.
    axis_name: the axis, or axes, of the mesh that workers are split over.

  Returns:
    A `Round`; `RoundInfo.loss` is the mean over local steps and honest workers,
    `num_local_steps` is H, and `participants` are the m workers.

  Raises:
    ValueError: if an argument is out of range, has the wrong type, or depends
      on another one that is missing; at trace time, if the batch does not have
      n rows, or its leaves have neither at least H slices nor a number that
      divides H.

  References:
    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, 2017, arXiv:1602.05629;
    pseudo-gradients and server optimizers: Reddi, Charles, Zaheer, Garrett,
    Rush, Konečný, Kumar, McMahan, 2021, arXiv:2003.00295.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> def loss_fn(params, batch):
    ...   return jnp.mean((params[None] - batch) ** 2)
    >>> training = byzjax.local_round(
    ...   loss_fn, num_workers=5, num_local_steps=4,
    ...   local_optimizer=optax.sgd(0.1), optimizer=optax.sgd(1.0),
    ...   aggregator=byzjax.coordinate_median(),
    ...   attack=byzjax.sign_flip(scale=10.0), byzantine=2)
    >>> state = training.init(jnp.zeros(3))
    >>> step = jax.jit(training.step)
    >>> for _ in range(30):
    ...   state, info = step(state, jnp.ones([5, 4, 8, 3]), jax.random.key(0))
    >>> bool(info.loss < 0.01)
    True
  """
  checks.check_count(_NAME, 'num_workers', num_workers, 1)
  aggregator = round_arguments.check_slots(
    _NAME, aggregator, attack, {'codec': codec, 'server_codec': server_codec}
  )
  checks.check_choice(
    _NAME, 'local_state', local_state, ('keep', 'reset', 'average')
  )
  checks.check_choice(
    _NAME, 'preconditioner_scope', preconditioner_scope, ('global', 'local')
  )
  has_global = _check_preconditioner(
    preconditioner, preconditioner_scope, side_aggregator, local_state
  )
  _check_root(root_batch, has_global, local_state)
  round_arguments.check_transform(_NAME, 'optimizer', optimizer)
  round_arguments.check_transform(_NAME, 'local_optimizer', local_optimizer)
  round_arguments.check_transforms(_NAME, {'worker': worker})
  round_arguments.check_attackers(_NAME, attack, byzantine)
  checks.check_kind(
    _NAME, 'sampler', sampler, local.LocalSampler, optional=True
  )
  checks.check_flag(_NAME, 'byzantine_chain', byzantine_chain)
  steps_at, longest = round_arguments.step_schedule(
    _NAME, num_workers, num_local_steps
  )
  message_attack, data_attack = round_arguments.split_attack(attack)
  estimator = local.as_estimator(
    loss_fn,
    value_and_grad,
    name=_NAME,
    needs_key=needs_key,
    has_aux=has_aux,
  )
  work = _local_work.build(
    _local_work.Parts(
      training=_local_steps.LocalTraining(
        _NAME,
        estimator,
        optax.with_extra_args_support(local_optimizer),
        sampler or _local_steps.take_in_turn(),
        data_attack,
      ),
      state=local_state,
      steps_at=steps_at,
      preconditioner=preconditioner,
      has_global=has_global,
      has_own=preconditioner is not None and not has_global,
      statistic=_local_work.statistic_of(
        loss_fn,
        estimator,
        preconditioner,
        needs_key=needs_key,
        # Of value_and_grad, if that is given.
        has_aux=has_aux and value_and_grad is None,
      ),
      side_rule=injected.as_aggregator(_NAME, side_aggregator or aggregator),
      chain=optax.identity() if worker is None else worker,
      byzantine_chain=byzantine_chain,
      worker_map=worker_map,
    )
  )

  def check(state, batch):
    if root_batch is not None and steps_at(state.step).ndim:
      raise ValueError(
        f'{_NAME} needs num_local_steps to be the same for all workers if'
        f' root_batch is given, got {num_local_steps!r}'
      )
    if sampler is None:
      round_arguments.check_slices(_NAME, batch, longest)

  return assemble(
    _NAME,
    work,
    num_workers=num_workers,
    aggregator=aggregator,
    optimizer=optimizer,
    message_attack=message_attack,
    byzantine=byzantine,
    worker_weights=worker_weights,
    participation=participation,
    codec=codec,
    server_codec=server_codec,
    mesh=mesh,
    axis_name=axis_name,
    root_batch=root_batch,
    skips_attackers=not estimator.has_aux,
    check=check,
  )


def _check_root(root_batch: Any, has_global: bool, local_state: str) -> None:
  """Raises ValueError where the server could not work as a worker does."""
  if root_batch is not None and (has_global or local_state == 'average'):
    raise ValueError(
      f'{_NAME} needs root_batch to be None with a preconditioner of scope'
      " 'global' or local_state='average', because the server's own message"
      ' does not include these'
    )


def _check_preconditioner(
  preconditioner: Any, scope: str, side_aggregator: Any, local_state: str
) -> bool:
  """Whether the preconditioner is that of the server; or a ValueError."""
  if not isinstance(preconditioner, Preconditioner | None):
    raise ValueError(
      f'{_NAME} needs preconditioner to be scale_by_preconditioner(...) or'
      f' None, got {type(preconditioner).__name__}'
    )
  if preconditioner is None and scope == 'local':
    raise ValueError(
      f"{_NAME} needs a preconditioner for preconditioner_scope='local', got"
      ' None'
    )
  has_global = preconditioner is not None and scope == 'global'
  if not (side_aggregator is None or has_global or local_state == 'average'):
    raise ValueError(
      f'{_NAME} needs side_aggregator to be None unless a preconditioner of'
      " scope 'global' or local_state='average' is used, got"
      f' {side_aggregator!r}'
    )
  return has_global
