"""Messages on their way up and the aggregate on its way down.

The cheap representation is what moves between devices: what workers encode is
moved to coordinate layout and decoded there, and the aggregate is encoded there
and decoded by everyone. Without a codec float vectors go over the wire.
"""

import functools

import jax
import jax.numpy as jnp

from byzjax._src import base, layouts


def init_rows(
  codec: base.Codec | None, params: jax.Array, num_workers: int
) -> base.State:
  """What n workers' codecs keep: leaves `[n, ...]`, from params float[D]."""
  if codec is None:
    return ()
  return jax.vmap(codec.init, in_axes=None, axis_size=num_workers)(params)


def encode_rows(
  codec: base.Codec | None,
  rows: jax.Array,
  state: base.State,
  keys: jax.Array,
  size: int,
) -> tuple[base.Payload, base.State, jax.Array]:
  """Each worker's message for the wire, in worker layout.

  Args:
    codec: or None, for rows as they are.
    rows: float[k, d].
    state: leaves `[k, ...]`.
    keys: [k], one per worker.
    size: D >= d, to which vectors are padded.

  Returns:
    The payload, leaves `[k, ...]`; the state; and the bits of every message,
    float32[k].
  """
  k, num_coordinates = rows.shape
  if size > num_coordinates:
    rows = jnp.pad(rows, ((0, 0), (0, size - num_coordinates)))
  if codec is None:
    return rows, state, jnp.full(k, 32.0 * num_coordinates)
  payload, state = jax.vmap(
    functools.partial(codec.encode, num_coordinates=num_coordinates)
  )(rows, state, keys)
  bits = jax.vmap(lambda p: codec.bits_per_message(p, num_coordinates))(payload)
  return payload, state, bits


def decode_rows(
  codec: base.Codec | None, payload: base.Payload, dtype: jnp.dtype
) -> jax.Array:
  """What the server sees: `[n, ...] -> float[n, local coordinates]`."""
  if codec is None:
    return payload
  return jax.vmap(codec.decode)(payload).astype(dtype)


def broadcast(
  codec: base.Codec | None,
  aggregate: jax.Array,
  state: base.State,
  key: jax.Array,
  *,
  num_coordinates: int,
  axis_name: base.AxisName,
) -> tuple[jax.Array, base.State, jax.Array]:
  """The aggregate as every worker gets it, from its local coordinates.

  Returns:
    float[D], the same everywhere; the state; and the bits of the message.
  """
  if codec is None:
    full = layouts.to_everyone(aggregate, axis_name)
    return full, state, jnp.asarray(32.0 * num_coordinates)
  true = layouts.columns(aggregate.size, num_coordinates, axis_name)
  payload, state = codec.encode(
    jnp.where(true, aggregate, 0),
    state,
    key,
    num_coordinates=num_coordinates,
    axis_name=axis_name,
  )
  payload = layouts.to_everyone(payload, axis_name)
  bits = codec.bits_per_message(payload, num_coordinates)
  return codec.decode(payload).astype(aggregate.dtype), state, bits
