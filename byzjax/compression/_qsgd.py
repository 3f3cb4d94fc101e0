"""Ternary codecs that send a magnitude: QSGD with one level, and TernGrad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import (
  base,
  bits,
  checks,
  codec_type,
  draws,
  recipes,
  reductions,
)
from byzjax.compression import _sparsign


class ScaledTernary(NamedTuple):
  """Entries -1, 0, 1 and one scale: the payload of `qsgd_codec`."""

  planes: jax.Array  # uint32[2, D / 32]
  scale: jax.Array  # float[]


@recipes.factory
def qsgd_codec(*, norm: str = 'l2') -> base.Codec:
  """Unbiased stochastic quantisation to one level (QSGD with s = 1).

  `C(x)[j] = |x| sign(x[j])` with probability `|x[j]| / |x|`, else 0, where
  `|x|` is the l2 norm, as in the paper, or the largest magnitude; `E C(x) = x`.
  With the l2 norm about sqrt(d) of d entries are non-zero, each as large as the
  whole vector. The paper encodes positions in Elias code; here it is
  Golomb-Rice code, as in `sparsign_codec`.

  A message with a NaN or inf, or with a norm that overflows, has a scale that
  is not finite, so the server masks the whole message.

  Args:
    norm: 'l2' or 'linf' (the largest magnitude).

  Returns:
    A `Codec` without state that needs a key: float[D] to uint32[2, D / 32] and
    one number of 32 bits (64 for float64).

  Raises:
    ValueError: if `norm` is unknown; at trace time, if no key is given.

  References:
    Alistarh, Grubic, Li, Tomioka, Vojnovic, 2017, arXiv:1610.02132.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> codec = byzjax.qsgd_codec(norm='linf')
    >>> x = jnp.array([-3., 0., 3.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, (), jax.random.key(0), num_coordinates=3)
    >>> print(codec.decode(payload)[:3])
    [-3.  0.  3.]
  """
  if norm not in ('l2', 'linf'):
    raise ValueError(
      f"qsgd_codec needs norm to be 'l2' or 'linf', got {norm!r}"
    )

  def scale_of(x, axis_name):
    largest = _largest(x, axis_name)
    if norm == 'linf':
      return largest
    # Squares of the entries themselves could over- or underflow.
    x = _over(x, largest)
    squares = reductions.squared_norms(x[None], axis_name=axis_name)
    return largest * jnp.sqrt(squares[0])

  def prepare(x, num_coordinates, axis_name):
    del num_coordinates, axis_name
    return x

  return _scaled_ternary('qsgd_codec', prepare, scale_of)


@recipes.factory
def terngrad_codec(*, clip: base.Scalar | None = None) -> base.Codec:
  """Unbiased stochastic quantisation to the largest magnitude (TernGrad).

  `C(x)[j] = s sign(x[j])` with probability `|x[j]| / s`, else 0, where `s =
  max |x|`; `E C(x) = x`. Without clipping this is `qsgd_codec(norm='linf')`.
  The paper clips first, at 2.5 standard deviations of the entries, and
  quantizes layer by layer; here the message is one vector. A message with a NaN
  or inf has a scale that is not finite, so the server masks the whole message.

  Args:
    clip: clip entries at this many standard deviations (of all entries, about
      their mean) before encoding, > 0, or None; may be traced. Entries that are
      all equal, up to rounding, are not clipped.

  Returns:
    A `Codec` without state that needs a key: float[D] to uint32[2, D / 32] and
    one number of 32 bits (64 for float64).

  Raises:
    ValueError: if `clip` is not positive; at trace time, if no key is given.

  References:
    Wen, Xu, Yan, Wu, Wang, Chen, Li, 2017, arXiv:1705.07878.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> codec = byzjax.terngrad_codec()
    >>> x = jnp.array([-3., 0., 3.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, (), jax.random.key(0), num_coordinates=3)
    >>> print(codec.decode(payload)[:3])
    [-3.  0.  3.]
  """
  if clip is not None:
    checks.check_range('terngrad_codec', 'clip', clip, 0, exclusive=True)

  def prepare(x, num_coordinates, axis_name):
    if clip is None:
      return x
    largest = _largest(x, axis_name)
    # In units of the largest, so that squares do not over- or underflow.
    # Padding is zero, and so in neither sum.
    y = _over(x, largest)
    total = reductions.psum(jnp.sum(y), axis_name)
    squares = reductions.squared_norms(y[None], axis_name=axis_name)[0]
    mean, squares = total / num_coordinates, squares / num_coordinates
    variance = squares - mean**2
    # The difference of two equal numbers is rounding, and no limit.
    varies = variance > 16 * jnp.finfo(x.dtype).eps * squares
    limit = clip * reductions.sqrt(variance) * largest
    limit = jnp.where(varies, limit, jnp.inf)
    return jnp.clip(x, -limit, limit)

  return _scaled_ternary('terngrad_codec', prepare, _largest)


def _largest(x: jax.Array, axis_name: base.AxisName) -> jax.Array:
  """The largest magnitude; NaN if an entry is NaN: [D] -> []."""
  largest = jnp.max(jnp.abs(x))
  if axis_name is None:
    return largest
  # The maximum over devices may drop a NaN, a sum does not.
  zero_or_nan = jnp.where(jnp.isnan(largest), largest, 0)
  return lax.pmax(largest, axis_name) + lax.psum(zero_or_nan, axis_name)


def _over(x: jax.Array, scale: jax.Array) -> jax.Array:
  """`x / s`, and `x` for a zero scale."""
  # XLA takes x (1 / s) instead, and 1 / s of the largest numbers is zero.
  unit = jnp.where(scale > 1, 2.0**-24, 1).astype(x.dtype)
  return (unit * x) / jnp.where(scale == 0, 1, unit * scale)


def _scaled_ternary(name, prepare, scale_of) -> base.Codec:
  """`s sign(x)` with probability `|x| / s`, else 0; `s(x) >= max |x|`."""

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    codec_type.check_vector(name, x)
    key = draws.require_key(name, key)
    x = prepare(x, num_coordinates, axis_name)
    scale = scale_of(x, axis_name)
    ternary = _sparsign.sparsign(_over(x, scale), 1, key, axis_name)
    return ScaledTernary(bits.pack_ternary(ternary), scale), state

  def decode(payload):
    return _decoded(bits.unpack_ternary(payload.planes), payload.scale)

  def bits_per_message(payload, num_coordinates):
    scale_bits = 8 * payload.scale.dtype.itemsize
    return scale_bits + bits.ternary_bits(payload.planes, num_coordinates)

  return base.Codec(
    optax.init_empty_state, encode, decode, bits_per_message, constrain, name
  )


def constrain(x, *, num_coordinates, axis_name=None):
  """Values -s, 0 and s close to x: what a Byzantine worker can send."""
  # Ternary weights of Li, Zhang, Liu, 2016, arXiv:1605.04711: nearly the
  # nearest, without a sort. In units of the largest: sums do not overflow.
  largest = _largest(x, axis_name)
  size = jnp.abs(_over(x, largest))
  mean = reductions.psum(jnp.sum(size), axis_name) / num_coordinates
  kept = size > 0.7 * mean
  count = reductions.psum(jnp.sum(kept), axis_name)
  total = reductions.psum(jnp.sum(jnp.where(kept, size, 0)), axis_name)
  scale = largest * (total / jnp.maximum(count, 1))
  return _decoded(jnp.where(kept, jnp.sign(x), 0), scale)


def _decoded(ternary: jax.Array, scale: jax.Array) -> jax.Array:
  # NaN where it is zero too: else a message that is not finite would look like
  # zeros, which nobody masks.
  decoded = jnp.where(ternary == 0, 0, scale * ternary)
  return jnp.where(jnp.isfinite(scale), decoded, jnp.nan)
