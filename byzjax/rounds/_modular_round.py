"""The modular round: paths through shared modules, each trained on its own."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, checks, layouts, local, round_arguments
from byzjax._src import paths as path_tools
from byzjax.aggregators import mean
from byzjax.rounds import (
  _cohort,
  _local_steps,
  _modular_step,
  _modular_work,
)
from byzjax.rounds._local_round import NumLocalSteps
from byzjax.rounds._worker_gradients import (
  LossFn,
  ValueAndGrad,
  check_worker_map,
)

_NAME = _modular_work.NAME


def modular_round(
  loss_fn: LossFn,
  *,
  paths: np.ndarray,
  local_optimizer: optax.GradientTransformation,
  num_local_steps: NumLocalSteps,
  optimizer: optax.GradientTransformation,
  aggregator: base.Aggregator | Sequence[base.Aggregator] | None = None,
  rescale_norm: bool = False,
  local_state: Literal['keep', 'reset'] = 'keep',
  sampler: local.LocalSampler | None = None,
  participation: int | local.Participation | None = None,
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
  worker_map: str | int = 'vmap',
  mesh: Mesh | AbstractMesh | None = None,
  axis_name: str | tuple[str, ...] = 'workers',
) -> base.Round:
  r"""DiPaCo: H local steps of every path, then one rule for every module.

  .. math::
    \theta_i = (w_{1, p_{i1}}, \dots, w_{L, p_{iL}}), \quad
    \theta_i' = H \text{ local steps from } \theta_i, \quad
    \Delta_{le} = \mathrm{Agg}_l \{\theta_{il} - \theta_{il}' : p_{il} = e\},
    \quad w_{le} \leftarrow w_{le} + \mathrm{optimizer}(\Delta_{le})

  A network is cut into L levels with K_l modules each; path i takes module
  `p_il` of each level and is trained by a worker of its own, on documents of
  its own. A module receives messages only from the paths through it, and has
  its own optimizer state. All P paths together take P times the memory of one.

  The paper's outer optimizer is `optax.sgd(0.7, 0.9, nesterov=True)`, and its
  local one AdamW. If all levels have a single module this is `local_round`
  (with those optimizers, `diloco`) with P workers.

  A rule sees as many messages as its module has paths. A module survives if
  Byzantine paths are a minority there, and honest paths differ, because each
  has other documents. A module on one path only is not averaged and not
  protected; it takes the outer step too, as in the paper, which another
  implementation leaves out.

  Args:
    loss_fn: `(path_params, batch_i) -> scalar`, with path_params a tuple over
      levels of the trees of one module each, or an `Objective`;
      `models.join_levels` makes a transformer's parameters of them.
    paths: p, integers[P, L], known before tracing, such as
      `models.grid_paths((2, 2))`. Every module of a level, numbered from 0,
      must be on a path; several workers may have the same path.
    local_optimizer: optax transform of the local steps of a path, as for
      `local_round`.
    num_local_steps: H, as for `local_round`; an int, int[R], or a schedule that
      gives int32[] or int32[P].
    optimizer: optax transform that each module runs on its aggregate.
    aggregator: the rule, one for all levels or a sequence of one per level;
      None for `mean()`. It sees the P_le messages of a module's paths.
    rescale_norm: whether to multiply `Delta_le` by the root of the number of
      paths that were averaged in it: averages of more are shorter.
    local_state: 'keep', each path's worker keeps the state of its local
      optimizer from round to round; or 'reset'.
    sampler: where the batches come from, such as `data.sequence_sampler(...)`;
      what the round is given is then a `Partition` of P shards. None: the batch
      leaves are `[P, S, ...]` and local step k takes slice `k mod S`.
    participation: m, the number of paths drawn in every round, uniformly
      without replacement, or a `Participation`, whose scores are of the path
      that each worker has. Only these compute; for a module the others are
      paths of weight 0, so its rule has to take weights. None for all.
    worker: optax transform that every path runs on what it sends, before it is
      cut into the messages to its modules: on one vector, as in `local_round`,
      with a state for every path.
    attack: an `Attack` on the messages to each module, by its Byzantine paths,
      with nothing known of other modules; a data attack; or None. Attacks made
      of honest messages, such as `sign_flip`, send zeros to a module without
      honest paths.
    byzantine: which paths are Byzantine: an int f, the first f; bool[P]; or a
      schedule `step -> bool[P]`. Must be given with an attack; None is nobody.
    byzantine_chain: whether attackers run the `worker` chain too.
    worker_weights: float[P], or a schedule of it: the weight of a path in its
      modules, normalised there, such as `partition.sizes`. Other
      implementations normalise over all paths, which makes the steps of a
      module K_l times shorter. The server chooses them, never a worker. Weight
      0 is a path that was pre-empted: it sends nothing, its worker keeps its
      state, and a module with no other path does not change.
    codec: how a path sends its messages, one to each of its modules, and each
      encoded by itself, with a state of its own; or None for float32. The
      message is what the path has moved the module by.
    server_codec: how the aggregate of a module is sent to the paths through it,
      with a state for every module; or None for float32.
    value_and_grad: `(path_params, batch_i, key) -> (loss, gradient)`, or a
      `GradientEstimator`, of a local step; `loss_fn` is then not used.
    needs_key: whether `loss_fn(path_params, batch_i, key)` takes a key, one of
      its own for every path and every local step; see `robust_round`.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`.
      `RoundInfo.aux` is its mean over the local steps, in float, of every path,
      leaves `[P, ...]`, with `participation` of the m that were drawn; see
      `robust_round`.
    worker_map: 'vmap', 'map', or an int, how paths are computed; see
      `robust_round`.
    mesh: devices to split paths over, P / p to each of p, or None for one
      device. Every device has all modules; what paths keep is split by path,
      and what rules keep of a module by coordinate.
    axis_name: the axis, or axes, of the mesh that paths are split over.

  Returns:
    A `Round`, whose parameters are a tuple over levels with leaves `[K_l, ...]`
    (`models.repeat_modules` makes them of one network). `RoundInfo.loss` is the
    mean over local steps and the honest paths that were there,
    `aggregation_error` the distance of all aggregates together to the honest
    means, `masked` says who sent something that is not finite to a module;
    where paths are drawn `participants` are the m, and all that is by path is
    of these. On the way down a path is sent the aggregates of its own modules.

  Raises:
    ValueError: if an argument is out of range or in the wrong slot, or if the
      paths (or those drawn in a round) do not divide over the devices; from
      `init`, if the parameters are not such levels; at trace time, naming the
      level, if a rule refuses the number of its messages.

  References:
    Douillard, Feng, Rusu, Kuncoro, Donchev, Chhaparia, Gog, Ranzato, Shen,
    Szlam, 2024, arXiv:2403.10616.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> from byzjax import models
    >>> def loss_fn(path, x):  # a shared part and one of two own parts
    ...   shared, own = path
    ...   return jnp.mean((shared + own - x) ** 2)
    >>> training = byzjax.modular_round(
    ...   loss_fn, paths=models.grid_paths((1, 2)), num_local_steps=4,
    ...   local_optimizer=optax.sgd(0.1), optimizer=optax.sgd(1.0))
    >>> state = training.init((jnp.zeros(1), jnp.zeros(2)))
    >>> step = jax.jit(training.step)
    >>> x = jnp.array([1., 3.]).reshape(2, 1, 1) * jnp.ones([2, 4, 8])
    >>> for _ in range(30):
    ...   state, info = step(state, x, jax.random.key(0))
    >>> shared, own = state.params
    >>> print(jnp.abs(shared + own - jnp.array([1., 3.])).max() < 1e-3)
    True
  """
  paths, num_modules = path_tools.check_paths(_NAME, paths)
  num_paths, num_levels = paths.shape
  rules = [
    round_arguments.check_slots(
      _NAME, rule, attack, {'codec': codec, 'server_codec': server_codec}
    )
    for rule in _rules(aggregator, num_levels)
  ]
  checks.check_choice(_NAME, 'local_state', local_state, ('keep', 'reset'))
  round_arguments.check_transform(_NAME, 'optimizer', optimizer)
  round_arguments.check_transform(_NAME, 'local_optimizer', local_optimizer)
  round_arguments.check_transforms(_NAME, {'worker': worker})
  round_arguments.check_attackers(_NAME, attack, byzantine)
  checks.check_kind(
    _NAME, 'sampler', sampler, local.LocalSampler, optional=True
  )
  checks.check_flag(_NAME, 'rescale_norm', rescale_norm)
  checks.check_flag(_NAME, 'byzantine_chain', byzantine_chain)
  steps_at, longest = round_arguments.step_schedule(
    _NAME, num_paths, num_local_steps
  )
  message_attack, data_attack = round_arguments.split_attack(attack)
  drawn = _cohort.participation_of(_NAME, num_paths, participation)
  round_arguments.check_mesh(
    _NAME, mesh, axis_name, num_paths, 'the number of paths'
  )
  mesh, num_shards = round_arguments.check_mesh(
    _NAME,
    mesh,
    axis_name,
    drawn.num_participants if drawn else num_paths,
    'participation',
  )
  parts = _modular_work.Parts(
    paths=paths,
    num_modules=num_modules,
    training=_local_steps.LocalTraining(
      _NAME,
      local.as_estimator(
        loss_fn,
        value_and_grad,
        name=_NAME,
        needs_key=needs_key,
        has_aux=has_aux,
      ),
      optax.with_extra_args_support(local_optimizer),
      sampler or _local_steps.take_in_turn(),
      data_attack,
    ),
    keeps=local_state == 'keep',
    steps_at=steps_at,
    takes_slices=sampler is None,
    longest=longest,
    servers=[layouts.attacked(rule, message_attack, codec) for rule in rules],
    groups=[_modular_work.groups_of(column) for column in paths.T],
    optimizer=optax.with_extra_args_support(optimizer),
    rescale_norm=rescale_norm,
    byzantine_at=round_arguments.byzantine_schedule(
      _NAME, num_paths, byzantine
    ),
    weights_at=round_arguments.weight_schedule(
      _NAME, num_paths, worker_weights
    ),
    participation=drawn,
    codec=codec,
    server_codec=server_codec,
    chain=None if worker is None else optax.with_extra_args_support(worker),
    byzantine_chain=byzantine_chain,
    worker_map=check_worker_map(_NAME, worker_map),
    mesh=mesh,
    num_shards=num_shards,
    axis_name=axis_name,
  )
  return round_arguments.make_round(
    _NAME,
    functools.partial(_modular_work.init, parts),
    functools.partial(_modular_step.step, parts),
  )


def _rules(
  aggregator: base.Aggregator | Sequence[base.Aggregator] | None,
  num_levels: int,
) -> list[Any]:
  """One rule for each level."""
  if aggregator is None or isinstance(aggregator, base.Aggregator):
    return [mean() if aggregator is None else aggregator] * num_levels
  if not isinstance(aggregator, list | tuple) or len(aggregator) != num_levels:
    raise ValueError(
      f'{_NAME} needs aggregator to be an Aggregator, or a sequence of one for'
      f' each of the {num_levels} levels, got {aggregator!r}'
    )
  return list(aggregator)
