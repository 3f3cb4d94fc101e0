"""Normalised gradient ascent that keeps the best point seen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base, reductions

# `rows -> (value [], direction like rows, squared length of it per row [n])`
Slope = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def slope_of(
  objective: Callable[[jax.Array], jax.Array],
  *,
  axis_name: base.AxisName = None,
) -> Slope:
  """The gradient of an objective of rows [n, d], and its length per row."""

  def slope(rows):
    value, gradient = jax.value_and_grad(objective)(rows)
    return (
      value,
      gradient,
      reductions.squared_norms(gradient, axis_name=axis_name),
    )

  return slope


def ascend(
  slope: Slope,
  rows: jax.Array,
  *,
  num_steps: int,
  step_size: base.Scalar,
  movable: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Moves rows uphill, each by the same length along its own gradient.

  `x_i <- x_i + eta_t g_i / |g_i|` for t = 0 ... T - 1, with `eta_t = eta (1 -
  t/T)`; rows whose gradient is zero, or not finite, stay.

  Args:
    slope: of the objective; see `slope_of`.
    rows: float[n, ...], where to start.
    num_steps: T, a Python int.
    step_size: eta, in the units of the rows.
    movable: bool[n], the rows that may move.

  Returns:
    The best rows seen, the first ones and the last among them, and their value.
  """

  def step(carry, t):
    rows, best_rows, best_value = carry
    value, direction, squared = slope(rows)
    better = value > best_value  # False for NaN
    best_rows = jnp.where(better, rows, best_rows)
    best_value = jnp.where(better, value, best_value)
    moves = movable & jnp.isfinite(squared) & (squared > 0)
    length = step_size * (1 - t / num_steps)
    factors = length / reductions.sqrt(jnp.where(moves, squared, 1))
    moved = rows + jnp.where(moves[:, None], factors[:, None] * direction, 0)
    return (moved.astype(rows.dtype), best_rows, best_value), None

  lowest = jnp.array(-jnp.inf, rows.dtype)
  # One step more than there are: its move is of length zero.
  (_, best_rows, best_value), _ = jax.lax.scan(
    step, (rows, rows, lowest), jnp.arange(num_steps + 1)
  )
  return best_rows, best_value
