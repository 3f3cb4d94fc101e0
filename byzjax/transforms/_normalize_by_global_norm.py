"""Normalised steps: the direction of the update, with length one."""

import jax
import jax.numpy as jnp
import optax


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
    # Scaling by the largest entry first keeps the squares from under- and
    # overflowing.
    largest = optax.tree.norm(updates, ord=jnp.inf)
    safe = jnp.where(largest > 0, largest, 1)
    scaled = jax.tree.map(lambda u: u / safe.astype(u.dtype), updates)
    norm = optax.tree.norm(scaled)
    safe_norm = jnp.where(norm > 0, norm, 1)
    return jax.tree.map(lambda u: u / safe_norm.astype(u.dtype), scaled), state

  return optax.GradientTransformation(optax.init_empty_state, update_fn)
