"""Order statistics over more workers than a sorting network can take.

By bisection: the bits of the answer one after the other, from the first on, and
for each a pass over the messages that weighs what is not above. That is as many
passes as a number has bits, whatever the number of workers, in no memory;
sorting takes ten times as long.
"""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, sorting

Test = Callable[[jax.Array], jax.Array]  # a row [d] -> bool[d]


def middles(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The two middle values of every column of `[n, d]`, by weight: [d] each.

  One value twice, unless the weights of the values up to one come to exactly
  half of all.
  """

  low = least_key(lambda key: operator.ge(*_masses(x, weights, key)), x[0])
  next_key = _next_key(x, weights, low)
  high = jnp.where(operator.gt(*_masses(x, weights, low)), low, next_key)
  return _value(x, weights, low), _value(x, weights, high)


def trimmed_mean(
  x: jax.Array, weights: jax.Array, trimmed: base.Scalar, least: base.Scalar
) -> tuple[jax.Array, jax.Array]:
  """The mean of every column without the mass `trimmed` on both sides.

  Args:
    x: float[n, d].
    weights: float[n], not negative.
    trimmed: float[], the mass.
    least: float[], what of a weight does not count as anything.

  Returns:
    The mean, and what is left to average, both [d]; zero where that is nothing.
  """

  def upto(key):
    return _masses(x, weights, key)[0]

  def above(key):
    return _masses(x, weights, key)[1]

  low = least_key(lambda key: upto(key) - trimmed > least, x[0])
  high = least_key(lambda key: above(key) - trimmed <= least, x[0])

  def inside(row):
    return (sorting.key(row) > low) & (sorting.key(row) < high)

  at_low, at_high = upto(low) - trimmed, above(high - 1) - trimmed
  left = _mass(x, weights, inside) + at_low + at_high
  (total,) = _sum(
    x, lambda row, i: (weights[i] * jnp.where(inside(row), row, 0),)
  )
  low_value, high_value = _value(x, weights, low), _value(x, weights, high)
  total += at_low * low_value + at_high * high_value
  # Between two masses that meet in one value, nothing else is left.
  mean = jnp.where(low == high, low_value, total / left)
  return jnp.where(low <= high, mean, 0), jnp.where(low <= high, left, 0)


def mean_around(
  x: jax.Array, count: int, low: jax.Array, high: jax.Array
) -> jax.Array:
  """The mean of the `count` values of a column closest to `(low + high) / 2`.

  Of equally distant ones those below come first.
  """
  everyone = jnp.ones(x.shape[0], x.dtype)

  def distance(row):
    return jnp.where(row <= low, low - row, row - high)

  def upto(key):
    return _mass(x, everyone, lambda row: sorting.key(distance(row)) <= key)

  radius = least_key(lambda key: upto(key) >= count, x[0])

  def sum_of(test):
    (total,) = _sum(x, lambda row, _: (jnp.where(test(row), row, 0),))
    return total, _mass(x, everyone, test)

  def at_radius(row):
    return sorting.key(distance(row)) == radius

  inner, number = sum_of(lambda row: sorting.key(distance(row)) < radius)
  below, number_below = sum_of(lambda row: at_radius(row) & (row <= low))
  above, number_above = sum_of(lambda row: at_radius(row) & (row > low))
  from_below = jnp.minimum(count - number, number_below)
  from_above = count - number - from_below
  return (
    inner
    + below * (from_below / jnp.maximum(number_below, 1))
    + above * (from_above / jnp.maximum(number_above, 1))
  ) / count


def _sum(
  x: jax.Array,
  of: Callable[[jax.Array, int | jax.Array], tuple[jax.Array, ...]],
) -> tuple[jax.Array, ...]:
  """`sum_i of(x_i, i)`, not unrolled: many passes would compile for long."""

  def add(i, total):
    more = of(lax.dynamic_index_in_dim(x, i, keepdims=False), i)
    return tuple(a + b for a, b in zip(total, more))

  # The first row stands outside of the loop: under shard_map the carry then has
  # the varying type that the body gives it.
  return lax.fori_loop(1, x.shape[0], add, of(x[0], 0))


def _mass(x: jax.Array, weights: jax.Array, test: Test) -> jax.Array:
  """What the rows weigh for which a test holds: [d]."""
  weights = lax.stop_gradient(weights)
  (mass,) = _sum(
    lax.stop_gradient(x), lambda row, i: (jnp.where(test(row), weights[i], 0),)
  )
  return mass


def _masses(
  x: jax.Array, weights: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What the rows weigh that are not above a key, and those that are: [d]."""
  weights = lax.stop_gradient(weights)

  def split(row, i):
    upto = sorting.key(row) <= key
    return jnp.where(upto, weights[i], 0), jnp.where(upto, 0, weights[i])

  upto, above = _sum(lax.stop_gradient(x), split)
  return upto, above


def least_key(
  holds: Callable[[jax.Array], jax.Array], like: jax.Array
) -> jax.Array:
  """The least key for which a test holds that holds for all greater ones.

  `holds: int[*shape] -> bool[*shape]`, of one test per number of `like`, whose
  shape and dtype alone matter.
  """
  key = sorting.key(lax.stop_gradient(like))
  bits = 8 * key.dtype.itemsize
  lowest = jnp.iinfo(key.dtype).min

  def find_bit(i, found):
    # Counted from the lowest key on: the first bit is the sign.
    # With x64 the number of an iteration is wider than a key of float32.
    place = jnp.asarray(bits - 1 - i, key.dtype)
    bit = lax.shift_left(jnp.ones((), key.dtype), place)
    candidate = found ^ bit
    return jnp.where(holds(candidate - 1), found, candidate)

  # The first bit stands outside of the loop: under shard_map the carry then has
  # the varying type that the body gives it.
  found = find_bit(0, jnp.full_like(key, lowest))
  return lax.fori_loop(1, bits, find_bit, found)


def _next_key(x: jax.Array, weights: jax.Array, key: jax.Array) -> jax.Array:
  """The least key above a key among the rows that have a weight."""
  keys = sorting.key(lax.stop_gradient(x))
  above = (keys > key[None]) & (weights > 0)[:, None]
  return jnp.where(above, keys, jnp.iinfo(keys.dtype).max).min(axis=0)


def _value(x: jax.Array, weights: jax.Array, key: jax.Array) -> jax.Array:
  """The value of a key: that of the last row of a weight that has it."""

  def choose(i, value):
    row = lax.dynamic_index_in_dim(x, i, keepdims=False)
    same = (sorting.key(row) == key) & (weights[i] > 0)
    return jnp.where(same, row, value)

  return lax.fori_loop(1, x.shape[0], choose, x[0])
