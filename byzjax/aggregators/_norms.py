"""Norms of which some are masked: their median, and clipping to it."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks

MIDDLES = ('mean', 'lower')


def check_middle(name: str, middle: str) -> None:
  """Raises ValueError unless it is 'mean' or 'lower'."""
  checks.check_choice(name, 'middle', middle, MIDDLES)


def median(x: jax.Array, mask: jax.Array, middle: str = 'mean') -> jax.Array:
  """The median of x where the mask is: float[n] -> []; 0 if it is nowhere."""
  ordered, count = jnp.sort(jnp.where(mask, x, jnp.inf)), mask.sum()
  lower = ordered[jnp.maximum(count - 1, 0) // 2]
  upper = ordered[jnp.minimum(count // 2, len(x) - 1)]
  between = lower if middle == 'lower' else lower + (upper - lower) / 2
  return jnp.where(count > 0, between, 0)


def clip_factors(
  norms: jax.Array, mask: jax.Array, limit: base.Scalar
) -> jax.Array:
  """`min(1, limit / |x_i|)`: float[n]; 1 for zero, 0 where masked."""
  longer = norms > limit
  factors = jnp.where(longer, limit / jnp.where(longer, norms, 1), 1)
  return jnp.where(mask, factors, 0)
