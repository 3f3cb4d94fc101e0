"""Decentralised training: nodes take local steps and mix with neighbours."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax import gossip
from byzjax._src import base, checks, local, round_arguments
from byzjax.gossip import _neighbors, _sending
from byzjax.rounds import (
  _gossip_arguments,
  _gossip_step,
  _gossip_work,
  _local_steps,
)
from byzjax.rounds._gossip_work import NumberSchedule
from byzjax.rounds._local_round import NumLocalSteps
from byzjax.rounds._sharded_step import sharded_step
from byzjax.rounds._worker_gradients import (
  LossFn,
  ValueAndGrad,
  check_worker_map,
)
from byzjax.topology import Topology

_NAME = 'gossip_round'


def gossip_round(
  loss_fn: LossFn,
  *,
  topology: Topology,
  optimizer: optax.GradientTransformation,
  num_workers: int | None = None,
  num_local_steps: NumLocalSteps | None = None,
  local_state: Literal['keep', 'reset'] = 'keep',
  sampler: local.LocalSampler | None = None,
  rule: gossip.GossipRule | gossip.AggregateRule = gossip.plain(),
  order: str = 'adapt_then_combine',
  consensus: base.Scalar | NumberSchedule = 1.0,
  noise: base.Scalar | NumberSchedule | None = None,
  attack: _sending.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  codec: base.Codec | None = None,
  value_and_grad: ValueAndGrad | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  """Decentralised training by gossip, with Byzantine nodes (D-PSGD, CHOCO-SGD).

  Every node i has its own model `x_i` and computes a step from its own
  gradient, `u_i = optimizer(grad loss(x_i, batch_i))`. With order
  'adapt_then_combine' (robust gossip) it takes the step and then mixes:

  `h_i = x_i + u_i`, `x_i <- h_i + beta (G_i(h) - h_i)`,

  where G is the gossip rule: `G_i(h) = sum_j W_ij h_j` for the plain one. With
  'combine_while_adapt' (D-SGD) it mixes the models from before the step:

  `x_i <- x_i + beta (G_i(x) - x_i) + u_i`.

  With `num_local_steps` a node takes H steps of its optimizer between two
  mixings, and `u_i` is the sum of these steps: federated averaging without a
  server.

  With a codec, nodes do not send their vectors but updates of a *public copy*
  `y_i`, which all neighbours store (CHOCO-SGD): a node encodes the difference
  to its copy, once for all of its neighbours,

  `y_i <- y_i + codec(h_i - y_i)`, `x_i <- h_i + beta (G_i(y) - y_i)`

  (with x instead of h in the other order). What the codec loses stays in the
  difference and is sent later. So a biased codec, such as `top_k_codec`, must
  not have error feedback, which would send the loss twice; use a smaller beta
  instead.

  Byzantine nodes send what the attack computes from the vectors of all nodes.
  Their own models take the plain mean with their honest neighbours, because an
  attack may depend on them. Robustness depends on the share of honest
  neighbours of every honest node, not on the share of Byzantine nodes in the
  network.

  The mixing is one n x n matrix of weights, computed from inner products and
  applied once. On a mesh, nodes are split over devices, and each device
  exchanges the boundary rows of its block with the neighbouring devices: for a
  ring, two models per device and round for any n.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, differentiable in params; or an
      `Objective`.
    topology: a `Topology` of n nodes; on a mesh a ring or a torus, whose rows
      are split over the devices.
    optimizer: optax transform that every node applies to its own gradient, such
      as `optax.chain(worker_momentum(0.9), optax.sgd(0.1))`. It gets the model
      as one flat vector, like `worker` of `robust_round`, and its own node's
      model as params. If a gradient may ever be NaN, start with
      `optax.zero_nans()`: otherwise the node stays NaN and is ignored from then
      on.
    num_workers: n, only checked against the topology; None to skip the check.
    num_local_steps: H, as for `local_round`: an int, int[R], or a schedule that
      returns int32[] or int32[n]. Batch leaves are then `[n, S, ...]`, local
      step k takes slice `k mod S`, and the optimizer gets the same extra
      arguments as in `local_round`, on flat vectors. None: one step, on batch
      leaves `[n, ...]`.
    local_state: 'keep': each node keeps its optimizer state between rounds;
      'reset': the state is initialised in every round.
    sampler: source of the batch of a step, such as `data.local_sampler(...)`;
      the round is then given each node's data, and H defaults to 1.
    rule: a rule of `byzjax.gossip`.
    order: 'adapt_then_combine' or 'combine_while_adapt'.
    consensus: beta >= 0, the step size towards the mixed model, or a schedule
      of it, `step -> float[]`.
    noise: standard deviation of Gaussian noise that every node adds to its step
      independently, or a schedule of it; None for no noise.
    attack: an `Attack`, whose message is sent to all neighbours,
      `gossip.dissensus`, `gossip.alone(attack)` (the only kind of message
      attack on a mesh), a data attack such as `label_flip(10)`, or None.
      Messages are models here, not gradients.
    byzantine: the Byzantine nodes: an int f < n (the first f nodes), a mask
      bool[n], or a schedule `step -> bool[n]`. Required with an attack; None
      for no Byzantine nodes.
    codec: compression of the updates of public copies, or None to send float32
      vectors without copies. It must be a contraction, `|x - C(x)| < |x|`, as
      `top_k_codec` and `scaled_sign_codec` are; `sign_codec`, whose output has
      a fixed norm, is not. A Byzantine message is such an update too: the copy
      that the codec can reach closest to the message of the attack.
      `gossip.dissensus`, which sends each neighbour something else, is not
      bound by the codec. Copies start at the parameters given to `init` (at
      zero in the paper).
    value_and_grad: `(params_i, batch_i, key_i) -> (loss, gradient)`, or a
      `GradientEstimator`; `loss_fn` is then not used. None for
      `jax.value_and_grad(loss_fn)`.
    needs_key: whether `loss_fn(params_i, batch_i, key_i)` takes a key; every
      node gets a new one in every round; see `robust_round`.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`.
      `RoundInfo.aux` has it for every node at its own model, leaves `[n, ...]`,
      or its mean over local steps, in float; see `robust_round`.
    worker_map: 'vmap', 'map' or an int; see `robust_round`.
    mesh: devices to split nodes over, or None for one device.
    axis_name: the axis, or axes, of the mesh that nodes are split over.

  Returns:
    A `Round`. `init(params, key=None)` gives the same model to all nodes: the
    leaves of `state.params` are `[n, *shape]` (use `_replace` for other
    starts). Those of `state.workers`, the states of the optimizer (with local
    steps, and of the sampler), are `[n, ...]`; with a codec `state.codec.rows`
    float[n, d] are the public copies. `step(state, batch, key)` takes batches
    with leaves `[n, ...]`. In its `RoundInfo`, the loss is the mean over honest
    nodes, each at its own model before the step (or over its local steps).
    `aggregation_error` is the consensus distance after the step, `sqrt(mean_i
    |x_i - mean_j x_j|^2)` over honest nodes. `bits_up` counts 32 d, or the bits
    of the encoded message, for every edge and direction; `bits_down` is zero.
    `masked` marks nodes whose message was not finite, or too large to compute
    distances. On a mesh, devices exchange the copies themselves; the bits are
    those of nodes on separate machines.

  Raises:
    ValueError: if an argument is out of range; at trace time, if the batch does
      not have n rows.

  References:
    Swenson, Murray, Poor, Kar, 2022, arXiv:2003.02818; He, Karimireddy, Jaggi,
    2022, arXiv:2202.01545. Public copies: Koloskova, Stich, Jaggi, 2019,
    arXiv:1902.00340.

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
  _gossip_arguments.check_slots(_NAME, topology, rule, attack)
  _gossip_arguments.check_num_workers(_NAME, topology, num_workers)
  checks.check_choice(_NAME, 'order', order, _gossip_arguments.ORDERS)
  round_arguments.check_transform(_NAME, 'optimizer', optimizer)
  round_arguments.check_attackers(_NAME, attack, byzantine)
  n = topology.num_nodes
  message_attack, data_attack = round_arguments.split_attack(
    attack, _sending.Attack
  )
  _gossip_arguments.check_codec(_NAME, codec)
  checks.check_choice(_NAME, 'local_state', local_state, ('keep', 'reset'))
  mesh, num_shards = round_arguments.check_mesh(_NAME, mesh, axis_name, n)
  if mesh is not None:
    _neighbors.check_grid(_NAME, topology, num_shards)
    _gossip_arguments.check_mesh_attack(_NAME, message_attack)
  estimator = local.as_estimator(
    loss_fn, value_and_grad, name=_NAME, needs_key=needs_key, has_aux=has_aux
  )
  parts = _gossip_work.Parts(
    topology=topology,
    optimizer=optax.with_extra_args_support(optimizer),
    rule=rule,
    adapts_first=order == 'adapt_then_combine',
    consensus_at=_gossip_arguments.number_schedule(
      _NAME, 'consensus', consensus
    ),
    noise_at=None
    if noise is None
    else _gossip_arguments.number_schedule(_NAME, 'noise', noise),
    attack=message_attack,
    data_attack=data_attack,
    byzantine_at=_gossip_arguments.byzantine_schedule(_NAME, n, byzantine),
    codec=codec,
    estimator=estimator,
    local=_local_steps_of(n, num_local_steps, sampler),
    keeps=local_state == 'keep',
    worker_map=check_worker_map(_NAME, worker_map),
    mesh=mesh,
    axis_name=None if mesh is None else axis_name,
    num_local=n // num_shards,
  )
  return round_arguments.make_round(
    _NAME,
    functools.partial(_gossip_step.init, parts),
    functools.partial(step, parts),
  )


def step(
  parts: _gossip_work.Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round of all nodes."""
  n = parts.topology.num_nodes
  round_arguments.check_batch(_NAME, batch, n)
  if parts.local is not None and parts.local.takes_slices:
    round_arguments.check_slices(_NAME, batch, parts.local.longest)
  is_byzantine = round_arguments.byzantine_of(
    _NAME, parts.byzantine_at, state.step, n
  )
  run: Callable = functools.partial(_gossip_step.node_step, parts)
  if parts.mesh is not None:
    run = sharded_step(
      run,
      parts.mesh,
      parts.axis_name,
      _gossip_step.state_specs(parts, state),
      by_worker=('masked', 'aux'),
    )
  return run(state, batch, key, is_byzantine)


def _local_steps_of(
  num_nodes: int, num_local_steps: Any, sampler: Any
) -> _gossip_work.LocalSteps | None:
  """How nodes take their steps; None for one, on the batch as it is."""
  checks.check_kind(
    _NAME, 'sampler', sampler, local.LocalSampler, optional=True
  )
  if num_local_steps is None and sampler is None:
    return None
  steps_at, longest = round_arguments.step_schedule(
    _NAME, num_nodes, 1 if num_local_steps is None else num_local_steps
  )
  return _gossip_work.LocalSteps(
    steps_at,
    longest,
    sampler or _local_steps.take_in_turn(),
    takes_slices=sampler is None,
  )
