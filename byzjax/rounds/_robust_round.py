"""Synchronous training with a robust aggregation, as one pure function."""

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import (
  base,
  checks,
  local,
  round_arguments,
)
from byzjax.rounds import _gradient_work, _stateful_work
from byzjax.rounds._assemble import assemble
from byzjax.rounds._worker_gradients import (
  LossFn,
  ValueAndGrad,
  check_worker_map,
)


def robust_round(
  loss_fn: LossFn,
  *,
  aggregator: base.Aggregator,
  optimizer: optax.GradientTransformation,
  num_workers: int,
  worker: optax.GradientTransformation | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  byzantine_chain: bool = True,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  value_and_grad: ValueAndGrad | local.StatefulEstimator | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  root_batch: base.Batch | base.BatchSchedule | None = None,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """Synchronous training with Byzantine workers: one round, one XLA program.

  `g_i = grad loss(w, batch_i)`, `m_i = worker(g_i)`, the attack overwrites the
  Byzantine rows of m, `u = Agg(m_1, ..., m_n)`, `w <- w + optimizer(u)`. With
  codecs the server receives `decode(encode(m_i))` (plus the residual of worker
  i, if the codec keeps one), and the model moves by the decoded u. The attack
  acts on the decoded messages, and its rows are then constrained to what the
  codec can represent. `init` and `step` are pure: jit them, scan over them,
  vmap them over seeds, donate the state.

  With a mesh, workers are split over devices: each device computes the
  gradients and keeps the momentum of its own `n / p` workers, and the attack
  and the rule run on its own `d / p` coordinates (see `worker_sharded`).
  Devices exchange the encoded messages: `sign_codec` in both directions takes
  1/32 of the bytes of float32. The results agree with those of one device up to
  rounding.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, differentiable in params; batch_i is
      the slice of one worker. Or an `Objective` of `byzjax.objectives`.
    aggregator: the aggregation rule; optax transforms of its output belong to
      `optimizer`.
    optimizer: optax optimizer of the server, on the tree of parameters.
    num_workers: n >= 1, a Python int.
    worker: optax transform that every worker applies to its own gradient, such
      as `worker_momentum(0.9)`; None sends gradients. Do not wrap it in
      `per_worker`. It gets the model as one flat vector (in float32, or float64
      if a parameter is), so clipping by global norm works as usual, but a
      transform that treats leaves separately gets a single leaf. If a worker's
      own gradient may ever be NaN, start the chain with `optax.zero_nans()`:
      otherwise its momentum stays NaN and the worker is masked from then on.
    attack: an `Attack` on messages, a data attack such as `label_flip(10)` on
      batches, a `joint_attack` of both, or None.
    byzantine: the Byzantine workers: an int f (the first f workers), a mask
      bool[n], or a schedule `step -> bool[n]`, such as `random_byzantine`.
      Always fewer than half of the workers (not checked for a schedule).
      Required with an attack; None for no Byzantine workers. With an int or a
      mask, gradients of Byzantine workers are not computed if the attack does
      not use them (`Attack.reads_own`), on one device, without codec and aux:
      their rows of `state.workers` are then copies of others and have no
      meaning.
    byzantine_chain: whether Byzantine workers apply `worker` to their gradients
      too, so that a data attack or `sign_flip(own=True)` sends their own
      momentum. False sends raw gradients, as the official code of centered
      clipping does.
    worker_weights: float[n], relative weights of the workers (see `Aggregator`
      and `cap_weights`), or a schedule of them, `step -> float[n]`, such as
      `random_participation`; None for equal weights. A worker of weight 0 does
      not take part in the round: it sends no bits, and the states of its
      `worker` transform and codec do not change. (Attacks still see the message
      that it would have sent.) Only rules with a weighted version accept
      weights.
    codec: compression of the workers' messages, such as `sign_codec()`, or None
      for float32. Each worker has its own random key.
    server_codec: compression of the aggregate, such as `sign_codec()` after a
      majority vote or `error_feedback(scaled_sign_codec())`, or None. The state
      of the rule, and of an attack that observes, uses the aggregate before it
      is encoded.
    value_and_grad: `(params, batch_i, key_i) -> (loss, gradient)` of one
      worker, such as `sparsign_local_steps(...)`, or a `GradientEstimator` such
      as `entropy_gradient(...)`, or a `StatefulEstimator` such as `storm(...)`;
      `loss_fn` is then not used. None for `jax.value_and_grad(loss_fn)`. A
      stateful estimator also gets the parameters of the worker's previous
      round. The server stores these once; with a mesh or with `worker_weights`
      (a worker may then miss rounds) every worker stores its own.
    needs_key: whether `loss_fn(params, batch_i, key_i)` takes a random key,
      such as for dropout; every worker gets a new one in every round, used for
      nothing else. An `Objective` always gets a key.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`, a tree of
      arrays such as the accuracy (value_and_grad then returns `((loss, aux),
      gradient)`). `RoundInfo.aux` has it for every worker, leaves `[n, ...]`,
      including Byzantine workers and those of weight 0. Objectives and
      estimators have their own flag for this.
    root_batch: clean data of the server, for a rule that needs a `trusted`
      gradient, such as `fl_trust`: a batch like that of one worker (leaves
      without the worker axis, any number of examples), or a schedule of it,
      `step -> batch`; None without such data. In every round the server then
      computes what a worker computes, with its own momentum, without codec or
      attack. Other rules ignore it.
    worker_map: how per-worker gradients are computed: 'vmap' (one batched
      program: fast, most memory), 'map' (one worker after another: least
      memory, and on CPUs faster for convolutions written as matrix products,
      such as those of `byzjax.models`), or an int (chunks of that many
      workers).
    mesh: devices to split workers over, or None for one device. With an
      abstract mesh a round can be lowered on a machine without such devices.
    axis_name: the axis, or axes, of the mesh that workers are split over.

  Returns:
    A `Round`: `init(params, key=None) -> RoundState` and `step(state, batch,
    key) -> (RoundState, RoundInfo)`. Batch leaves are `[n, ...]`. The same key
    may be used in all rounds: the step number is folded into it.

  Raises:
    ValueError: if an argument is out of range, `n <= 2f`, n is not divisible by
      the number of devices, or the loss does not fit `needs_key` and `has_aux`;
      at trace time, if the batch does not have n rows or the rule does not
      accept n; from `init`, if a leaf of params is not real, or an `nnx` module
      has state other than `nnx.Param`.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> def loss_fn(params, batch):
    ...   return jnp.mean((params[None] - batch) ** 2)
    >>> training = byzjax.robust_round(
    ...   loss_fn, num_workers=5, aggregator=byzjax.coordinate_median(),
    ...   optimizer=optax.sgd(0.1), attack=byzjax.sign_flip(scale=10.0),
    ...   byzantine=2)
    >>> state = training.init(jnp.zeros(3))
    >>> step = jax.jit(training.step)
    >>> for _ in range(100):
    ...   state, info = step(state, jnp.ones([5, 4, 3]), jax.random.key(0))
    >>> bool(info.loss < 0.01)
    True

    Dropout needs a key, and the loss can report the accuracy of every worker:

    >>> def dropout_loss(params, batch, key):
    ...   inputs, labels = batch
    ...   kept = jax.random.bernoulli(key, 0.8, inputs.shape)
    ...   logits = (inputs * kept / 0.8) @ params
    ...   losses = optax.softmax_cross_entropy_with_integer_labels(
    ...     logits, labels)
    ...   right = logits.argmax(axis=1) == labels
    ...   return losses.mean(), {'accuracy': right.mean()}
    >>> training = byzjax.robust_round(
    ...   dropout_loss, needs_key=True, has_aux=True, num_workers=5,
    ...   aggregator=byzjax.coordinate_median(), optimizer=optax.sgd(0.5))
    >>> x = jax.random.normal(jax.random.key(1), [5, 32, 8])
    >>> batch = (x, (x[..., 0] > 0).astype(int))
    >>> state, step = training.init(jnp.zeros([8, 2])), jax.jit(training.step)
    >>> for _ in range(50):
    ...   state, info = step(state, batch, jax.random.key(0))
    >>> info.aux['accuracy'].shape, bool(info.aux['accuracy'].min() > 0.7)
    ((5,), True)
  """
  name = 'robust_round'
  checks.check_count(name, 'num_workers', num_workers, 1)
  aggregator = round_arguments.check_slots(
    name, aggregator, attack, {'codec': codec, 'server_codec': server_codec}
  )
  round_arguments.check_transform(name, 'optimizer', optimizer)
  round_arguments.check_transforms(name, {'worker': worker})
  round_arguments.check_attackers(name, attack, byzantine)
  checks.check_flag(name, 'byzantine_chain', byzantine_chain)
  check_worker_map(name, worker_map)
  chain = optax.identity() if worker is None else worker
  estimator: local.GradientEstimator | local.StatefulEstimator
  if isinstance(value_and_grad, local.StatefulEstimator):
    estimator = value_and_grad
    local.check_own_flags(name, estimator, needs_key, has_aux)
    own_previous = worker_weights is not None or mesh is not None
    work = _stateful_work.build(
      _stateful_work.Parts(
        name, estimator, chain, byzantine_chain, worker_map, own_previous
      )
    )
  else:
    estimator = local.as_estimator(
      loss_fn,
      value_and_grad,
      name=name,
      needs_key=needs_key,
      has_aux=has_aux,
    )
    work = _gradient_work.build(
      _gradient_work.Parts(name, estimator, chain, byzantine_chain, worker_map)
    )
  message_attack, data_attack = round_arguments.split_attack(attack)
  # What is remembered, and what is told of the loss, is of everybody.
  is_stateful = isinstance(estimator, local.StatefulEstimator)
  return assemble(
    name,
    work,
    num_workers=num_workers,
    aggregator=aggregator,
    optimizer=optimizer,
    message_attack=message_attack,
    data_attack=data_attack,
    byzantine=byzantine,
    worker_weights=worker_weights,
    codec=codec,
    server_codec=server_codec,
    mesh=mesh,
    axis_name=axis_name,
    root_batch=root_batch,
    skips_attackers=not (estimator.has_aux or is_stateful),
  )
