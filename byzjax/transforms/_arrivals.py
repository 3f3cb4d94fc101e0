"""What transforms of single messages share: their extra arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base


def require(name: str, **arguments: Any) -> None:
  """Raises ValueError for the arguments of `update` that are None."""
  for argument, value in arguments.items():
    if value is None:
      raise ValueError(
        f'{name} needs {argument} in update, got None: asynchronous_round'
        ' passes it; pass it yourself in your own training loop'
      )


def update_if(
  accepted: jax.Array,
  inner: optax.GradientTransformationExtraArgs,
  updates: base.Params,
  state: optax.OptState,
  params: base.Params | None,
  **extra: Any,
) -> tuple[base.Params, optax.OptState]:
  """`inner.update`, or updates of zero and the state itself."""
  # Nothing of a rejected message is computed with, not even in vain.
  updates = jax.tree.map(lambda g: jnp.where(accepted, g, 0), updates)
  updates, new_state = inner.update(updates, state, params, **extra)
  updates = jax.tree.map(lambda u: jnp.where(accepted, u, 0), updates)
  state = jax.tree.map(
    lambda new, old: jnp.where(accepted, new, old), new_state, state
  )
  return updates, state
