"""Codecs of signs: one bit per coordinate, or three values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  bits,
  checks,
  codec_type,
  draws,
  flat,
  recipes,
  reductions,
)
from byzjax.compression import _qsgd

_ZEROS = ('plus', 'abstain')


class ScaledSigns(NamedTuple):
  """Signs and one scale: the payload of `scaled_sign_codec`."""

  words: jax.Array  # uint32[D / 32], or [2, D / 32] where zeros abstain
  scale: jax.Array  # float[]


@recipes.factory
def sign_codec(*, zeros: str = 'plus') -> base.Codec:
  """The sign of each coordinate (signSGD): one bit, or three values.

  With `zeros='plus'`, the default, `C(x)[j] = -1` if `x[j] < 0`, else +1: a
  zero and a NaN are sent as +1, as in the official code of the paper. 32
  consecutive coordinates make one uint32, the first in the lowest bit.

  With `zeros='abstain'` it is `numpy.sign`, -1, 0 or +1, and a NaN is sent as
  0. Three values take more than one bit: `bits_per_message` counts the
  positions of non-zero entries in Golomb-Rice code and one bit for each sign,
  as in `sparsign_codec`. `majority_vote(zeros='abstain')` does not count the
  zeros. Models with inactive units and inputs that are constantly blank have
  many gradient entries that are exactly zero; sent as +1, they make these
  coordinates drift.

  Args:
    zeros: 'plus' or 'abstain'.

  Returns:
    A deterministic `Codec` without state: float[D] to uint32[D / 32], exactly d
    bits per message; with `zeros='abstain'`, float[D] to uint32[2, D / 32].

  Raises:
    ValueError: if `zeros` is not one of the two.

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> codec = byzjax.sign_codec()
    >>> x = jnp.array([-1., 0., 7.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, codec.init(x), None, num_coordinates=3)
    >>> print(payload, codec.decode(payload)[:3])
    [1] [-1.  1.  1.]
    >>> codec = byzjax.sign_codec(zeros='abstain')
    >>> payload, _ = codec.encode(x, codec.init(x), None, num_coordinates=3)
    >>> print(codec.decode(payload)[:3])
    [-1.  0.  1.]
  """
  checks.check_choice('sign_codec', 'zeros', zeros, _ZEROS)
  plus = zeros == 'plus'

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del key, num_coordinates, axis_name
    codec_type.check_vector('sign_codec', x)
    return bits.pack(x < 0) if plus else bits.pack_ternary(x), state

  def constrain(x, *, num_coordinates, axis_name=None):
    del num_coordinates, axis_name
    return jnp.where(jnp.isnan(x), 0, jnp.sign(x))

  return base.Codec(
    optax.init_empty_state,
    encode,
    _signs if plus else bits.unpack_ternary,
    _one_bit_each if plus else bits.ternary_bits,
    _constrain_to_signs if plus else constrain,
    'sign_codec',
    packs_signs=plus,
  )


@recipes.factory
def noisy_sign_codec(*, std: base.Scalar) -> base.Codec:
  """The sign of each coordinate after adding Gaussian noise: one bit each.

  `C(x)[j] = sign(x[j] + std n[j])` with n[j] ~ N(0, 1), and +1 for NaN. A zero
  is sent as +1 or -1 with probability 1/2 each (as +1 if std is 0). The
  probability of +1 grows smoothly with x[j], so the mean of many such messages
  estimates x where its magnitude is below std.

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
    codec_type.check_vector('noisy_sign_codec', x)
    key = draws.require_key('noisy_sign_codec', key)
    # In half precision a small x is lost in the noise.
    x = x.astype(flat.compute_dtype(x))
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
def scaled_sign_codec(*, zeros: str = 'plus') -> base.Codec:
  """Signs times the mean magnitude of a coordinate (EF-signSGD).

  With `zeros='plus'`, the default, `C(x) = (|x|_1 / d) sign(x)`, with +1 for
  the sign of zero. It is an alpha-approximate compressor, as `error_feedback`
  needs, with `alpha = |x|_1^2 / (d |x|_2^2)`.

  With `zeros='abstain'` a zero stays zero, and the k other coordinates have
  their mean magnitude: `C(x) = (|x|_1 / k) sign(x)`, `alpha = |x|_1^2 / (k
  |x|_2^2)`. This takes more than one bit per coordinate, see `sign_codec`.

  A message with a NaN or inf has a scale that is not finite, so the server
  masks the whole message.

  Args:
    zeros: 'plus' or 'abstain'.

  Returns:
    A deterministic `Codec` without state: float[D] to uint32[D / 32] and one
    number; d + 32 bits per message (d + 64 for float64). With `zeros='abstain'`
    the words are uint32[2, D / 32].

  Raises:
    ValueError: if `zeros` is not one of the two.

  References:
    Karimireddy, Rebjock, Stich, Jaggi, 2019, arXiv:1901.09847. The form for
    `zeros='abstain'` is specific to this library.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> codec = byzjax.scaled_sign_codec()
    >>> x = jnp.array([-1., 2., 6.] + 29 * [0.])
    >>> payload, _ = codec.encode(x, codec.init(x), None, num_coordinates=3)
    >>> print(codec.decode(payload)[:3])
    [-3.  3.  3.]
  """
  checks.check_choice('scaled_sign_codec', 'zeros', zeros, _ZEROS)
  plus = zeros == 'plus'

  def scale_of(x, num_coordinates, axis_name):
    total = reductions.psum(jnp.sum(jnp.abs(x)), axis_name)
    if plus:
      return total / num_coordinates
    count = reductions.psum(jnp.count_nonzero(x), axis_name)
    return total / jnp.maximum(count, 1)

  def encode(x, state, key=None, *, num_coordinates, axis_name=None):
    del key
    codec_type.check_vector('scaled_sign_codec', x)
    scale = scale_of(x, num_coordinates, axis_name)
    words = bits.pack(x < 0) if plus else bits.pack_ternary(x)
    return ScaledSigns(words, scale), state

  def decode(payload):
    signs = _signs if plus else bits.unpack_ternary
    return payload.scale * signs(payload.words)

  def bits_per_message(payload, num_coordinates):
    count = _one_bit_each if plus else bits.ternary_bits
    scale_bits = 8 * payload.scale.dtype.itemsize
    return scale_bits + count(payload.words, num_coordinates)

  def constrain(x, *, num_coordinates, axis_name=None):
    scale = scale_of(x, num_coordinates, axis_name)
    return jnp.where(x < 0, -scale, scale)

  return base.Codec(
    optax.init_empty_state,
    encode,
    decode,
    bits_per_message,
    constrain if plus else _qsgd.constrain,
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
