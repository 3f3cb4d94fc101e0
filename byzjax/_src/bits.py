"""Packs one bit per coordinate: 32 consecutive coordinates are one word."""

import math

import jax
import jax.numpy as jnp
from jax import lax

WORD = 32
_LOG_GOLDEN = math.log((math.sqrt(5) - 1) / 2)  # of the golden ratio, minus one


def pack(bits: jax.Array) -> jax.Array:
  """`bool[..., d] -> uint32[..., ceil(d / 32)]`, lowest bit first."""
  *lead, d = bits.shape
  padding = [(0, 0)] * len(lead) + [(0, -d % WORD)]
  words = jnp.pad(bits, padding).reshape(*lead, -1, WORD)
  return jnp.sum(
    words.astype(jnp.uint32) << _shifts(words.ndim), -1, dtype=jnp.uint32
  )


def unpack(words: jax.Array, size: int | None = None) -> jax.Array:
  """`uint32[..., w] -> bool[..., size]`, all 32 w of them by default."""
  bits = (words[..., None] >> _shifts(words.ndim + 1)) & 1
  return bits.reshape(*words.shape[:-1], -1)[..., :size].astype(bool)


def _shifts(ndim: int) -> jax.Array:
  return jnp.arange(WORD, dtype=jnp.uint32).reshape((1,) * (ndim - 1) + (-1,))


def pack_ternary(x: jax.Array) -> jax.Array:
  """The signs of x, and zeros: `float[D] -> uint32[2, D / 32]`."""
  return jnp.stack([pack(x < 0), pack((x < 0) | (x > 0))])


def unpack_ternary(planes: jax.Array) -> jax.Array:
  """`uint32[2, w] -> float32[32 w]`, entries -1, 0 or 1."""
  negative, nonzero = unpack(planes)
  return jnp.where(nonzero, jnp.where(negative, -1.0, 1.0), 0.0)


def rice_parameter(density: jax.Array) -> jax.Array:
  """The Golomb-Rice parameter b for a share s of nonzero entries.

  `b = 1 + floor(log2(log(phi - 1) / log(1 - s)))`, phi the golden ratio, and at
  least 0: int32.
  """
  safe = jnp.clip(density, 1e-9, 1 - 1e-7)
  b = 1 + jnp.floor(jnp.log2(_LOG_GOLDEN / jnp.log1p(-safe)))
  return jnp.maximum(b, 0).astype(jnp.int32)


def ternary_bits(planes: jax.Array, num_coordinates: int) -> jax.Array:
  """The length of a ternary message by Golomb-Rice coding: float32[].

  A header of `ceil(log2(d + 1))` bits has the number of nonzero entries, from
  which the parameter b follows. Each of them then takes `floor(gap / 2^b) + 1 +
  b` bits, where gap is the number of zeros before it, and a sign bit.
  """
  header = num_coordinates.bit_length()
  words = planes[1]
  count = jnp.sum(lax.population_count(words), dtype=jnp.int32)
  b = rice_parameter(count / num_coordinates)
  # Word by word: a scan over all coordinates would take far longer.
  first = WORD * jnp.arange(words.size, dtype=jnp.int32)
  highest = first + WORD - 1 - lax.clz(words).astype(jnp.int32)
  last = lax.cummax(jnp.where(words != 0, highest, -1))
  last = jnp.concatenate([jnp.full(1, -1, jnp.int32), last[:-1]])
  unary = jnp.zeros_like(last)
  for j in range(WORD):
    nonzero = (words >> j) & 1 == 1
    unary += jnp.where(nonzero, (first + j - last - 1) >> b, 0)
    last = jnp.where(nonzero, first + j, last)
  total = header + jnp.sum(unary) + count * (1 + b + 1)
  return total.astype(jnp.float32)
