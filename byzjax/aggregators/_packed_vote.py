"""The majority vote on packed signs: 32 coordinates in one instruction."""

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, reductions


def vote_words(words: jax.Array) -> jax.Array:
  """The majority of every bit: `uint32[n, W] -> uint32[W]`.

  A bit of the result is 1 if more than n / 2 of the n are: a tie gives 0, the
  code of +1.
  """
  n = words.shape[0]
  return _at_least(_count(list(words)), n // 2 + 1)


def inspect_words(
  words: jax.Array,
  *,
  is_byzantine: jax.Array,
  axis_name: base.AxisName = None,
) -> tuple[jax.Array, base.AggregationInfo]:
  """The vote and what a round reports of it, without unpacking.

  Args:
    words: uint32[n, W], signs of the local coordinates; zeros where they are
      padding.
    is_byzantine: bool[n].
    axis_name: mesh axes over which the coordinates are split.

  Returns:
    uint32[W], and an info with the mask (every sign is finite) and the error.
  """
  vote = vote_words(words)
  honest = jnp.where(is_byzantine, 0, ~jnp.zeros((), words.dtype))
  # The mean of h signs is off from the vote by 2 / h for each of them that
  # dissents.
  dissent = _count([(row ^ vote) & mask for row, mask in zip(words, honest)])
  squares = sum(
    (lax.population_count(a & b) << (i + j)).astype(jnp.float32)
    for i, a in enumerate(dissent)
    for j, b in enumerate(dissent)
  )
  total = reductions.psum(jnp.sum(squares), axis_name)
  num_honest = jnp.maximum(jnp.sum(~is_byzantine), 1)
  error = 2 / num_honest * reductions.sqrt(total)
  mask = jnp.ones(words.shape[0], bool)
  return vote, base.AggregationInfo(mask=mask, error=error)


def _count(rows: list[jax.Array]) -> list[jax.Array]:
  """How many rows have each bit, as binary digits: lowest first."""
  digits: list[jax.Array] = []
  for number, row in enumerate(rows, 1):
    carry = row
    for i, digit in enumerate(digits):
      digits[i], carry = digit ^ carry, digit & carry
    if number.bit_length() > len(digits):
      digits.append(carry)
  return digits


def _at_least(digits: list[jax.Array], threshold: int) -> jax.Array:
  """Where the number is at least `threshold`, bit by bit."""
  greater, equal = jnp.zeros_like(digits[0]), ~jnp.zeros_like(digits[0])
  for i, digit in reversed(list(enumerate(digits))):
    if threshold >> i & 1:
      equal &= digit
    else:
      greater |= equal & digit
      equal &= ~digit
  return greater | equal
