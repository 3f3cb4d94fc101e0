"""Training without a server: nodes step, and mix with their neighbours."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from byzjax import gossip
from byzjax._src import (
  base,
  draws,
  flat,
  local,
  parameters,
  reductions,
  round_arguments,
)
from byzjax.gossip import _dense, _neighbors, _sending
from byzjax.rounds import _engine, _gossip_arguments
from byzjax.rounds._worker_gradients import LossFn, ValueAndGrad, over_workers
from byzjax.topology import Topology

NumberSchedule = Callable[[jax.Array], jax.Array]  # step -> float[]


def gossip_round(
  loss_fn: LossFn,
  *,
  topology: Topology,
  optimizer: optax.GradientTransformation,
  num_workers: int | None = None,
  rule: gossip.GossipRule | gossip.AggregateRule = gossip.plain(),
  order: str = 'adapt_then_combine',
  consensus: base.Scalar | NumberSchedule = 1.0,
  noise: base.Scalar | NumberSchedule | None = None,
  attack: _sending.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """A round of decentralised training, in which some nodes may lie.

  Every node i has a model `x_i` of its own and steps along its own gradient,
  `u_i = optimizer(grad loss(x_i, batch_i))`. With order 'adapt_then_combine'
  (robust gossip) it mixes what it has then:

  `h_i = x_i + u_i`, `x_i <- h_i + beta (G_i(h) - h_i)`,

  G the rule of gossip: `G_i(h) = sum_j W_ij h_j` for the plain one. With
  'combine_while_adapt' (D-SGD) it mixes the models from before the step:

  `x_i <- x_i + beta (G_i(x) - x_i) + u_i`.

  Byzantine nodes send what the attack makes of the vectors of all nodes, and
  take the plain mean with their honest neighbours themselves, for an attack may
  start from where they are. What counts is the share of honest neighbours at
  every honest node; how many of all nodes lie does not matter.

  The whole step is one n x n matrix of weights, found from inner products and
  applied once. On a mesh nodes are split over devices, and a device exchanges
  the outer rows of its block with the devices next to it: for a ring two models
  per device and round, however large n is.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, differentiable in params; or an
      `Objective`.
    topology: of n nodes; on a mesh a ring or a torus, whose rows the devices
      share.
    optimizer: optax transform that every node runs on its own gradient, such as
      `optax.chain(worker_momentum(0.9), optax.sgd(0.1))`. It sees the model as
      one flat vector, as the `worker` of `robust_round` does, and the model of
      its own node as params. Begin with `optax.zero_nans()` if a gradient may
      be NaN once: the node would stay NaN, and be ignored, for ever.
    num_workers: n, to be checked against the topology; None for whatever that
      has.
    rule: of `byzjax.gossip`.
    order: 'adapt_then_combine' or 'combine_while_adapt'.
    consensus: beta >= 0, how much of the way nodes go, or a schedule of it,
      `step -> float[]`.
    noise: standard deviation of a Gaussian vector that every node adds to its
      step, each its own, or a schedule of it; None for no noise.
    attack: an `Attack`, whose message all neighbours hear, `gossip.dissensus`,
      `gossip.alone(attack)` (on a mesh the only one), a data attack such as
      `label_flip(10)`, or None. Messages are models here, not gradients.
    byzantine: who attacks: an int f < n (the first f nodes), a mask bool[n], or
      a schedule `step -> bool[n]`. Must be given with an attack; None is
      nobody.
    value_and_grad: `(params_i, batch_i, key_i) -> (loss, gradient)`, or a
      `GradientEstimator`; `loss_fn` is then not used. None for
      `jax.value_and_grad(loss_fn)`.
    needs_key: whether `loss_fn(params_i, batch_i, key_i)` takes a key, one of
      its own for every node and every round; see `robust_round`.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`.
      `RoundInfo.aux` has it of every node at its own model, leaves `[n, ...]`;
      see `robust_round`.
    worker_map: 'vmap', 'map' or an int; see `robust_round`.
    mesh: devices to split nodes over, or None for one device.
    axis_name: the axis, or axes, of the mesh that nodes are split over.

  Returns:
    A `Round`. `init(params, key=None)` takes one model and gives it to all
    nodes: the leaves of `state.params` are `[n, *shape]` (set them with
    `_replace` to start elsewhere), and those of `state.workers`, the states of
    the optimizer, `[n, ...]`. `step(state, batch, key)` takes batches with
    leaves `[n, ...]`. In its `RoundInfo` the loss is the mean over honest
    nodes, each at its own model before the step, `aggregation_error` is the
    consensus distance after it, `sqrt(mean_i |x_i - mean_j x_j|^2)` over honest
    nodes, `bits_up` are 32 d for every edge and direction, and `bits_down` is
    zero; masked are nodes that sent what is not finite, or too large to have
    distances.

  Raises:
    ValueError: if an argument is out of range, or (at trace time) the batch has
      not n rows.

  References:
    Swenson, Murray, Poor, Kar, 2022, arXiv:2003.02818; He, Karimireddy, Jaggi,
    2022, arXiv:2202.01545.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> from byzjax import gossip, topology
    >>> def loss_fn(params, batch):
    ...   return jnp.mean((params - batch) ** 2)
    >>> training = byzjax.gossip_round(
    ...   loss_fn, topology=topology.complete(5), optimizer=optax.sgd(0.1),
    ...   rule=gossip.nearest_neighbor_averaging(num_byzantine=1),
    ...   attack=byzjax.sign_flip(scale=10.0), byzantine=1)
    >>> state = training.init(jnp.zeros(3))
    >>> step = jax.jit(training.step)
    >>> for _ in range(100):
    ...   state, info = step(state, jnp.ones([5, 3]), jax.random.key(0))
    >>> state.params.shape, bool(info.loss < 0.01)
    ((5, 3), True)
  """
  name = 'gossip_round'
  _gossip_arguments.check_slots(name, topology, rule, attack)
  round_arguments.check_choice(name, 'order', order, _gossip_arguments.ORDERS)
  n = topology.num_nodes
  if num_workers is not None and num_workers != n:
    raise ValueError(
      f'{name} needs num_workers to be the {n} nodes of the topology, got'
      f' {num_workers}'
    )
  round_arguments.check_transform(name, 'optimizer', optimizer)
  round_arguments.check_attackers(name, attack, byzantine)
  round_arguments.check_layout(name, mesh, axis_name)
  schedule = _gossip_arguments.byzantine_schedule(name, n, byzantine)
  beta_at = _gossip_arguments.number_schedule(name, 'consensus', consensus)
  noise_at = None
  if noise is not None:
    noise_at = _gossip_arguments.number_schedule(name, 'noise', noise)
  optimizer = optax.with_extra_args_support(optimizer)
  message_attack = attack if isinstance(attack, base.Attack) else None
  liar = attack if isinstance(attack, _sending.Attack) else None
  data_attack = None if isinstance(attack, _sending.Attack) else attack
  axes, num_shards = None, 1
  if mesh is not None:
    axes = axis_name
    mesh, num_shards = round_arguments.check_mesh(name, mesh, axis_name, n)
    _neighbors.check_grid(name, topology, num_shards)
    _gossip_arguments.check_mesh_attack(name, attack)
  num_local = n // num_shards
  estimator = local.as_estimator(
    loss_fn,
    value_and_grad,
    name=name,
    needs_key=needs_key,
    has_aux=has_aux,
  )
  over_nodes = over_workers(name, _own_gradient(estimator), worker_map)

  def init(params, key=None):
    del key
    parameters.check_parameters(name, params)
    layout = flat.row_layout(params)
    row = layout.ravel(params)

    def of_all(tree):
      # Copies with a dtype of their own: the state may be donated, and weak
      # types would not survive the first step.
      return jax.tree.map(
        lambda p: jnp.tile(
          jnp.asarray(p, jnp.result_type(p))[None], (n,) + (1,) * jnp.ndim(p)
        ),
        tree,
      )

    state = base.RoundState(
      step=jnp.zeros([], jnp.int32),
      params=of_all(params),
      workers=of_all(optimizer.init(row)),
      attack=_sending.init(attack, row),
      aggregator=(),
      optimizer=(),
    )
    if mesh is None:
      return state
    return _engine.place(state, mesh, state_specs(state))

  def state_specs(state):
    rows, everywhere = PartitionSpec(axis_name), PartitionSpec()
    specs = jax.tree.map(lambda _: everywhere, state)
    return specs._replace(
      params=jax.tree.map(lambda _: rows, state.params),
      workers=jax.tree.map(lambda _: rows, state.workers),
    )

  def gossiped(x, state, liars, ids, key):
    """Where nodes go from x, whose message is usable, the attack's state."""
    attack_key, rule_key = jax.random.split(key)
    sent, attack_state = _sending.Sent(x, x), state.attack
    if liar is not None:
      sent, attack_state = _sending.send(
        liar, x, state.attack, liars=liars, ids=ids, key=attack_key
      )
    if axes is None:
      found = _dense.displacement(rule, topology, sent, rule_key)
    else:
      found = _neighbors.displacement(rule, topology, sent, rule_key, axes)
    return *found, attack_state

  def local_step(state, batch, key, is_byzantine):
    """A step of all nodes, or of this device's under shard_map."""
    layout = flat.row_layout(jax.tree.map(lambda p: p[0], state.params))
    key = jax.random.fold_in(key, state.step)
    data_key, work_key, noise_key, gossip_key = jax.random.split(key, 4)
    first = jnp.zeros([], jnp.int32)
    if axes is not None:
      first = lax.axis_index(axis_name) * num_local
    ids = first + jnp.arange(num_local)
    mine = is_byzantine[ids]

    def my_keys(key):
      return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    if data_attack is not None:
      batch = data_attack(batch, mine, data_key)
    # No gradient is summed over devices: every device has models of its own.
    found = over_nodes(state.step, state.params, batch, my_keys(work_key))
    x = layout.ravel_rows(state.params)
    updates, workers = jax.vmap(optimizer.update)(
      layout.ravel_rows(found.gradient), state.workers, x
    )
    if noise_at is not None:
      std = jnp.asarray(noise_at(state.step)).astype(x.dtype)
      drawn = jax.vmap(lambda k, row: draws.draw(jax.random.normal, k, row))(
        my_keys(noise_key), x
      )
      updates = updates + std * drawn
    beta = jnp.asarray(beta_at(state.step)).astype(x.dtype)
    start = x + updates if order == 'adapt_then_combine' else x
    moved, usable, attack_state = gossiped(
      start, state, is_byzantine, ids, gossip_key
    )
    # The step is added last: models that agree stay those of plain SGD.
    x = start + beta * moved
    if order == 'combine_while_adapt':
      x = x + updates

    counted = ~mine & reductions.finite_rows(x)
    total = jnp.maximum(reductions.psum(counted.sum(), axes), 1)
    share = (counted / total).astype(x.dtype)
    mean = reductions.psum(reductions.weighted_sum(share, x), axes)
    squared = reductions.squared_norms(x, center=mean)
    spread = jnp.where(counted, share * squared, 0).sum()
    if message_attack is not None and message_attack.observe is not None:
      attack_state = message_attack.observe(attack_state, mean)
    honest = jnp.maximum((~is_byzantine).sum(), 1)
    loss = jnp.sum(jnp.where(mine, 0, found.loss))
    info = base.RoundInfo(
      loss=reductions.psum(loss, axes) / honest,
      aggregation_error=reductions.sqrt(reductions.psum(spread, axes)),
      bits_up=jnp.asarray(32.0 * layout.size * topology.degrees.sum()),
      bits_down=jnp.zeros([]),
      num_nonfinite=reductions.psum(jnp.sum(~usable, dtype=jnp.int32), axes),
      is_byzantine=is_byzantine,
      masked=~usable,
      aux=found.aux,
    )
    state = state._replace(
      step=state.step + 1,
      params=layout.unravel_rows(x),
      workers=workers,
      attack=attack_state,
    )
    return state, info

  def step(state, batch, key):
    round_arguments.check_batch(name, batch, n)
    is_byzantine = round_arguments.byzantine_of(name, schedule, state.step, n)
    if mesh is None:
      state, info = local_step(state, batch, key, is_byzantine)
      return state, info._replace(num_gradients=estimator.count_gradients(1))
    specs = state_specs(state)
    rows, everywhere = PartitionSpec(axis_name), PartitionSpec()
    # Of nodes this device holds; the rest of the info is the same on all.
    infos: Any = (everywhere,) * 6 + (rows,)
    infos = base.RoundInfo(*infos)._replace(aux=rows)
    sharded = jax.shard_map(
      local_step,
      mesh=mesh,
      in_specs=(specs, rows, everywhere, everywhere),
      out_specs=(specs, infos),
    )
    state, info = sharded(state, batch, key, is_byzantine)
    return state, info._replace(num_gradients=estimator.count_gradients(1))

  return base.Round(init, step)


def _own_gradient(estimator):
  """`(round, params_i, batch_i, key_i) -> Estimate` at one node."""

  def of_node(round, params, batch, key):
    return local.estimate_once(estimator, params, batch, key, round)

  return of_node
