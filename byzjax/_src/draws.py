"""Random vectors that do not depend on how coordinates are split."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base

# Coordinates drawn from one key. A shard of padded coordinates is a multiple of
# it, so the draw does not depend on how the coordinates are split.
_BLOCK = 32
# Scattered coordinates that are drawn at a time.
_BATCH = 1024


def draw(
  sampler: Callable[..., jax.Array],
  key: jax.Array,
  like: jax.Array,
  axis_name: base.AxisName = None,
  coordinates: jax.Array | None = None,
) -> jax.Array:
  """A draw [d] of `sampler(key, shape, dtype)`, d and dtype as of `like`.

  Drawn in blocks, by the global index of the block. Where the coordinates here
  are not one contiguous part, `coordinates` int32[d] are their global indices.
  """
  d = like.shape[-1]

  def block(index):
    block_key = jax.random.fold_in(key, index)
    return sampler(block_key, (_BLOCK,), like.dtype)

  if coordinates is not None:
    # A whole block for one number of it: dear, but the same number everywhere.
    return jax.lax.map(
      lambda j: block(j // _BLOCK)[j % _BLOCK],
      coordinates,
      batch_size=min(d, _BATCH),
    )
  num_blocks = -(-d // _BLOCK)
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_blocks
  return jax.vmap(block)(first + jnp.arange(num_blocks)).reshape(-1)[:d]


def worker_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
  """The keys of the workers with these indices: `int[k] -> [k]`."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def require_key(name: str, key: jax.Array | None) -> jax.Array:
  """The key, or a ValueError if there is none."""
  if key is None:
    raise ValueError(f'{name} needs a key to draw its noise, got None')
  return key
