"""The modular round: paths through shared modules, each trained on its own."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import (
  base,
  checks,
  flat,
  layouts,
  local,
  parameters,
  round_arguments,
)
from byzjax._src import paths as path_tools
from byzjax.aggregators import mean
from byzjax.rounds import (
  _local_steps,
  _modular_server,
  _stages,
)
from byzjax.rounds._local_round import NumLocalSteps
from byzjax.rounds._worker_gradients import LossFn, over_workers

_NAME = 'modular_round'


class ModularRows(NamedTuple):
  """What the workers of `modular_round` keep: leaves `[P, ...]`."""

  optimizer: base.State
  sampler: base.State


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
  attack: base.Attack | base.DataAttack | None = None,
  byzantine: int | jax.Array | base.ByzantineSchedule | None = None,
  worker_weights: jax.Array | base.WeightSchedule | None = None,
  needs_key: bool = False,
  has_aux: bool = False,
  worker_map: str | int = 'vmap',
) -> base.Round:
  r"""DiPaCo: H local steps of every path, then one rule for every module.

  .. math::
    \theta_i = (w_{1, p_{i1}}, \dots, w_{L, p_{iL}}), \quad
    \theta_i' = H \text{ local steps from } \theta_i, \quad
    \Delta_{le} = \mathrm{Agg}_l \{\theta_{il} - \theta_{il}' : p_{il} = e\},
    \quad w_{le} \leftarrow w_{le} + \mathrm{optimizer}(\Delta_{le})

  A network is cut into L levels with K_l modules each; path i takes module
  `p_il` of each level and is trained by a worker of its own, on documents of
  its own. A module hears of the paths through it alone, and has an optimizer
  state of its own. Whole networks are never put together: all P paths at once
  take P times the memory of one.

  The paper's outer optimizer is `optax.sgd(0.7, 0.9, nesterov=True)`, and its
  local one AdamW. If all levels have a single module this is `local_round`
  (with those optimizers, `diloco`) with P workers.

  A module on one path only is not averaged, but takes the outer step too, as in
  the paper; another implementation leaves that step out. It is not protected
  either: a rule has as many messages as its module has paths. Attackers need
  a minority on every module that is to survive them, and honest paths differ
  by the documents that they are for.

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
    attack: an `Attack` on the messages to each module, by those of its paths
      that lie, with nothing known of other modules; a data attack; or None.
      Attacks made of honest messages, such as `sign_flip`, send zeros to a
      module whose paths all lie.
    byzantine: which paths lie: an int f, the first f; bool[P]; or a schedule
      `step -> bool[P]`. Must be given with an attack; None is nobody.
    worker_weights: float[P], or a schedule of it: what a path counts in its
      modules, normalised there, such as `partition.sizes`. Other
      implementations normalise over all paths, which makes the steps of a
      module K_l times shorter. The server's own numbers, never a worker's.
      Weight 0 is a path that was pre-empted: it sends nothing and its worker
      keeps its state, and a module with no other path stays as it is.
    needs_key: whether `loss_fn(path_params, batch_i, key)` takes a key, one of
      its own for every path and every local step; see `robust_round`.
    has_aux: whether the loss has an auxiliary output, `(loss, aux)`.
      `RoundInfo.aux` is its mean over the local steps, in float, of every path,
      leaves `[P, ...]`; see `robust_round`.
    worker_map: 'vmap', 'map', or an int, how paths are computed; see
      `robust_round`.

  Returns:
    A `Round`, whose parameters are a tuple over levels with leaves `[K_l, ...]`
    (`models.repeat_modules` makes them of one network). `RoundInfo.loss` is the
    mean over local steps and the honest paths that were there,
    `aggregation_error` the distance of all aggregates together to the honest
    means, `masked` says who sent something that is not finite to a module.

  Raises:
    ValueError: if an argument is out of range or in the wrong slot; from
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
    round_arguments.check_slots(_NAME, rule, attack, {})
    for rule in _rules(aggregator, num_levels)
  ]
  round_arguments.check_choice(
    _NAME, 'local_state', local_state, ('keep', 'reset')
  )
  round_arguments.check_transform(_NAME, 'optimizer', optimizer)
  round_arguments.check_transform(_NAME, 'local_optimizer', local_optimizer)
  round_arguments.check_attackers(_NAME, attack, byzantine)
  checks.check_kind(
    _NAME, 'sampler', sampler, local.LocalSampler, optional=True
  )
  checks.check_flag(_NAME, 'rescale_norm', rescale_norm)
  schedule = round_arguments.byzantine_schedule(_NAME, num_paths, byzantine)
  weights_at = round_arguments.weight_schedule(_NAME, num_paths, worker_weights)
  steps_at, longest = round_arguments.step_schedule(
    _NAME, num_paths, num_local_steps
  )
  message_attack = attack if isinstance(attack, base.Attack) else None
  servers = [layouts.attacked(rule, message_attack) for rule in rules]
  groups = [_modular_server.groups_of(column) for column in paths.T]
  tx = optax.with_extra_args_support(local_optimizer)
  outer = optax.with_extra_args_support(optimizer)
  estimator = local.as_estimator(
    loss_fn, name=_NAME, needs_key=needs_key, has_aux=has_aux
  )

  walker = _local_steps.Walker(
    _NAME,
    estimator,
    tx,
    sampler or _local_steps.take_in_turn(),
    None if isinstance(attack, base.Attack) else attack,
  )

  def layouts_of(params):
    """The flat rows of a module of each level."""
    return [
      flat.row_layout(jax.tree.map(lambda x: x[0], modules))
      for modules in params
    ]

  def init(params, key=None):
    del key
    parameters.check_parameters(_NAME, params)
    path_tools.check_modules(_NAME, params, num_modules)
    # A copy: the state may be donated, the caller's parameters may not. And of
    # a fixed dtype: a weak one would not survive the first step.
    params = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)

    def of_path(path):
      mine = path_tools.select_path(params, path)
      keeps = tx.init(mine) if local_state == 'keep' else ()
      return ModularRows(keeps, walker.sampler.init(mine))

    def server_state(server, layout, count):
      zeros = jnp.zeros((count, layout.size), layout.dtype)
      return jax.vmap(server.init)(zeros)

    served = [
      server_state(*level)
      for level in zip(servers, layouts_of(params), num_modules)
    ]
    return base.RoundState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      workers=jax.vmap(of_path)(jnp.asarray(paths)),
      attack=tuple(state.attack for state in served),
      aggregator=tuple(state.aggregator for state in served),
      optimizer=tuple(jax.vmap(outer.init)(modules) for modules in params),
    )

  def one_path(
    params, path, rows, data, is_byzantine, key, own_steps, *, steps, round
  ):
    """The messages of a path, one per level, and what its worker keeps."""
    start = path_tools.select_path(params, path)
    plan = walker.sampler.start(rows.sampler, start, data, key)
    walk = _local_steps.walk(
      walker,
      start,
      rows.optimizer if local_state == 'keep' else tx.init(start),
      plan,
      data,
      is_byzantine,
      key,
      own_steps if steps.ndim else steps,
      lambda gradient: gradient,
      lambda tree: tree,
      round=round,
    )
    messages = tuple(
      layout.ravel(before) - layout.ravel(after)
      for layout, before, after in zip(layouts_of(params), start, walk.params)
    )
    keeps = ModularRows(
      walk.optimizer if local_state == 'keep' else (),
      walker.sampler.finish(rows.sampler, walk.params),
    )
    return walk.loss, messages, keeps, walk.aux

  def outer_step(sent, layout, state, modules):
    """The optimizers of the modules of a level, on their aggregates."""
    aggregates = sent.aggregates
    if rescale_norm:
      root = jnp.sqrt(sent.counts.astype(aggregates.dtype))
      aggregates = aggregates * root[:, None]
    updates, new_state = jax.vmap(outer.update)(
      layout.unravel_rows(aggregates), state, modules
    )
    new = optax.apply_updates(modules, updates)
    return _stages.where_rows(
      sent.counts > 0, (new, new_state), (modules, state)
    )

  def step(state, batch, key):
    round_arguments.check_batch(_NAME, batch, num_paths)
    if sampler is None:
      round_arguments.check_slices(_NAME, batch, longest)
    is_byzantine = round_arguments.byzantine_of(
      _NAME, schedule, state.step, num_paths
    )
    weights = weights_at(state.step)
    present = jnp.ones(num_paths, bool) if weights is None else weights > 0
    # Split as in the other rounds, so that the same key draws the same batches.
    keys = jax.random.split(jax.random.fold_in(key, state.step), 5)
    work_keys = jax.vmap(jax.random.fold_in, (None, 0))(
      keys[2], jnp.arange(num_paths)
    )
    num_steps = steps_at(state.step)
    work = functools.partial(one_path, steps=num_steps, round=state.step)
    losses, messages, rows, aux = over_workers(_NAME, work, worker_map)(
      state.params,
      jnp.asarray(paths),
      state.workers,
      batch,
      is_byzantine,
      work_keys,
      num_steps if num_steps.ndim else (),
    )
    row_layouts = layouts_of(state.params)
    sent = [
      _modular_server.aggregate(
        servers[level],
        groups[level],
        f'{_NAME}: level {level}',
        messages[level],
        layouts.WorkerShardedState(
          state.aggregator[level], state.attack[level]
        ),
        jax.random.fold_in(keys[1], level),
        is_byzantine,
        weights,
      )
      for level in range(num_levels)
    ]
    moved = [
      outer_step(*level)
      for level in zip(sent, row_layouts, state.optimizer, state.params)
    ]
    honest = present & ~is_byzantine
    size = sum(layout.size for layout in row_layouts)
    bits = 32.0 * size * jnp.sum(present)
    masked = jnp.any(jnp.stack([s.masked for s in sent]), axis=0)
    new_state = state._replace(
      step=state.step + 1,
      params=tuple(modules for modules, _ in moved),
      workers=_stages.where_rows(present, rows, state.workers),
      attack=tuple(s.states.attack for s in sent),
      aggregator=tuple(s.states.aggregator for s in sent),
      optimizer=tuple(outer_state for _, outer_state in moved),
    )
    squares = sum(jnp.sum(jnp.square(s.errors)) for s in sent)
    return new_state, base.RoundInfo(
      loss=jnp.sum(jnp.where(honest, losses, 0))
      / jnp.maximum(jnp.sum(honest), 1),
      aggregation_error=jnp.sqrt(squares),
      bits_up=bits,
      bits_down=bits,
      num_nonfinite=jnp.sum(masked, dtype=jnp.int32),
      is_byzantine=is_byzantine,
      masked=masked,
      num_local_steps=num_steps,
      num_gradients=estimator.count_gradients(num_steps),
      aux=aux,
    )

  return base.Round(init, step)


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
