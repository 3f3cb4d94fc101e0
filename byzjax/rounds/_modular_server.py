"""What the server of a modular round does: a rule for every module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, flat, layouts
from byzjax.rounds import _stages
from byzjax.rounds._modular_work import NAME, Group, Parts, layouts_of


class Sent(NamedTuple):
  """What came of the messages of one level, by module: leaves `[K, ...]`."""

  aggregates: jax.Array  # float[K, D], or the coordinates of a device
  states: layouts.WorkerShardedState
  errors: jax.Array  # float[K], distances to the means of the honest
  counts: jax.Array  # int32[K], of paths that sent
  masked: jax.Array  # bool[P], whose messages were not finite


def aggregate(
  inspect: Callable[..., Any],
  groups: list[Group],
  where: str,
  messages: jax.Array,
  states: layouts.WorkerShardedState,
  key: jax.Array,
  is_byzantine: jax.Array,
  weights: jax.Array | None,
) -> Sent:
  """The rule for each module of a level, on the paths that go through it.

  `inspect` is the rule of one module, behind its attack, and `messages` are
  float[P, D], or of them the coordinates of a device. A module keeps its state
  where none of its paths is there.
  """
  num_paths = messages.shape[0]
  num_modules = sum(g.modules.size for g in groups)
  keys = jax.random.split(key, num_modules)
  sent = Sent(
    jnp.zeros((num_modules, messages.shape[1]), messages.dtype),
    states,
    jnp.zeros(num_modules, messages.dtype),
    jnp.zeros(num_modules, jnp.int32),
    jnp.zeros(num_paths, bool),
  )
  for group in groups:
    chosen = group.modules
    old = jax.tree.map(lambda x, c=chosen: x[c], states)
    mine = None if weights is None else weights[group.senders]
    try:
      aggregates, new, info = jax.vmap(inspect)(
        messages[group.senders], old, keys[chosen], is_byzantine[group.senders],
        mine,
      )  # fmt: skip
    except ValueError as error:
      raise ValueError(
        f'{where}, a module of {group.senders.shape[1]} paths: {error}'
      ) from error
    counts = jnp.full(chosen.size, group.senders.shape[1])
    if mine is not None:
      counts = jnp.sum(mine > 0, axis=1)
      new = _stages.where_rows(counts > 0, new, old)
    sent = Sent(
      sent.aggregates.at[chosen].set(aggregates),
      jax.tree.map(lambda x, y, c=chosen: x.at[c].set(y), sent.states, new),
      sent.errors.at[chosen].set(jnp.where(counts > 0, info.error, 0)),
      sent.counts.at[chosen].set(counts),
      sent.masked.at[group.senders].max(~info.mask),
    )
  return sent


def module_step(
  optimizer: optax.GradientTransformationExtraArgs,
  rescale_norm: bool,
  sent: Sent,
  layout: flat.RowLayout,
  state: optax.OptState,
  modules: base.Params,
) -> tuple[base.Params, optax.OptState]:
  """The modules of a level and their optimizers, after a step of each.

  A module to which nobody has sent stays as it is, and so does its state.
  """
  aggregates = sent.aggregates
  if rescale_norm:
    root = jnp.sqrt(sent.counts.astype(aggregates.dtype))
    aggregates = aggregates * root[:, None]
  updates, new_state = jax.vmap(optimizer.update)(
    layout.unravel_rows(aggregates), state, modules
  )
  new = optax.apply_updates(modules, updates)
  return _stages.where_rows(sent.counts > 0, (new, new_state), (modules, state))


def of_module(
  parts: Parts, server: base.Aggregator, size: int
) -> Callable[..., Any]:
  """The rule of a module of `size` coordinates, which may be padded."""

  def inspect(messages, state, key, is_byzantine, weights):
    columns = _stages.true_columns(parts, messages, size)
    if columns is not None:
      messages = jnp.where(columns, messages, 0)
    return server.inspect(
      messages,
      state,
      key=key,
      axis_name=parts.axes,
      is_byzantine=is_byzantine,
      columns=columns,
      num_coordinates=size,
      worker_weights=weights,
    )

  return inspect


def aggregate_levels(
  parts: Parts,
  messages: tuple[jax.Array, ...],
  state: base.RoundState,
  key: jax.Array,
  is_byzantine: jax.Array,
  weights: jax.Array | None,
) -> list[Sent]:
  """The rules of all modules on the messages float[P, D_l] to each level."""
  return [
    aggregate(
      of_module(parts, server, layout.size),
      parts.groups[level],
      f'{NAME}: level {level}',
      messages[level],
      layouts.WorkerShardedState(state.aggregator[level], state.attack[level]),
      jax.random.fold_in(key, level),
      is_byzantine,
      weights,
    )
    for level, (server, layout) in enumerate(
      zip(parts.servers, layouts_of(state.params))
    )
  ]


def server_step(
  parts: Parts, state: base.RoundState, sent: list[Sent]
) -> tuple[base.RoundState, jax.Array]:
  """The state after the step of every module, and whose messages were masked.

  Workers are as they were.
  """
  moved = [
    module_step(parts.optimizer, parts.rescale_norm, *level)
    for level in zip(
      sent, layouts_of(state.params), state.optimizer, state.params
    )
  ]
  new_state = state._replace(
    step=state.step + 1,
    params=tuple(modules for modules, _ in moved),
    attack=tuple(level.states.attack for level in sent),
    aggregator=tuple(level.states.aggregator for level in sent),
    optimizer=tuple(optimizer_state for _, optimizer_state in moved),
  )
  masked = jnp.any(jnp.stack([level.masked for level in sent]), axis=0)
  return new_state, masked
