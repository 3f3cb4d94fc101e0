"""Top-k sparsification: the largest coordinates are sent exactly."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, codec_type, recipes


@recipes.factory
def top_k_codec(*, num_kept: int) -> base.Codec:
  """Keeps the k coordinates of largest magnitude (top-k sparsification).

  `C(x)[j] = x[j]` for the k largest `|x[j]|` (ties to the lowest index), else
  0. It is biased: use it inside `error_feedback`. A NaN counts as the largest,
  so that it reaches the server, which masks the message.

  Inside a program the payload has D numbers, most of them zero, because it must
  be divisible along the coordinates; `bits_per_message` counts k values and k
  indices.

  Args:
    num_kept: k >= 1, a Python int; all coordinates are kept if k > d.

  Returns:
    A deterministic `Codec` without state: float[D] to float[D]; a message takes
    `k (32 + ceil(log2(d)))` bits (64 instead of 32 for float64).

  Raises:
    ValueError: if k is not a positive int.

  References:
    Stich, Cordonnier, Jaggi, 2018, arXiv:1809.07599.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> codec = byzjax.top_k_codec(num_kept=1)
    >>> x = jnp.array([-1., 0., -7.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, codec.init(x), None, num_coordinates=3)
    >>> print(codec.decode(payload)[:3])
    [ 0.  0. -7.]
  """
  checks.check_count('top_k_codec', 'num_kept', num_kept, 1)

  def constrain(x, *, num_coordinates, axis_name=None):
    size = jnp.abs(x)
    size = jnp.where(jnp.isnan(size), jnp.inf, size)
    if axis_name is not None:
      size = lax.all_gather(size, axis_name, tiled=True)
    _, indices = lax.top_k(size, min(num_kept, num_coordinates))
    kept = jnp.zeros(size.shape, bool).at[indices].set(True)
    if axis_name is not None:
      first = lax.axis_index(axis_name) * x.size
      kept = lax.dynamic_slice_in_dim(kept, first, x.size)
    return jnp.where(kept, x, 0)

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del key
    codec_type.check_vector('top_k_codec', x)
    kept = constrain(x, num_coordinates=num_coordinates, axis_name=axis_name)
    return kept, state

  def bits_per_message(payload: jax.Array, num_coordinates: int) -> jax.Array:
    index_bits = (num_coordinates - 1).bit_length()
    value_bits = 8 * payload.dtype.itemsize
    count = min(num_kept, num_coordinates)
    return jnp.asarray(count * (value_bits + index_bits), jnp.float32)

  return base.Codec(
    optax.init_empty_state,
    encode,
    lambda payload: payload,
    bits_per_message,
    constrain,
    'top_k_codec',
  )
