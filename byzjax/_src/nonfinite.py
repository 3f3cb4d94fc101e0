"""Masks NaN and inf: every rule leaves such messages out."""

import jax
import jax.numpy as jnp

from byzjax._src import base, flat, reductions


def usable_norms(squared_norms: jax.Array) -> jax.Array:
  """Which rows may enter a distance: `[n] -> bool[n]`.

  A row is left out when its squared norm is not finite, or so large that sums
  of a few distances would overflow: beyond 2^-24 of the largest number, which
  in float32 is a norm of 4.5e15.
  """
  limit = jnp.finfo(squared_norms.dtype).max * 2.0**-24
  return squared_norms <= limit  # False for NaN


def usable_weights(weights: jax.Array) -> jax.Array:
  """Workers' weights with a finite sum: float[n] -> float[n].

  Zero for invalid weights: negative, NaN or inf. Scaled by a power of two if
  the sum could over- or underflow; only ratios matter.
  """
  info = jnp.finfo(weights.dtype)
  weights = jnp.where(jnp.isfinite(weights) & (weights > 0), weights, 0)
  largest = weights.max()
  room = 2.0**24  # of so many workers
  scale = jnp.where(largest > info.max / room, 1 / room, 1)
  scale = jnp.where(largest < info.tiny * room, room, scale)
  return weights * scale.astype(weights.dtype)


def sanitize(messages: base.Messages) -> tuple[base.Messages, jax.Array]:
  """Masks messages with a non-finite entry, and sets them to zero.

  `x_i <- 0` and `mask_i = False` if any entry of message i is NaN or inf. The
  rules of byzjax already do this; use it in your own rules.

  Args:
    messages: pytree with leaves `[n, *param_shape]`, any float dtype.

  Returns:
    The messages with those rows zeroed (same shapes and dtypes), and the mask
    bool[n], True for the rows that are unchanged.

  Raises:
    ValueError: if the leaves do not share their leading axis.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.sanitize(jnp.array([[1., 2.], [jnp.nan, 3.]]))
    (Array([[1., 2.],
           [0., 0.]], dtype=float32), Array([ True, False], dtype=bool))
  """
  x, layout = flat.ravel_rows('sanitize', messages)
  mask = reductions.finite_rows(x)
  return layout.unravel_rows(jnp.where(mask[:, None], x, 0)), mask
