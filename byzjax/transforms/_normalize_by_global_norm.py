"""Normalised steps: the update divided by its norm."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import flat


def normalize_by_global_norm() -> optax.GradientTransformation:
  """Divides the update by its norm over the whole model.

  `u <- u / |u|`, one norm for all leaves (ByzSGDnm explicitly does not use one
  per layer), and zero where `u = 0`. Nothing is added to the norm, so every
  non-zero step has length one exactly.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  References:
    Yang, Shi, Li, 2023, arXiv:2305.13856.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.normalize_by_global_norm()
    >>> tx.update(jnp.array([3., 4.]), tx.init(None))[0]
    Array([0.6, 0.8], dtype=float32)
  """

  def update_fn(updates, state, params=None):
    del params
    # Of the largest and smallest numbers the squares, and the inverse of the
    # norm, would over- and underflow; a constant factor keeps them in range.
    largest = optax.tree.norm(updates, ord=jnp.inf)
    factor = jnp.where(
      largest > 1e12, 1e-25, jnp.where(largest < 1e-12, 1e25, 1)
    )
    scaled = jax.tree.map(
      lambda u: u.astype(flat.compute_dtype(u)) * factor, updates
    )
    norm = optax.tree.norm(scaled)
    safe_norm = jnp.where(norm > 0, norm, 1)
    updates = jax.tree.map(
      lambda s, u: (s / safe_norm).astype(u.dtype), scaled, updates
    )
    return updates, state

  return optax.GradientTransformation(optax.init_empty_state, update_fn)
