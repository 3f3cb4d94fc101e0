"""The synchronous robust round, as one pure function."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from byzjax._src import base, flat, layouts, reductions
from byzjax.rounds import _arguments, _wire
from byzjax.rounds._worker_gradients import (
  LossFn,
  ValueAndGrad,
  worker_gradients,
)
from byzjax.transforms import per_worker


def robust_round(
  loss_fn: LossFn,
  *,
  aggregator: base.Aggregator,
  optimizer: optax.GradientTransformation,
  num_workers: int,
  worker: optax.GradientTransformation | None = None,
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule = 0,
  byzantine_chain: bool = True,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  codec: base.Codec | None = None,
  server_codec: base.Codec | None = None,
  value_and_grad: ValueAndGrad | None = None,
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
      the slice of one worker.
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
      batches, or None.
    byzantine: who attacks: an int f (the first f workers), a mask bool[n], or a
      schedule `step -> bool[n]`, such as `random_byzantine`. Always less than
      half of the workers (of a schedule this cannot be checked).
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
      worker, such as `sparsign_local_steps(...)`; `loss_fn` is then not used.
      None for `jax.value_and_grad(loss_fn)`.
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
      the devices, or (at trace time) the batch has not n rows or the rule
      cannot take n.

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
  """
  base.check_count('robust_round', 'num_workers', num_workers, 1)
  _arguments.check_slots(
    aggregator, attack, {'codec': codec, 'server_codec': server_codec}
  )
  schedule = _arguments.byzantine_schedule(num_workers, byzantine)
  weights_at = _arguments.weight_schedule(num_workers, worker_weights)
  gradients = worker_gradients(loss_fn, value_and_grad, worker_map)
  optimizer = optax.with_extra_args_support(optimizer)
  worker = optax.identity() if worker is None else worker
  message_attack = attack if isinstance(attack, base.Attack) else None
  data_attack = None if isinstance(attack, base.Attack) else attack
  num_shards, axes = 1, None
  if mesh is not None:
    mesh, num_shards = _arguments.check_mesh(mesh, axis_name, num_workers)
    axes = axis_name
  num_local = num_workers // num_shards
  server = layouts.attacked(aggregator, message_attack, codec)
  lifted = per_worker(worker, num_local)
  # Unpacking would take most of the server's time, and only an attack on
  # messages needs it.
  inspect_words = aggregator.inspect_words
  if message_attack is not None or num_workers > reductions.MAX_UNROLLED:
    inspect_words = None

  def size_of(layout):
    """D: coordinates are padded where they are cut or packed."""
    if mesh is None and codec is None and server_codec is None:
      return layout.size
    return layouts.padded_size(layout.size, num_shards)

  def init_server(vector):
    sender = server_codec.init(vector) if server_codec else ()
    return server.init(vector), sender

  def init(params, key=None):
    del key
    layout = flat.row_layout(params)
    zeros = jnp.zeros(size_of(layout), layout.dtype)
    server_state, sender = init_server(zeros)
    # A copy: the state may be donated, the caller's parameters may not. And of
    # a fixed dtype: a weak one would not survive the first step.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
    state = base.RoundState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      workers=per_worker(worker, num_workers).init(layout.ravel(params)),
      attack=server_state.attack,
      aggregator=server_state.aggregator,
      optimizer=optimizer.init(params),
      codec=_wire.init_rows(codec, zeros, num_workers),
      server_codec=sender,
    )
    if mesh is None:
      return state
    shardings = jax.tree.map(
      lambda spec: NamedSharding(mesh, spec), state_specs(state)
    )
    traced = any(
      isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(params)
    )
    place = lax.with_sharding_constraint if traced else jax.device_put
    return place(state, shardings)

  def state_specs(state):
    """Workers are split by row, and what the server keeps by coordinate."""
    rows, everywhere = PartitionSpec(axis_name), PartitionSpec()
    layout = flat.row_layout(state.params)
    # A leaf has coordinates if it grows with their number.
    small, large = (
      jax.eval_shape(
        init_server, jax.ShapeDtypeStruct((k * size_of(layout),), layout.dtype)
      )
      for k in (1, 2)
    )

    def by_coordinate(a, b):
      axes = [axis_name if p != q else None for p, q in zip(a.shape, b.shape)]
      return PartitionSpec(*axes)

    server_specs, sender_specs = jax.tree.map(by_coordinate, small, large)
    specs = jax.tree.map(lambda _: everywhere, state)
    return specs._replace(
      workers=jax.tree.map(lambda _: rows, state.workers),
      attack=server_specs.attack,
      aggregator=server_specs.aggregator,
      codec=jax.tree.map(lambda _: rows, state.codec),
      server_codec=sender_specs,
    )

  def serve(payload, state, key, layout, is_byzantine, weights):
    """What the server makes of the messages, on its local coordinates."""
    server_state = layouts.WorkerShardedState(state.aggregator, state.attack)
    payload = layouts.to_coordinates(payload, axes)
    if inspect_words and codec and codec.packs_signs and weights is None:
      vote, info = inspect_words(
        payload, is_byzantine=is_byzantine, axis_name=axes
      )
      return codec.decode(vote).astype(layout.dtype), server_state, info
    x = _wire.decode_rows(codec, payload, layout.dtype)
    columns = None
    if size_of(layout) > layout.size:
      columns = layouts.columns(x.shape[1], layout.size, axes)[None]
      x = x if codec is None else jnp.where(columns, x, 0)
    return server.inspect(
      x,
      server_state,
      key=key,
      axis_name=axes,
      is_byzantine=is_byzantine,
      columns=columns,
      num_coordinates=layout.size,
      worker_weights=weights,
    )

  def local_step(state, batch, key):
    """A round, on all workers, or on this device's workers under shard_map."""
    layout = flat.row_layout(state.params)
    key = jax.random.fold_in(key, state.step)
    data_key, server_key, gradient_key, codec_key, sender_key = (
      jax.random.split(key, 5)
    )
    is_byzantine = _arguments.byzantine_of(schedule, state.step, num_workers)
    weights = weights_at(state.step)
    first, params = jnp.zeros([], jnp.int32), state.params
    if mesh is not None:
      first = lax.axis_index(axis_name) * num_local
      # Without this, gradients of replicated parameters are silently summed
      # over the devices.
      params = lax.pcast(params, axis_name, to='varying')

    def of_mine(x):
      return lax.dynamic_slice_in_dim(x, first, num_local)

    def my_keys(key):
      numbers = first + jnp.arange(num_local)
      return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)

    mine = of_mine(is_byzantine)
    if data_attack is not None:
      batch = data_attack(batch, mine, data_key)
    losses, grads = gradients(params, batch, my_keys(gradient_key))
    grads = layout.ravel_rows(grads)
    messages, workers = lifted.update(
      grads, state.workers, layout.ravel(params)
    )
    if not byzantine_chain:
      messages = jnp.where(mine[:, None], grads, messages)
    payload, coders, bits = _wire.encode_rows(
      codec, messages, state.codec, my_keys(codec_key), size_of(layout)
    )
    num_receivers: int | jax.Array = num_workers
    if weights is not None:
      takes_part = of_mine(weights > 0)
      workers = _where_rows(takes_part, workers, state.workers)
      coders = _where_rows(takes_part, coders, state.codec)
      bits = jnp.where(takes_part, bits, 0)
      num_receivers = jnp.sum(weights > 0)

    aggregate, server_state, info = serve(
      payload, state, server_key, layout, is_byzantine, weights
    )
    aggregate, sender, bits_down = _wire.broadcast(
      server_codec,
      aggregate,
      state.server_codec,
      sender_key,
      num_coordinates=layout.size,
      axis_name=axes,
    )
    updates, optimizer_state = optimizer.update(
      layout.unravel(aggregate), state.optimizer, state.params
    )
    loss = jnp.sum(jnp.where(mine, 0, losses))
    assert info.mask is not None and info.error is not None
    new_state = base.RoundState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      workers=workers,
      attack=server_state.attack,
      aggregator=server_state.aggregator,
      optimizer=optimizer_state,
      codec=coders,
      server_codec=sender,
    )
    return new_state, base.RoundInfo(
      loss=reductions.psum(loss, axes) / jnp.sum(~is_byzantine),
      aggregation_error=info.error,
      bits_up=reductions.psum(jnp.sum(bits), axes),
      bits_down=bits_down * num_receivers,
      num_nonfinite=jnp.sum(~info.mask, dtype=jnp.int32),
      is_byzantine=is_byzantine,
      masked=~info.mask,
      weights=info.weights,
      kept=info.kept,
      scores=info.scores,
      factors=info.factors,
    )

  def step(state, batch, key):
    rows = base.num_workers('robust_round: batch', batch)
    if rows != num_workers:
      raise ValueError(
        f'robust_round needs a batch with num_workers={num_workers} rows, got'
        f' {rows}'
      )
    if mesh is None:
      return local_step(state, batch, key)
    specs = state_specs(state)
    sharded = jax.shard_map(
      local_step,
      mesh=mesh,
      in_specs=(specs, PartitionSpec(axis_name), PartitionSpec()),
      out_specs=(specs, PartitionSpec()),
    )
    return sharded(state, batch, key)

  return base.Round(init, step)


def _where_rows(
  mask: jax.Array, new: base.State, old: base.State
) -> base.State:
  """The rows of the leaves `[n, ...]` from one state or the other."""

  def rows(x, y):
    return jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)

  return jax.tree.map(rows, new, old)
