"""The asynchronous round: one message, and a server that waits for nobody."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import (
  base,
  checks,
  flat,
  layouts,
  local,
  parameters,
  reductions,
  round_arguments,
)
from byzjax.asynchrony import Buffer, Events
from byzjax.asynchrony._check_events import check_events
from byzjax.rounds import (
  _asynchronous_arguments,
  _asynchronous_work,
  _local_steps,
  _wire,
)
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad

_NAME = 'asynchronous_round'


def asynchronous_round(
  loss_fn: LossFn,
  *,
  events: Events,
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
      steps leave the parameters as they are.
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

  Returns:
    A `Round`; batch leaves are `[num_shards, ...]`. `RoundInfo.loss` is that of
    the job, at stale parameters, `staleness` and `time` are of the message, and
    `num_nonfinite`, `masked`, `is_byzantine` and `aggregation_error` (zero
    without a rule) are of the buffer's places.

  Raises:
    ValueError: if an argument is in the wrong slot or out of range, the events
      cannot be a run, the buffer is not one of these events, or attackers are
      not fewer than half; at trace time, if the batch has not `num_shards`
      rows.

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
  events = check_events(_NAME, events)
  aggregator = _asynchronous_arguments.check(
    _NAME, events, buffer, local_optimizer, codec, attack, aggregator
  )
  round_arguments.check_choice(
    _NAME, 'local_state', local_state, ('keep', 'reset')
  )
  num_workers = events.num_workers
  if callable(byzantine):
    raise ValueError(f'{_NAME} needs byzantine to be an int or bool[K]')
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
  schedule = round_arguments.byzantine_schedule(_NAME, num_workers, byzantine)
  message_attack = attack if isinstance(attack, base.Attack) else None

  def extra(tx):
    return None if tx is None else optax.with_extra_args_support(tx)

  parts = _asynchronous_work.Parts(
    estimator=local.as_estimator(
      loss_fn,
      value_and_grad,
      name=_NAME,
      needs_key=needs_key,
      has_aux=has_aux,
    ),
    local_optimizer=extra(local_optimizer),
    keeps=local_state == 'keep',
    sampler=sampler or _local_steps.take_in_turn(),
    data_attack=None if isinstance(attack, base.Attack) else attack,
    chain=worker,
    attack=message_attack,
    codec=codec,
    incoming=extra(incoming),
    aggregator=aggregator,
    optimizer=extra(optimizer),
    broadcast=broadcast or (lambda params, state: params),
    num_places=None if buffer is None else buffer.num_rows,
    num_workers=num_workers,
  )
  plan, num_versions = _asynchronous_work.plan(events, buffer)
  num_events = len(events.worker)

  def init(params, key=None):
    del key
    parameters.check_parameters(_NAME, params)
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
    layout = flat.row_layout(params)
    zeros = jnp.zeros(layout.size, layout.dtype)
    state = optimizer.init(params)
    rows, shared = _asynchronous_work.init(
      parts, parts.broadcast(params, state), num_versions
    )
    return base.RoundState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      workers=rows,
      attack=message_attack.init(zeros) if message_attack else (),
      aggregator=aggregator.init(zeros) if aggregator else (),
      optimizer=state,
      codec=_wire.init_rows(
        codec,
        jnp.zeros(layouts.padded_size(layout.size, 1), layout.dtype),
        num_workers,
      ),
      shared=shared,
    )

  def step(state, batch, key):
    rows = checks.num_workers(f'{_NAME}: batch', batch)
    if rows != events.num_shards:
      raise ValueError(
        f'{_NAME} needs a batch with num_shards={events.num_shards} rows, got'
        f' {rows}'
      )
    if sampler is None:
      round_arguments.check_slices(_NAME, batch, None)
    return _step(
      parts, plan, num_events, schedule(state.step), state, batch, key
    )

  return base.Round(init, step)


def _step(parts, plan, num_events, is_byzantine, state, batch, key):
  """Message `state.step`."""
  layout = flat.row_layout(state.params)
  last = jnp.minimum(state.step, num_events - 1)
  now = _asynchronous_work.Plan(*(x[last] for x in plan))
  is_over = state.step >= num_events
  shared, k = state.shared, now.worker
  job_key, step_key = jax.random.split(key)
  keys = jax.random.split(jax.random.fold_in(step_key, state.step), 3)

  def of(rows, i):
    return jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows
    )

  def put(rows, new, i):
    return jax.tree.map(
      lambda x, y: lax.dynamic_update_index_in_dim(x, y, i, 0), rows, new
    )

  stale = of(shared.versions, now.read)
  own = of(state.workers, k)
  loss, message, local_state, aux = _asynchronous_work.job(
    parts,
    now,
    stale,
    of(batch, now.shard),
    own.optimizer,
    is_byzantine[k],
    job_key,
  )
  server = before = _asynchronous_work.Server(
    state.aggregator, state.attack, state.optimizer
  )
  chain, coder, latest, vector = own.chain, of(state.codec, k), None, None
  bits = jnp.asarray(32.0 * layout.size)
  if parts.needs_vectors:
    vector = layout.ravel(message)
    if parts.chain is not None:
      vector, chain = parts.chain.update(vector, chain, layout.ravel(stale))
    vector, coder, bits = _asynchronous_work.send(parts, vector, coder, keys[0])
    vector, latest, attack_state = _asynchronous_work.lie(
      parts, vector, shared.latest, k, is_byzantine, server, keys[1]
    )
    server = server._replace(attack=attack_state)
    message = layout.unravel(vector)
  extra = {
    'worker': k,
    'num_local_steps': now.num_local_steps,
    'issued_at': now.issued_at,
    'staleness': now.staleness,
    'is_waiting': now.is_waiting,
    'stale_params': stale,
    'progress': now.progress,
  }
  incoming = shared.incoming
  if parts.incoming is not None:
    finite = reductions.finite_tree(message)
    # What is not finite is dropped later, and must not stay in a state here.
    message, incoming = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      parts.incoming.update(message, incoming, state.params, **extra),
      (message, incoming),
    )
    vector = None
  places, liars = None, is_byzantine[k][None]
  if parts.aggregator is not None:
    vector = layout.ravel(message) if vector is None else vector
    places, liars = _asynchronous_work.place(
      parts, now, vector, is_byzantine[k], shared
    )

  def serve(server, params):
    if parts.aggregator is None:
      finite = reductions.finite_tree(message)
      aggregate, found = message, (jnp.zeros([]), ~finite[None])
    else:
      aggregate, server, found = _asynchronous_work.combine(
        parts, places, liars, server, params, keys[2]
      )
    updates, optimizer_state = parts.optimizer.update(
      aggregate, server.optimizer, params, **extra
    )
    server = server._replace(optimizer=optimizer_state)
    return optax.apply_updates(params, updates), server, found

  if parts.num_places is None:
    params, server, found = serve(server, state.params)
  else:

    def wait(server, params):
      skipped = jax.eval_shape(serve, server, params)[2]
      nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), skipped)
      return params, server, nothing

    params, server, found = lax.cond(
      now.is_full, serve, wait, server, state.params
    )
  error, masked = found
  # Nothing moves after the last message, nor by one that is not finite and that
  # no rule has seen.
  stays = is_over if parts.aggregator is not None else is_over | masked[0]
  params, server = jax.tree.map(
    lambda old, new: jnp.where(stays, old, new),
    (state.params, before),
    (params, server),
  )
  sent = parts.broadcast(params, server.optimizer)
  new_state = state._replace(
    step=state.step + 1,
    params=params,
    workers=put(
      state.workers, _asynchronous_work.AsynchronousRows(local_state, chain), k
    ),
    attack=server.attack,
    aggregator=server.aggregator,
    optimizer=server.optimizer,
    codec=put(state.codec, coder, k),
    shared=shared._replace(
      versions=put(shared.versions, sent, now.write),
      places=None if parts.num_places is None else places,
      is_byzantine=None if parts.num_places is None else liars,
      latest=latest,
      incoming=incoming,
    ),
  )
  return new_state, base.RoundInfo(
    loss=loss,
    aggregation_error=error,
    bits_up=bits,
    bits_down=jnp.asarray(32.0 * layout.size),
    num_nonfinite=jnp.sum(masked, dtype=jnp.int32),
    is_byzantine=liars,
    masked=masked,
    num_local_steps=now.num_local_steps,
    staleness=now.staleness,
    time=now.time,
    num_gradients=parts.estimator.count_gradients(now.num_local_steps),
    aux=jax.tree.map(lambda x: jnp.asarray(x)[None], aux),
  )
