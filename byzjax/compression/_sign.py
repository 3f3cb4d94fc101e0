"""Codecs of one bit per coordinate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, bits, checks, draws, recipes, reductions


class ScaledSigns(NamedTuple):
  """Signs and one number: the payload of `scaled_sign_codec`."""

  words: jax.Array  # uint32[D / 32]
  scale: jax.Array  # float[]


@recipes.factory
def sign_codec() -> base.Codec:
  """One bit per coordinate: its sign.

  `C(x)[j] = -1` if `x[j] < 0`, else +1: a zero and a NaN are sent as +1, as the
  deployed code of the paper does. 32 coordinates in a row make one uint32, the
  first in the lowest bit. (NumPy's sign has three values and would take more
  than a bit.)

  Returns:
    A `Codec` without state or draws: float[D] to uint32[D / 32]; exactly d bits
    per message.

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> codec = byzjax.sign_codec()
    >>> x = jnp.array([-1., 0., 7.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, codec.init(x), None, num_coordinates=3)
    >>> print(payload, codec.decode(payload)[:3])
    [1] [-1.  1.  1.]
  """

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del key, num_coordinates, axis_name
    return bits.pack(x < 0), state

  return base.Codec(
    optax.init_empty_state,
    encode,
    _signs,
    _one_bit_each,
    _constrain_to_signs,
    'sign_codec',
    packs_signs=True,
  )


@recipes.factory
def noisy_sign_codec(*, std: base.Scalar) -> base.Codec:
  """One bit per coordinate: the sign after noise is added.

  `C(x)[j] = sign(x[j] + std n[j])` with n[j] ~ N(0, 1), and +1 for zero and
  NaN. The probability of +1 grows with x[j] smoothly, so the mean of many such
  messages tells the size of x where it is below std.

  Args:
    std: standard deviation of the noise, >= 0; may be traced.

  Returns:
    A `Codec` without state that needs a key: float[D] to uint32[D / 32];
    exactly d bits per message.

  Raises:
    ValueError: if std is negative; at trace time, if no key is given.

  References:
    Chen, Chen, Sun, Wu, Hong, 2020, arXiv:1906.04316 (noise before the sign).

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> codec = byzjax.noisy_sign_codec(std=0.1)
    >>> payload, _ = codec.encode(
    ...   jnp.full(32, -1.0), (), jax.random.key(0), num_coordinates=32)
    >>> print(payload)
    [4294967295]
  """
  checks.check_range('noisy_sign_codec', 'std', std, 0)

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del num_coordinates
    key = draws.require_key('noisy_sign_codec', key)
    noise = draws.draw(jax.random.normal, key, x, axis_name)
    return bits.pack(x + std * noise < 0), state

  return base.Codec(
    optax.init_empty_state,
    encode,
    _signs,
    _one_bit_each,
    _constrain_to_signs,
    'noisy_sign_codec',
    packs_signs=True,
  )


@recipes.factory
def scaled_sign_codec() -> base.Codec:
  """Signs times the mean size of a coordinate.

  `C(x) = (|x|_1 / d) sign(x)`, with +1 for the sign of zero; an
  alpha-approximate compressor with `alpha = |x|_1^2 / (d |x|_2^2)`, which is
  what `error_feedback` asks for. A message with a NaN or inf has
  a scale that is not finite, and is masked by the server whole.

  Returns:
    A `Codec` without state or draws: float[D] to uint32[D / 32] and one number;
    d + 32 bits per message (d + 64 for float64).

  References:
    Karimireddy, Rebjock, Stich, Jaggi, 2019, arXiv:1901.09847.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> codec = byzjax.scaled_sign_codec()
    >>> x = jnp.array([-1., 2., 6.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, codec.init(x), None, num_coordinates=3)
    >>> print(codec.decode(payload)[:3])
    [-3.  3.  3.]
  """

  def scale_of(x, num_coordinates, axis_name):
    return reductions.psum(jnp.sum(jnp.abs(x)), axis_name) / num_coordinates

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del key
    scale = scale_of(x, num_coordinates, axis_name)
    return ScaledSigns(bits.pack(x < 0), scale), state

  def bits_per_message(payload, num_coordinates):
    scale_bits = 8 * payload.scale.dtype.itemsize
    return jnp.asarray(num_coordinates + scale_bits, jnp.float32)

  def constrain(x, *, num_coordinates, axis_name=None):
    scale = scale_of(x, num_coordinates, axis_name)
    return jnp.where(x < 0, -scale, scale)

  return base.Codec(
    optax.init_empty_state,
    encode,
    lambda payload: payload.scale * _signs(payload.words),
    bits_per_message,
    constrain,
    'scaled_sign_codec',
  )


def _signs(words: jax.Array) -> jax.Array:
  return jnp.where(bits.unpack(words), -1.0, 1.0)


def _one_bit_each(payload: jax.Array, num_coordinates: int) -> jax.Array:
  del payload
  return jnp.asarray(num_coordinates, jnp.float32)


def _constrain_to_signs(x, *, num_coordinates, axis_name=None):
  del num_coordinates, axis_name
  return jnp.where(x < 0, -1, 1).astype(x.dtype)
