"""The asynchronous round: one message, and a server that waits for nobody."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, checks, local, round_arguments
from byzjax.asynchrony import Buffer, Events, Schedule
from byzjax.rounds import (
  _asynchronous_arguments,
  _asynchronous_step,
  _asynchronous_work,
  _local_steps,
)
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad

_NAME = _asynchronous_step.NAME


def asynchronous_round(
  loss_fn: LossFn,
  *,
  events: Events | Schedule,
  optimizer: optax.GradientTransformation,
  local_optimizer: optax.GradientTransformation | None = None,
  local_state: Literal['keep', 'reset'] = 'keep',
  sampler: local.LocalSampler | None = None,
  worker: optax.GradientTransformation | None = None,
  incoming: optax.GradientTransformation | None = None,
  buffer: Buffer | None = None,
  aggregator: base.Aggregator | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | None = None,
  codec: base.Codec | None = None,
  broadcast: Callable[[base.Params, base.State], base.Params] | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  r"""One message of an asynchronous run, from its job to the server's step.

  .. math::
    g = \nabla \ell_k(w_{t - \tau}) \quad \text{or} \quad
    g = w_{t - \tau} - x_k^H, \qquad w_{t+1} = w_t + \mathrm{optimizer}(g)

  `events`, made by `asynchrony.simulate` or, from the record of a run, by
  `asynchrony.events_from_trace`, says which worker sends, how stale its
  parameters are, and who is sent new ones. It does not depend on the
  parameters, so that step e computes the job of message e where it arrives:
  scanned over, all events are one program, and a run repeats bit by bit. Only
  versions of the parameters that a job has begun from are kept: at most one per
  worker, in as many places as the schedule ever needs at once.

  A message with NaN or inf changes nothing, unless there is a rule, which then
  masks it. With a `buffer` the server collects messages, and makes its step
  with their aggregate when the buffer says that it is full.

  Transforms in `optimizer` and `incoming` get, beside the message, the extra
  arguments `worker`, `num_local_steps`, `issued_at` (of the parameters that
  were sent, in steps of the server), `staleness` (steps since then),
  `is_waiting` (whether other workers wait, as in a synchronous schedule),
  `stale_params` and `progress`; with a buffer, `optimizer` gets those of the
  message that filled it.

  Args:
    loss_fn: `(params, batch) -> scalar`, or an `Objective`.
    events: the messages, in order; every one is a step of the round. Later
      steps leave the parameters as they are. Or a `Schedule` of them, which may
      be traced: then one compiled program takes any other.
    optimizer: optax transform of the server, such as `optax.sgd`,
      `ordered_momentum` or `delayed_nesterov`. A learning rate schedule counts
      its own steps.
    local_optimizer: optax transform of the local steps; messages are then
      pseudo-gradients `w - x^H`, which point uphill. None: one gradient a job.
      Its updates get `progress`, too: the local step in the data's own count.
    local_state: what a worker does with the state of its local optimizer
      between jobs: 'keep', or 'reset'.
    sampler: where batches come from, such as `data.local_sampler(...)`; None:
      the batch leaves are `[num_shards, S, ...]` and local step p of a shard
      takes slice `p mod S`. Draws are by the shard's own count of steps: the
      same in every schedule.
    worker: optax transform that every worker runs on its messages, such as
      `worker_momentum(0.9)`; see `robust_round`.
    incoming: optax transform of every message as it arrives, attackers' ones
      too, such as `discount_staleness()` or `optax.clip_by_global_norm(1.0)`.
    buffer: which messages are put together, such as `asynchrony.by_worker(
      events, num_rows=8)`; None: a step for every message.
    aggregator: the rule over the places of the buffer; None for `mean()`.
      Without a buffer it gets one message at a time: for `centered_clipping`,
      which compares it with its memory.
    attack: an `Attack` on messages, a data attack, or None. An attacker knows
      what every honest worker has sent last.
    byzantine: who attacks: an int f (the first f workers) or bool[K]. Must be
      given with an attack; None is nobody.
    codec: how workers send their messages, or None.
    broadcast: `(params, state of the optimizer) -> params`, what workers are
      sent in place of the parameters, such as the estimate of `smega2`.
    value_and_grad: `(params, batch, key) -> (loss, gradient)`, or a
      `GradientEstimator`, whose round counts steps of the server; `loss_fn` is
      then not used.
    needs_key: whether `loss_fn(params, batch, key)` takes a key, one of its own
      for every local step of every shard; see `robust_round`.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`.
      `RoundInfo.aux` has that of the job whose message this is, leaves `[1,
      ...]`: the mean over its local steps, in float, where there is a local
      optimizer; see `robust_round`.
    mesh: devices to split workers over, or None for one device. It saves memory
      and no time: of p devices each has a p-th of what workers keep, of the
      versions and of the buffer; the one that has the worker of a message
      computes its job, and the others wait. Parameters, the state of
      `optimizer` and the batch are on all of them, and so are, message by
      message, the version that its job begins from and what it sends.
    axis_name: the axis, or axes, of the mesh that workers are split over.

  Returns:
    A `Round`; batch leaves are `[num_shards, ...]`. `RoundInfo.loss` is that of
    the job, at stale parameters, `staleness` and `time` are of the message, and
    `num_nonfinite`, `masked`, `is_byzantine` and `aggregation_error` (zero
    without a rule) are of the buffer's places.

  Raises:
    ValueError: if an argument is in the wrong slot or out of range, the workers
      do not divide over the devices, the events cannot be a run, the buffer is
      not one of these events, or attackers are not fewer than half; at trace
      time, if the batch has not `num_shards` rows.

  References:
    Mishchenko, Bach, Even, Woodworth, 2022, arXiv:2206.07638 (asynchronous
    SGD); Liu, Chhaparia, Douillard, Kale, Rusu, Shen, Szlam, Ranzato, 2024,
    arXiv:2401.09135 (local steps); Yang, Li, 2021, arXiv:2003.00937 (attackers
    and buffers).

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> from byzjax import asynchrony
    >>> events = asynchrony.simulate([1.0, 1.0, 2.5], num_events=90)
    >>> training = byzjax.asynchronous_round(
    ...   lambda w, x: jnp.mean((w[None] - x) ** 2), events=events,
    ...   buffer=asynchrony.by_worker(events, num_rows=3),
    ...   aggregator=byzjax.coordinate_median(), optimizer=optax.sgd(0.2),
    ...   attack=byzjax.sign_flip(scale=10.0), byzantine=1)
    >>> def step(state, _):
    ...   return training.step(state, jnp.ones([3, 1, 4, 2]), jax.random.key(0))
    >>> state = training.init(jnp.zeros(2))
    >>> state, info = jax.jit(lambda s: jax.lax.scan(step, s, length=90))(state)
    >>> bool(info.loss[-1] < 0.01), float(info.time[-1])
    (True, 38.0)
  """
  messages = _asynchronous_arguments.schedule_of(_NAME, events, buffer)
  aggregator = _asynchronous_arguments.check(
    _NAME, messages, local_optimizer, codec, attack, aggregator
  )
  checks.check_choice(_NAME, 'local_state', local_state, ('keep', 'reset'))
  round_arguments.check_transform(_NAME, 'optimizer', optimizer)
  round_arguments.check_transforms(
    _NAME,
    {
      'local_optimizer': local_optimizer,
      'worker': worker,
      'incoming': incoming,
    },
  )
  round_arguments.check_attackers(_NAME, attack, byzantine)
  checks.check_kind(
    _NAME, 'sampler', sampler, local.LocalSampler, optional=True
  )
  if broadcast is not None:
    checks.check_function(_NAME, 'broadcast', broadcast)
  message_attack, data_attack = round_arguments.split_attack(attack)
  mesh, num_devices = round_arguments.check_mesh(
    _NAME, mesh, axis_name, messages.num_workers, 'the num_workers of events'
  )
  parts = _asynchronous_work.Parts(
    plan=messages.plan,
    num_events=messages.num_events,
    num_versions=messages.num_versions,
    num_workers=messages.num_workers,
    num_shards=messages.num_shards,
    training=_local_steps.LocalTraining(
      _NAME,
      local.as_estimator(
        loss_fn,
        value_and_grad,
        name=_NAME,
        needs_key=needs_key,
        has_aux=has_aux,
      ),
      _with_extra(local_optimizer),
      sampler or _local_steps.take_in_turn(),
      data_attack,
    ),
    keeps=local_state == 'keep',
    takes_slices=sampler is None,
    chain=worker,
    attack=message_attack,
    byzantine_at=_asynchronous_arguments.byzantine_schedule(
      _NAME, messages.num_workers, byzantine
    ),
    codec=codec,
    incoming=_with_extra(incoming),
    num_places=messages.num_rows,
    aggregator=aggregator,
    optimizer=optax.with_extra_args_support(optimizer),
    broadcast=broadcast or (lambda params, state: params),
    mesh=mesh,
    num_devices=num_devices,
    axis_name=axis_name,
  )
  return round_arguments.make_round(
    _NAME,
    functools.partial(_asynchronous_step.init, parts),
    functools.partial(_asynchronous_step.step, parts),
  )


def _with_extra(tx):
  return None if tx is None else optax.with_extra_args_support(tx)
