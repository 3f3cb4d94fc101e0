"""What the workers of a modular round do: the local update of a path."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from byzjax._src import base, flat, layouts, local
from byzjax._src import paths as path_tools
from byzjax.rounds import _local_steps, _wire
from byzjax.rounds._engine import coordinate_specs
from byzjax.rounds._sharded_step import place

NAME = 'modular_round'


class ModularRows(NamedTuple):
  """What the workers of `modular_round` keep: leaves `[P, ...]`."""

  optimizer: base.State
  sampler: base.State
  chain: base.State


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
  chain: optax.GradientTransformationExtraArgs | None  # of what a path sends
  byzantine_chain: bool
  worker_map: str | int
  mesh: Mesh | AbstractMesh | None
  num_shards: int  # devices that paths are split over
  axis_name: str | tuple[str, ...]

  @property
  def axes(self) -> base.AxisName:
    """The axes to sum over: None on one device."""
    return None if self.mesh is None else self.axis_name

  def padded(self, size: int) -> int:
    """D: coordinates are padded where they are cut or packed."""
    if (self.mesh, self.codec, self.server_codec) == (None, None, None):
      return size
    return layouts.padded_size(size, self.num_shards)


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
    chain: base.State = ()
    if parts.chain is not None:
      chain = parts.chain.init(flat.row_layout(mine).ravel(mine))
    return ModularRows(keeps, training.sampler.init(mine), chain)

  vectors = [
    jnp.zeros(parts.padded(layout.size), layout.dtype)
    for layout in layouts_of(params)
  ]
  counts = parts.num_modules
  states = [
    _init_rules(server, count, zeros)
    for server, zeros, count in zip(parts.servers, vectors, counts)
  ]
  drawn = parts.participation
  state = base.RoundState(
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
  if parts.mesh is None:
    return state
  return place(state, parts.mesh, state_specs(parts, state))


def state_specs(parts: Parts, state: base.RoundState) -> base.RoundState:
  """Paths are split by row; what rules keep of a module, by coordinate.

  Modules, and the state of their optimizers, are everywhere.
  """
  rows = PartitionSpec(parts.axis_name)

  def by_coordinate(init, layout):
    size = parts.padded(layout.size)
    return coordinate_specs(init, size, layout.dtype, parts.axis_name)

  levels = list(zip(layouts_of(state.params), parts.num_modules))
  rules = [
    by_coordinate(functools.partial(_init_rules, server, count), layout)
    for server, (layout, count) in zip(parts.servers, levels)
  ]
  senders: tuple[base.State, ...] = ()
  if parts.server_codec is not None:
    init_sender = functools.partial(_wire.init_rows, parts.server_codec)
    senders = tuple(
      by_coordinate(functools.partial(init_sender, num_workers=count), layout)
      for layout, count in levels
    )
  specs = jax.tree.map(lambda _: PartitionSpec(), state)
  return specs._replace(
    workers=jax.tree.map(lambda _: rows, state.workers),
    attack=tuple(rule.attack for rule in rules),
    aggregator=tuple(rule.aggregator for rule in rules),
    codec=jax.tree.map(lambda _: rows, state.codec),
    server_codec=senders,
  )


def _init_rules(
  server: base.Aggregator, count: int, vector: jax.Array
) -> layouts.WorkerShardedState:
  """What the rules of a level keep: leaves `[K, ...]`, from float[D]."""
  return jax.vmap(server.init)(jnp.tile(vector, (count, 1)))


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
    axis_name=parts.axes,
  )
  messages = tuple(
    layout.ravel(before) - layout.ravel(after)
    for layout, before, after in zip(layouts_of(params), start, end.params)
  )
  messages, chain = _behind_chain(
    parts, messages, rows.chain, start, is_byzantine
  )
  keeps = ModularRows(
    end.optimizer if parts.keeps else (),
    _local_steps.sampler_state(training.sampler, rows.sampler, end),
    chain,
  )
  return PathOutput(end.loss, messages, keeps, end.aux)


def _behind_chain(
  parts: Parts,
  messages: tuple[jax.Array, ...],
  state: base.State,
  start: base.Params,
  is_byzantine: jax.Array,
) -> tuple[tuple[jax.Array, ...], base.State]:
  """The messages of one path, as one vector, behind its chain.

  `is_byzantine` is its number among the attackers, or -1.
  """
  if parts.chain is None:
    return messages, state
  whole = jnp.concatenate(messages)
  sent, state = parts.chain.update(
    whole, state, flat.row_layout(start).ravel(start)
  )
  if not parts.byzantine_chain:
    sent = jnp.where(is_byzantine >= 0, whole, sent)
  cuts = np.cumsum([message.size for message in messages])[:-1]
  levels = zip(jnp.split(sent, cuts), messages)
  return tuple(new.astype(old.dtype) for new, old in levels), state
