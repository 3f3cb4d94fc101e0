"""What the workers of a modular round do: the local update of a path."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import base, flat, layouts, local
from byzjax._src import paths as path_tools
from byzjax.rounds import _local_steps, _wire

NAME = 'modular_round'


class ModularRows(NamedTuple):
  """What the workers of `modular_round` keep: leaves `[P, ...]`."""

  optimizer: base.State
  sampler: base.State


class Group(NamedTuple):
  """The modules of a level that are on equally many paths."""

  modules: np.ndarray  # int32[G]
  senders: np.ndarray  # int32[G, n], the paths of each


class Parts(NamedTuple):
  """The arguments of `modular_round`; P paths through L levels."""

  paths: np.ndarray  # int32[P, L]
  num_modules: list[int]  # of each level
  training: _local_steps.LocalTraining
  keeps: bool  # the state of the local optimizer, from round to round
  steps_at: Callable[[jax.Array], jax.Array]
  takes_slices: bool  # of the batch, for there is no sampler
  longest: int | None  # most local steps, where known
  servers: list[base.Aggregator]  # the rule behind its attack, by level
  groups: list[list[Group]]  # by level
  optimizer: optax.GradientTransformationExtraArgs
  rescale_norm: bool
  byzantine_at: base.ByzantineSchedule
  weights_at: Callable[[jax.Array], jax.Array | None]
  participation: local.Participation | None
  codec: base.Codec | None
  server_codec: base.Codec | None
  worker_map: str | int

  def padded(self, size: int) -> int:
    """D: coordinates are padded where they are packed."""
    if (self.codec, self.server_codec) == (None, None):
      return size
    return layouts.padded_size(size, 1)


class PathOutput(NamedTuple):
  """What the local update of one path leaves behind."""

  loss: jax.Array
  messages: tuple[jax.Array, ...]  # float[D_l], one per level
  rows: ModularRows
  aux: Any


def groups_of(modules: np.ndarray) -> list[Group]:
  """The groups of one level, from the module of each path, int[P]."""
  by_count: dict[int, list[tuple[int, np.ndarray]]] = {}
  for module in range(modules.max() + 1):
    senders = np.flatnonzero(modules == module)
    by_count.setdefault(senders.size, []).append((module, senders))
  return [
    Group(
      np.array([module for module, _ in members], np.int32),
      np.stack([senders for _, senders in members]).astype(np.int32),
    )
    for _, members in sorted(by_count.items())
  ]


def init(parts: Parts, params: base.Params) -> base.RoundState:
  """The state before the first round."""
  path_tools.check_modules(NAME, params, parts.num_modules)
  training = parts.training

  def of_path(path):
    mine = path_tools.select_path(params, path)
    keeps = training.optimizer.init(mine) if parts.keeps else ()
    return ModularRows(keeps, training.sampler.init(mine))

  vectors = [
    jnp.zeros(parts.padded(layout.size), layout.dtype)
    for layout in layouts_of(params)
  ]
  counts = parts.num_modules
  states = [
    jax.vmap(server.init)(jnp.tile(zeros, (count, 1)))
    for server, zeros, count in zip(parts.servers, vectors, counts)
  ]
  drawn = parts.participation
  return base.RoundState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    workers=jax.vmap(of_path)(jnp.asarray(parts.paths)),
    attack=tuple(state.attack for state in states),
    aggregator=tuple(state.aggregator for state in states),
    optimizer=tuple(
      jax.vmap(parts.optimizer.init)(modules) for modules in params
    ),
    codec=_init_codecs(parts.codec, vectors, [len(parts.paths)] * len(counts)),
    server_codec=_init_codecs(parts.server_codec, vectors, counts),
    participation=drawn.init(len(parts.paths)) if drawn else (),
  )


def _init_codecs(
  codec: base.Codec | None, vectors: list[jax.Array], counts: list[int]
) -> tuple[base.State, ...]:
  """What the codecs of all senders keep, by level: leaves `[count, ...]`."""
  if codec is None:
    return ()
  return tuple(
    _wire.init_rows(codec, zeros, count)
    for zeros, count in zip(vectors, counts)
  )


def layouts_of(params: base.Params) -> list[flat.RowLayout]:
  """The flat rows of a module of each level."""
  return [
    flat.row_layout(jax.tree.map(lambda x: x[0], modules)) for modules in params
  ]


def local_update(
  parts: Parts,
  num_steps: jax.Array,
  round: jax.Array,
  params,
  path,
  rows: ModularRows,
  data,
  is_byzantine,
  key,
  own_steps,
) -> PathOutput:
  """The local steps of one path, and its message to each of its modules.

  `num_steps` and `round` are those of all paths, and `own_steps` of this one,
  where they differ.
  """
  training = parts.training
  start = path_tools.select_path(params, path)
  end = _local_steps.local_update(
    training,
    start,
    rows.optimizer if parts.keeps else training.optimizer.init(start),
    training.sampler.start(rows.sampler, start, data, key),
    data,
    is_byzantine,
    key,
    own_steps if num_steps.ndim else num_steps,
    round=round,
  )
  messages = tuple(
    layout.ravel(before) - layout.ravel(after)
    for layout, before, after in zip(layouts_of(params), start, end.params)
  )
  keeps = ModularRows(
    end.optimizer if parts.keeps else (),
    _local_steps.sampler_state(training.sampler, rows.sampler, end),
  )
  return PathOutput(end.loss, messages, keeps, end.aux)
