"""What all rounds with a server share: from the workers' messages to the step.

A round differs from another one in what its workers do before they send. That
is a `Work`; the way up, attack, rule, the way down, the server's step and the
division over devices are here, once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from byzjax._src import base, flat, layouts, reductions
from byzjax.rounds import _wire


class Cohort(NamedTuple):
  """The k workers of one round."""

  ids: jax.Array  # int32[k], their numbers among all n
  is_byzantine: jax.Array  # bool[k]
  weights: jax.Array | None  # float[k]; 0 is absent


class Done(NamedTuple):
  """What the workers of one device leave behind."""

  losses: jax.Array  # float[k]
  messages: jax.Array  # float[k, d]
  rows: base.State  # leaves [k, ...]
  shared: base.State
  sides: tuple[layouts.WorkerShardedState, ...]
  num_local_steps: jax.Array | None = None
  num_gradients: jax.Array | None = None
  aux: Any = None  # leaves [k, ...]


class Exchange(Protocol):
  """Rows beside the messages, through the same attack and a rule.

  `(i, rows float[k, D], side state) -> (aggregate float[D], side state)` for
  the i-th of `Work.sides`.
  """

  def __call__(
    self, i: int, rows: jax.Array, state: layouts.WorkerShardedState
  ) -> tuple[jax.Array, layouts.WorkerShardedState]: ...


class Context(NamedTuple):
  """What the work knows of its round, on the workers of one device."""

  step: jax.Array
  cohort: Cohort  # of all devices
  ids: jax.Array  # int32[k]
  is_byzantine: jax.Array  # bool[k]
  takes_part: jax.Array | None  # bool[k], None for all
  shared: base.State
  sides: tuple[layouts.WorkerShardedState, ...]
  axis_name: base.AxisName


class Work(NamedTuple):
  """What workers do in a round.

  Attributes:
    init: `(params, num_workers) -> rows [n, ...]`, what workers keep.
    init_shared: `params -> shared`, what the server keeps for all of them.
    sides: `params -> ((size, rule), ...)`, of the exchanges beside the
      messages.
    run: `(params, batch, rows, keys [k], *, context, exchange) -> Done`, on the
      workers of one device.
  """

  init: Callable[[base.Params, int], base.State]
  run: Callable[..., Done]
  init_shared: Callable[[base.Params], base.State] = lambda params: ()
  sides: Callable[[base.Params], tuple[tuple[int, base.Aggregator], ...]] = (
    lambda params: ()
  )


class Engine(NamedTuple):
  """`init: params -> RoundState`; `step: (state, batch, key, cohort) -> ...`.

  `init` makes the rows of all workers, `step` takes those of its cohort.
  """

  init: Callable[[base.Params], base.RoundState]
  step: Callable[..., tuple[base.RoundState, base.RoundInfo]]


def build(
  work: Work,
  *,
  aggregator: base.Aggregator,
  optimizer: optax.GradientTransformation,
  num_workers: int,
  cohort_size: int,
  attack: base.Attack | base.DataAttack | None,
  codec: base.Codec | None,
  server_codec: base.Codec | None,
  mesh: Mesh | AbstractMesh | None,
  num_shards: int,
  axis_name: str | tuple[str, ...],
) -> Engine:
  """The round around the work, on one device or on a mesh."""
  optimizer = optax.with_extra_args_support(optimizer)
  message_attack = attack if isinstance(attack, base.Attack) else None
  data_attack = None if isinstance(attack, base.Attack) else attack
  axes = None if mesh is None else axis_name
  num_local = cohort_size // num_shards
  server = layouts.attacked(aggregator, message_attack, codec)
  # Unpacking would take most of the server's time, and only an attack on
  # messages needs it.
  inspect_words = aggregator.inspect_words
  if message_attack is not None or cohort_size > reductions.MAX_UNROLLED:
    inspect_words = None

  def size_of(size):
    """D: coordinates are padded where they are cut or packed."""
    if mesh is None and codec is None and server_codec is None:
      return size
    return layouts.padded_size(size, num_shards)

  def init_server(vector):
    sender = server_codec.init(vector) if server_codec else ()
    return server.init(vector), sender

  def init_side(rule, vector):
    return layouts.attacked(rule, message_attack).init(vector)

  def init(params):
    layout = flat.row_layout(params)
    zeros = jnp.zeros(size_of(layout.size), layout.dtype)
    server_state, sender = init_server(zeros)
    # A copy: the state may be donated, the caller's parameters may not. And of
    # a fixed dtype: a weak one would not survive the first step.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
    sides = tuple(
      init_side(rule, jnp.zeros(size_of(size), layout.dtype))
      for size, rule in work.sides(params)
    )
    state = base.RoundState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      workers=work.init(params, num_workers),
      attack=server_state.attack,
      aggregator=server_state.aggregator,
      optimizer=optimizer.init(params),
      codec=_wire.init_rows(codec, zeros, num_workers),
      server_codec=sender,
      shared=work.init_shared(params),
      sides=sides,
    )
    return state if mesh is None else place(state, mesh, state_specs(state))

  def by_coordinate(init, size, dtype):
    """A leaf has coordinates if it grows with their number."""
    small, large = (
      jax.eval_shape(init, jax.ShapeDtypeStruct((k * size_of(size),), dtype))
      for k in (1, 2)
    )
    return jax.tree.map(
      lambda a, b: PartitionSpec(
        *(axis_name if p != q else None for p, q in zip(a.shape, b.shape))
      ),
      small,
      large,
    )

  def state_specs(state):
    """Workers are split by row, and what the server keeps by coordinate."""
    rows, everywhere = PartitionSpec(axis_name), PartitionSpec()
    layout = flat.row_layout(state.params)
    server_specs, sender_specs = by_coordinate(
      init_server, layout.size, layout.dtype
    )
    specs = jax.tree.map(lambda _: everywhere, state)
    return specs._replace(
      workers=jax.tree.map(lambda _: rows, state.workers),
      attack=server_specs.attack,
      aggregator=server_specs.aggregator,
      codec=jax.tree.map(lambda _: rows, state.codec),
      server_codec=sender_specs,
      sides=tuple(
        by_coordinate(lambda x, rule=rule: init_side(rule, x), size, x_dtype)
        for size, rule in work.sides(state.params)
        for x_dtype in [layout.dtype]
      ),
    )

  def columns_of(x, size):
    """Which local coordinates are no padding, or None if all are."""
    if size_of(size) == size:
      return None
    return layouts.columns(x.shape[1], size, axes)[None]

  def serve(payload, state, key, size, dtype, cohort):
    """What the server makes of the messages, on its local coordinates."""
    server_state = layouts.WorkerShardedState(state.aggregator, state.attack)
    payload = layouts.to_coordinates(payload, axes)
    packed = codec is not None and codec.packs_signs
    if inspect_words and codec and packed and cohort.weights is None:
      vote, info = inspect_words(
        payload, is_byzantine=cohort.is_byzantine, axis_name=axes
      )
      return codec.decode(vote).astype(dtype), server_state, info
    x = _wire.decode_rows(codec, payload, dtype)
    columns = columns_of(x, size)
    if columns is not None and codec is not None:
      x = jnp.where(columns, x, 0)
    return server.inspect(
      x,
      server_state,
      key=key,
      axis_name=axes,
      is_byzantine=cohort.is_byzantine,
      columns=columns,
      num_coordinates=size,
      worker_weights=cohort.weights,
    )

  def exchange_of(params, cohort, key):
    """The exchanges beside the messages, uncompressed both ways."""
    sides = work.sides(params)

    def exchange(i, rows, side_state):
      size, rule = sides[i]
      rows = jnp.pad(rows, ((0, 0), (0, size_of(size) - size)))
      x = layouts.to_coordinates(rows, axes)
      aggregate, side_state, _ = layouts.attacked(rule, message_attack).inspect(
        x,
        side_state,
        key=jax.random.fold_in(key, i),
        axis_name=axes,
        is_byzantine=cohort.is_byzantine,
        columns=columns_of(x, size),
        num_coordinates=size,
        worker_weights=cohort.weights,
      )
      return layouts.to_everyone(aggregate, axes)[:size], side_state

    return exchange

  def local_step(state, batch, key, cohort):
    """A round, on all workers, or on this device's workers under shard_map."""
    layout = flat.row_layout(state.params)
    key = jax.random.fold_in(key, state.step)
    data_key, server_key, work_key, codec_key, sender_key = jax.random.split(
      key, 5
    )
    side_key = jax.random.fold_in(server_key, 0)
    first, params = jnp.zeros([], jnp.int32), state.params
    if mesh is not None:
      first = lax.axis_index(axis_name) * num_local
      # Without this, gradients of replicated parameters are silently summed
      # over the devices.
      params = lax.pcast(params, axis_name, to='varying')

    def of_mine(x):
      return lax.dynamic_slice_in_dim(x, first, num_local)

    def my_keys(key):
      return jax.vmap(jax.random.fold_in, (None, 0))(key, of_mine(cohort.ids))

    mine = of_mine(cohort.is_byzantine)
    takes_part = None
    if cohort.weights is not None:
      takes_part = of_mine(cohort.weights > 0)
    if data_attack is not None:
      batch = data_attack(batch, mine, data_key)
    done = work.run(
      params,
      batch,
      state.workers,
      my_keys(work_key),
      context=Context(
        state.step,
        cohort,
        of_mine(cohort.ids),
        mine,
        takes_part,
        state.shared,
        state.sides,
        axes,
      ),
      exchange=exchange_of(state.params, cohort, side_key),
    )
    payload, coders, bits = _wire.encode_rows(
      codec,
      done.messages,
      state.codec,
      my_keys(codec_key),
      size_of(layout.size),
    )
    beside = 32.0 * sum(size for size, _ in work.sides(state.params))
    bits = bits + beside if beside else bits
    workers = done.rows
    num_receivers: int | jax.Array = cohort_size
    if takes_part is not None:
      workers = where_rows(takes_part, workers, state.workers)
      coders = where_rows(takes_part, coders, state.codec)
      bits = jnp.where(takes_part, bits, 0)
      num_receivers = jnp.sum(cohort.weights > 0)

    aggregate, server_state, info = serve(
      payload, state, server_key, layout.size, layout.dtype, cohort
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
    loss = jnp.sum(jnp.where(mine, 0, done.losses))
    num_honest = jnp.maximum(jnp.sum(~cohort.is_byzantine), 1)
    assert info.mask is not None and info.error is not None
    new_state = state._replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      workers=workers,
      attack=server_state.attack,
      aggregator=server_state.aggregator,
      optimizer=optimizer_state,
      codec=coders,
      server_codec=sender,
      shared=done.shared,
      sides=done.sides,
    )
    return new_state, base.RoundInfo(
      loss=reductions.psum(loss, axes) / num_honest,
      aggregation_error=info.error,
      bits_up=reductions.psum(jnp.sum(bits), axes),
      bits_down=(bits_down + beside) * num_receivers,
      num_nonfinite=jnp.sum(~info.mask, dtype=jnp.int32),
      is_byzantine=cohort.is_byzantine,
      masked=~info.mask,
      weights=info.weights,
      kept=info.kept,
      scores=info.scores,
      factors=info.factors,
      num_local_steps=done.num_local_steps,
      num_gradients=done.num_gradients,
      aux=done.aux,
    )

  def step(state, batch, key, cohort):
    if mesh is None:
      return local_step(state, batch, key, cohort)
    specs = state_specs(state)
    rows, everywhere = PartitionSpec(axis_name), PartitionSpec()
    infos: Any = (everywhere,) * len(base.RoundInfo._fields)
    sharded = jax.shard_map(
      local_step,
      mesh=mesh,
      in_specs=(specs, rows, everywhere, everywhere),
      out_specs=(specs, base.RoundInfo(*infos)._replace(aux=rows)),
    )
    return sharded(state, batch, key, cohort)

  return Engine(init, step)


def place(state: base.RoundState, mesh: Any, specs: Any) -> base.RoundState:
  """The state on the devices of a mesh, inside of jit or outside."""
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  leaves = jax.tree.leaves(state.params)
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return lax.with_sharding_constraint(state, shardings)
  return jax.device_put(state, shardings)


def where_rows(mask: jax.Array, new: Any, old: Any) -> Any:
  """The rows of the leaves `[n, ...]` from one tree or the other."""

  def rows(x, y):
    return jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, y)

  return jax.tree.map(rows, new, old)
