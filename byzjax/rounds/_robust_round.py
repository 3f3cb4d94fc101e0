"""The synchronous robust round, as one pure function."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from byzjax._src import base, flat, layouts, reductions
from byzjax.transforms import per_worker

LossFn = Callable[[base.Params, base.Batch], jax.Array]


def random_byzantine(
  num_workers: int, num_byzantine: int, key: jax.Array
) -> base.ByzantineSchedule:
  """Attackers that change: f workers drawn anew in every step.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    key: of all the draws; step t uses `fold_in(key, t)`.

  Returns:
    A schedule, `step int32[] -> bool[n]`, for `robust_round(byzantine=...)`.

  Raises:
    ValueError: if `n <= 2f` or an argument is not an int.

  Example:
    >>> import byzjax, jax
    >>> schedule = byzjax.random_byzantine(5, 2, jax.random.key(0))
    >>> int(schedule(3).sum())
    2
  """
  _check_byzantine(num_workers, num_byzantine)
  mask = jnp.arange(num_workers) < num_byzantine
  return lambda step: jax.random.permutation(
    jax.random.fold_in(key, step), mask
  )


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
  worker_weights: jax.Array | None = None,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """One round of training in which some workers may lie: one XLA program.

  `g_i = grad loss(w, batch_i)`, `m_i = worker chain(g_i)`, the Byzantine rows
  of m are overwritten by the attack, `u = Agg(m_1, ..., m_n)`, `w <- w +
  optimizer(u)`. `init` and `step` are pure: jit them, scan over them, vmap them
  over seeds, donate the state.

  With a mesh, workers are split over devices: each computes the gradients and
  keeps the momentum of its own `n / p` workers, and attack and rule run on its
  own `d / p` coordinates (see `worker_sharded`). The results agree with those
  of one device to rounding.

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
      (see `Aggregator` and `cap_weights`), or None if all count the same.
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
  if not isinstance(aggregator, base.Aggregator):
    raise ValueError(
      'robust_round needs aggregator to be an Aggregator (put optax transforms'
      f' behind it, in optimizer), got {type(aggregator).__name__}'
    )
  if attack is not None and not isinstance(attack, base.Attack):
    if not callable(attack):
      raise ValueError(
        'robust_round needs attack to be an Attack, a data attack (batch,'
        f' is_byzantine, key) -> batch, or None, got {attack!r}'
      )
  schedule = _schedule(num_workers, byzantine)
  gradients = _worker_gradients(loss_fn, worker_map)
  optimizer = optax.with_extra_args_support(optimizer)
  worker = optax.identity() if worker is None else worker
  message_attack = attack if isinstance(attack, base.Attack) else None
  data_attack = None if isinstance(attack, base.Attack) else attack
  num_shards = 1
  if mesh is not None:
    mesh, num_shards = _check_mesh(mesh, axis_name, num_workers)
  server = layouts.attacked(aggregator, message_attack)
  if mesh is not None:
    server = layouts.worker_sharded(aggregator, axis_name, message_attack)
  lifted = per_worker(worker, num_workers // num_shards)
  if worker_weights is not None:
    base.check_worker_weights('robust_round', worker_weights, num_workers)
    worker_weights = jnp.asarray(worker_weights)

  def init(params, key=None):
    del key
    layout = flat.row_layout(params)
    size = layouts.padded_size(layout.size, num_shards) if mesh else layout.size
    state = layouts.attacked(aggregator, message_attack).init(
      jnp.zeros(size, layout.dtype)
    )
    # A copy: the state may be donated, the caller's parameters may not. And of
    # a fixed dtype: a weak one would not survive the first step.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
    state = base.RoundState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      workers=per_worker(worker, num_workers).init(layout.ravel(params)),
      attack=state.attack,
      aggregator=state.aggregator,
      optimizer=optimizer.init(params),
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
    size = layouts.padded_size(layout.size, num_shards)
    initial = layouts.attacked(aggregator, message_attack).init
    # A leaf has coordinates if it grows with their number.
    small, large = (
      jax.eval_shape(initial, jax.ShapeDtypeStruct((k * size,), layout.dtype))
      for k in (1, 2)
    )

    def by_coordinate(a, b):
      axes = [axis_name if p != q else None for p, q in zip(a.shape, b.shape)]
      return PartitionSpec(*axes)

    server_specs = jax.tree.map(by_coordinate, small, large)
    specs = jax.tree.map(lambda _: everywhere, state)
    return specs._replace(
      workers=jax.tree.map(lambda _: rows, state.workers),
      attack=server_specs.attack,
      aggregator=server_specs.aggregator,
    )

  def local_step(state, batch, key):
    """A round, on all workers, or on this device's workers under shard_map."""
    layout = flat.row_layout(state.params)
    key = jax.random.fold_in(key, state.step)
    data_key, server_key = jax.random.split(key)
    is_byzantine = jnp.asarray(schedule(state.step))
    if is_byzantine.shape != (num_workers,) or is_byzantine.dtype != bool:
      raise ValueError(
        f'robust_round needs byzantine(step) to be bool[{num_workers}], got'
        f' {is_byzantine.dtype}{list(is_byzantine.shape)}'
      )
    mine, params = is_byzantine, state.params
    if mesh is not None:
      local = num_workers // num_shards
      first = lax.axis_index(axis_name) * local
      mine = lax.dynamic_slice_in_dim(is_byzantine, first, local)
      # Without this, gradients of replicated parameters are silently summed
      # over the devices.
      params = lax.pcast(params, axis_name, to='varying')
    if data_attack is not None:
      batch = data_attack(batch, mine, data_key)

    losses, grads = gradients(params, batch)
    grads = layout.ravel_rows(grads)
    messages, workers = lifted.update(
      grads, state.workers, layout.ravel(params)
    )
    if not byzantine_chain:
      messages = jnp.where(mine[:, None], grads, messages)
    aggregate, server_state, info = server.inspect(
      messages,
      layouts.WorkerShardedState(state.aggregator, state.attack),
      key=server_key,
      is_byzantine=is_byzantine,
      worker_weights=worker_weights,
    )
    updates, optimizer_state = optimizer.update(
      layout.unravel(aggregate), state.optimizer, state.params
    )
    loss = jnp.sum(jnp.where(mine, 0, losses))
    if mesh is not None:
      loss = reductions.psum(loss, axis_name)
    assert info.mask is not None and info.error is not None
    bits = jnp.asarray(32.0 * layout.size * num_workers)
    new_state = base.RoundState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      workers=workers,
      attack=server_state.attack,
      aggregator=server_state.aggregator,
      optimizer=optimizer_state,
    )
    return new_state, base.RoundInfo(
      loss=loss / jnp.sum(~is_byzantine),
      aggregation_error=info.error,
      bits_up=bits,
      bits_down=bits,
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


def _check_byzantine(num_workers: int, num_byzantine: Any) -> None:
  base.check_count('byzantine', 'num_workers', num_workers, 1)
  base.check_count('byzantine', 'num_byzantine', num_byzantine)
  base.check_majority('byzantine', num_workers, num_byzantine)


def _schedule(num_workers: int, byzantine: Any) -> base.ByzantineSchedule:
  if callable(byzantine):
    return byzantine
  if isinstance(byzantine, int) and not isinstance(byzantine, bool):
    _check_byzantine(num_workers, byzantine)
    first = jnp.arange(num_workers) < byzantine
    return lambda step: first
  traced = isinstance(byzantine, jax.core.Tracer)
  mask = byzantine if traced else np.asarray(byzantine)
  if mask.shape != (num_workers,) or mask.dtype != jnp.bool_:
    raise ValueError(
      'robust_round needs byzantine to be an int, a schedule or'
      f' bool[{num_workers}], got {mask.dtype}{list(mask.shape)}'
    )
  if not traced:
    base.check_majority('byzantine', num_workers, int(mask.sum()))
  return lambda step: jnp.asarray(mask)


def _worker_gradients(loss_fn: LossFn, worker_map: str | int):
  """`(params, batch [n, ...]) -> (losses [n], gradients [n, ...])`."""
  value_and_grad = jax.value_and_grad(loss_fn)
  if worker_map == 'vmap':
    return jax.vmap(value_and_grad, in_axes=(None, 0))
  if worker_map == 'map':
    batch_size = None
  elif type(worker_map) is int and worker_map > 0:
    batch_size = worker_map
  else:
    raise ValueError(
      "robust_round needs worker_map to be 'vmap', 'map' or a positive int, got"
      f' {worker_map!r}'
    )

  def mapped(params, batch):
    one = functools.partial(value_and_grad, params)
    return lax.map(one, batch, batch_size=batch_size)

  return mapped


def _check_mesh(
  mesh: Mesh | AbstractMesh, axis_name, num_workers: int
) -> tuple[Mesh | AbstractMesh, int]:
  """The mesh with automatic axes, and the number of shards of workers."""
  names = (axis_name,) if isinstance(axis_name, str) else axis_name
  unknown = [name for name in names if name not in mesh.axis_names]
  if unknown:
    raise ValueError(
      f'robust_round needs axis_name to be among the axes {mesh.axis_names} of'
      f' the mesh, got {axis_name!r}'
    )
  num_shards = 1
  for name in names:
    num_shards *= mesh.shape[name]
  if num_workers % num_shards:
    raise ValueError(
      'robust_round needs num_workers to be a multiple of the'
      f' {num_shards} devices of mesh axis {axis_name!r}, got {num_workers}'
    )
  auto = (AxisType.Auto,) * len(mesh.axis_names)
  if isinstance(mesh, AbstractMesh):
    return AbstractMesh(
      mesh.axis_sizes, mesh.axis_names, axis_types=auto
    ), num_shards
  return Mesh(mesh.devices, mesh.axis_names, axis_types=auto), num_shards
