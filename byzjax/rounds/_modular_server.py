"""What the server of a modular round does: a rule for every module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, layouts
from byzjax.rounds import _stages


class Group(NamedTuple):
  """The modules of a level that are on equally many paths."""

  modules: np.ndarray  # int32[G]
  senders: np.ndarray  # int32[G, n], the paths of each


class Sent(NamedTuple):
  """What came of the messages of one level, by module: leaves `[K, ...]`."""

  aggregates: jax.Array  # float[K, D]
  states: layouts.WorkerShardedState
  errors: jax.Array  # float[K], distances to the means of the honest
  counts: jax.Array  # int32[K], of paths that sent
  masked: jax.Array  # bool[P], whose messages were not finite


def groups_of(modules: np.ndarray) -> list[Group]:
  """The groups of one level, from the module of each path, int[P]."""
  by_count: dict[int, list[tuple[int, np.ndarray]]] = {}
  for module in range(modules.max() + 1):
    senders = np.flatnonzero(modules == module)
    by_count.setdefault(senders.size, []).append((module, senders))
  return [
    Group(
      np.array([m for m, _ in found], np.int32),
      np.stack([s for _, s in found]).astype(np.int32),
    )
    for _, found in sorted(by_count.items())
  ]


def aggregate(
  server: base.Aggregator,
  groups: list[Group],
  where: str,
  messages: jax.Array,
  states: layouts.WorkerShardedState,
  key: jax.Array,
  is_byzantine: jax.Array,
  weights: jax.Array | None,
) -> Sent:
  """The rule for each module of a level, on the paths that go through it.

  `server` is the rule behind its attack, `messages` are float[P, D], and a
  module keeps its state where none of its paths is there.
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
      found, new, info = jax.vmap(_of_module(server))(
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
      sent.aggregates.at[chosen].set(found),
      jax.tree.map(lambda x, y, c=chosen: x.at[c].set(y), sent.states, new),
      sent.errors.at[chosen].set(jnp.where(counts > 0, info.error, 0)),
      sent.counts.at[chosen].set(counts),
      sent.masked.at[group.senders].max(~info.mask),
    )
  return sent


def _of_module(server: base.Aggregator) -> Callable[..., Any]:
  def inspect(messages, state, key, is_byzantine, weights):
    return server.inspect(
      messages,
      state,
      key=key,
      is_byzantine=is_byzantine,
      worker_weights=weights,
    )

  return inspect
