"""The synchronous robust round, as one pure function."""

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
  """One round of training in which some workers may lie: one XLA program.

  `g_i = grad loss(w, batch_i)`, `m_i = worker chain(g_i)`, the Byzantine rows
  of m are overwritten by the attack, `u = Agg(m_1, ..., m_n)`, `w <- w +
  optimizer(u)`. With codecs the server sees `decode(encode(m_i))`, with a
  residual of worker i where the codec keeps one, and the workers move along the
  decoded u. The attack acts on what the server decodes, and its rows are then
  put into the form that the codec can carry. `init` and `step` are pure: jit
  them, scan over them, vmap them over seeds, donate the state.

  With a mesh, workers are split over devices: each computes the gradients and
  keeps the momentum of its own `n / p` workers, and attack and rule run on its
  own `d / p` coordinates (see `worker_sharded`). What crosses devices is what
  the codecs make: with `sign_codec` both ways 1/32 of the bytes of float32. The
  results agree with those of one device to rounding.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, differentiable in params; batch_i is
      the slice of one worker. Or an `Objective` of `byzjax.objectives`.
    aggregator: the rule; an `Aggregator` (optax transforms that follow it
      belong to `optimizer`).
    optimizer: optax transform of the aggregate, on the tree of parameters.
    num_workers: n >= 1, a Python int.
    worker: optax transform that every worker runs on its own gradient, such as
      `worker_momentum(0.9)`; None sends gradients. Do not lift it by
      `per_worker`. It sees the model as one flat vector (in float32, or float64
      if a parameter is), so a clip by global norm is what it says, while
      transforms that treat leaves one by one see a single leaf. Begin the chain
      with `optax.zero_nans()` if a worker's own gradient may be NaN once: its
      momentum would stay NaN, and the worker masked, for ever.
    attack: an `Attack` on messages, a data attack such as `label_flip(10)` on
      batches, a `joint_attack` of both, or None.
    byzantine: who attacks: an int f (the first f workers), a mask bool[n], or a
      schedule `step -> bool[n]`, such as `random_byzantine`. Always less than
      half of the workers (of a schedule this cannot be checked). Must be
      given with an attack; None is nobody. The gradients of an int or a mask
      of attackers are not computed if the attack does not read them
      (`Attack.reads_own`), on one device, without codec and aux: their rows of
      `state.workers` are then copies of others, and of no meaning.
    byzantine_chain: whether attackers run the worker chain on their gradients
      too, so that their own momentum is what a data attack or `sign_flip(
      own=True)` sends. False sends raw gradients, as the official code of
      centered clipping does.
    worker_weights: float[n], what each worker counts relative to the others
      (see `Aggregator` and `cap_weights`), or a schedule of it, `step ->
      float[n]`, such as `random_participation`; None if all count the same. A
      worker of weight 0 does not take part in this round: it sends no bits, and
      its momentum and its codec stay as they are. (Attackers see what it would
      have sent.) Only rules with a weighted version take weights.
    codec: how workers send their messages, such as `sign_codec()`, or None for
      float32. Each worker draws from a key of its own.
    server_codec: how the server sends the aggregate, such as `sign_codec()`
      behind a vote or `error_feedback(scaled_sign_codec())`, or None. The rule
      and an attack that learns remember the aggregate before it is encoded.
    value_and_grad: `(params, batch_i, key_i) -> (loss, gradient)` of one
      worker, such as `sparsign_local_steps(...)`, or a `GradientEstimator` such
      as `entropy_gradient(...)`, or a `StatefulEstimator` such as `storm(...)`;
      `loss_fn` is then not used. None for `jax.value_and_grad(loss_fn)`. A
      stateful one is given the parameters of the worker's last round, which
      the server keeps; every worker keeps its own where there are
      `worker_weights`, with which it may be away, or a mesh.
    needs_key: whether `loss_fn(params, batch_i, key_i)` takes a key, such as
      for dropout: one of its own for every worker and every round, from which
      nothing else is drawn. An `Objective` has its key in any case.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`, a tree of
      arrays such as the accuracy (of value_and_grad then `((loss, aux),
      gradient)`). `RoundInfo.aux` has it of every worker, leaves `[n, ...]`,
      also of attackers and of those of weight 0. Objectives and estimators know
      by themselves whether they have one.
    root_batch: clean data of the server's own, for a rule that asks for a
      `trusted` gradient, such as `fl_trust`: a batch like that of one worker
      (leaves without the axis of workers, of any number of examples), or a
      schedule of it, `step -> batch`; None if there are none. The server then
      does in every round what a worker does, with a momentum of its own, and no
      codec or attack in between. Other rules do not look at it.
    worker_map: how per-worker gradients are computed: 'vmap' (one batched
      program: fast, most memory), 'map' (one worker after another: least
      memory, and on CPUs the faster way for convolutions that are written as
      matrix products, as those of `byzjax.models` are), or an int (chunks of so
      many workers).
    mesh: devices to split workers over, or None for one device. A mesh that is
      abstract can be lowered for, on a machine that has no such devices.
    axis_name: the axis, or axes, of the mesh that workers are split over.

  Returns:
    A `Round`: `init(params, key=None) -> RoundState` and `step(state, batch,
    key) -> (RoundState, RoundInfo)`. Batch leaves are `[n, ...]`. The key may
    be the same in all rounds: it is folded with the step number.

  Raises:
    ValueError: if an argument is out of range, `n <= 2f`, n is not divisible by
      the devices, the loss is not what `needs_key` and `has_aux` say, or (at
      trace time) the batch has not n rows or the rule cannot take n; from
      `init`, if a leaf of params is not of real numbers, or an `nnx` module has
      other state than `nnx.Param`.

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

    Dropout needs a key, and the accuracy of every worker is worth a look:

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
