"""Messages of paths to their modules and back, level by level."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, draws, layouts, reductions
from byzjax.rounds import _stages, _wire
from byzjax.rounds._modular_server import Sent
from byzjax.rounds._modular_work import Parts, layouts_of


class Up(NamedTuple):
  """What the servers of the modules see of the paths of a round."""

  # By level, of all paths of the round: float[k, D_l], padded, of which a
  # device has its own coordinates.
  messages: tuple[jax.Array, ...]
  state: tuple[base.State, ...]  # leaves [k, ...] of a device, by level
  bits: jax.Array  # float[], of all paths that are there


class Down(NamedTuple):
  """What the paths see of the aggregates."""

  sent: list[Sent]
  state: tuple[base.State, ...]  # leaves [K_l, ...], by level
  bits: jax.Array  # float[], to all paths that are there


def up(
  parts: Parts,
  messages: tuple[jax.Array, ...],
  state: tuple[base.State, ...],
  key: jax.Array,
  ids: jax.Array,
  present: jax.Array,
) -> Up:
  """The messages float[k, d_l] of the paths of a device, encoded.

  `ids` int32[k] are their numbers, and `present` bool[k] says who is there; the
  others keep their state.
  """
  if parts.codec is None:
    size = sum(rows.shape[1] for rows in messages)
    num_present = reductions.psum(jnp.sum(present), parts.axes)
    heard = layouts.to_coordinates(
      tuple(_padded(parts, rows) for rows in messages), parts.axes
    )
    return Up(heard, (), 32.0 * size * num_present)
  decoded, states, bits = [], [], jnp.zeros([])
  for level, (rows, old) in enumerate(zip(messages, state)):
    keys = draws.worker_keys(jax.random.fold_in(key, level), ids)
    payload, new, of_path = _wire.encode_rows(
      parts.codec, rows, old, keys, parts.padded(rows.shape[1])
    )
    payload = layouts.to_coordinates(payload, parts.axes)
    decoded.append(_wire.decode_rows(parts.codec, payload, rows.dtype))
    states.append(_stages.where_rows(present, new, old))
    bits += reductions.psum(jnp.sum(jnp.where(present, of_path, 0)), parts.axes)
  return Up(tuple(decoded), tuple(states), bits)


def _padded(parts: Parts, rows: jax.Array) -> jax.Array:
  size = rows.shape[1]
  padding = parts.padded(size) - size
  return jnp.pad(rows, ((0, 0), (0, padding))) if padding else rows


def down(
  parts: Parts,
  sent: list[Sent],
  state: base.RoundState,
  key: jax.Array,
  paths: jax.Array,
  present: jax.Array,
) -> Down:
  """The aggregates as the paths int32[k, L] of this round get them.

  A path is sent those of its own modules; a module to which nobody has sent
  keeps its state.
  """
  sizes = [layout.size for layout in layouts_of(state.params)]
  if parts.server_codec is None:
    told = [
      level._replace(
        aggregates=layouts.to_everyone(level.aggregates, parts.axes)
      )
      for level in sent
    ]
    return Down(told, (), 32.0 * sum(sizes) * jnp.sum(present))
  told, states, bits = [], [], jnp.zeros([])
  for level, (from_module, old) in enumerate(zip(sent, state.server_codec)):
    keys = jax.random.split(
      jax.random.fold_in(key, level), parts.num_modules[level]
    )
    broadcast = functools.partial(
      _wire.broadcast,
      parts.server_codec,
      num_coordinates=sizes[level],
      axis_name=parts.axes,
    )
    aggregates, new, of_module = jax.vmap(broadcast)(
      from_module.aggregates, old, keys
    )
    told.append(from_module._replace(aggregates=aggregates))
    states.append(_stages.where_rows(from_module.counts > 0, new, old))
    bits += jnp.sum(jnp.where(present, of_module[paths[:, level]], 0))
  return Down(told, tuple(states), bits)
