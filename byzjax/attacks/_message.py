"""What every attack on messages is made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, flat, reductions


def overwrite(
  messages: base.Messages, malicious: base.Messages, is_byzantine: jax.Array
) -> base.Messages:
  """Honest rows as they are, Byzantine rows from `malicious` ([n or 1, ..])."""

  def leaf(x, bad):
    mask = is_byzantine.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(mask, bad.astype(x.dtype), x)

  return jax.tree.map(leaf, messages, malicious)


def check_mask(
  attack: str, messages: base.Messages, is_byzantine: jax.Array
) -> int:
  """Raises ValueError unless the mask is bool[n]; returns n."""
  n = base.num_workers(f'{attack}: messages', messages)
  shape, dtype = jnp.shape(is_byzantine), jnp.result_type(is_byzantine)
  if shape != (n,) or dtype != jnp.bool_:
    raise ValueError(
      f'{attack} needs is_byzantine to be bool[{n}], one entry per message, got'
      f' {dtype}{list(shape)}'
    )
  return n


def from_honest(
  name: str, vector_fn: Callable[[jax.Array, jax.Array], jax.Array]
) -> base.Attack:
  """An attack whose rows are all one function of the honest messages.

  Args:
    name: of the attack, for errors.
    vector_fn: `(x float[n, d], is_honest bool[n]) -> float[d]`, coordinate by
      coordinate; the rows where `is_honest` is False must not be read. Honest
      messages with a NaN or inf are left out like the Byzantine ones: one of
      them would turn the attack into a NaN that every rule masks.

  Returns:
    The attack, without state.
  """

  def apply(
    messages, state, *, is_byzantine, key=None, axis_name=None, **knowledge
  ):
    del key, knowledge
    check_mask(name, messages, is_byzantine)
    x, layout = flat.ravel_rows(name, messages)
    finite = reductions.finite_rows(x, axis_name=axis_name)
    vector = vector_fn(x, ~is_byzantine & finite)
    return layout.unravel_rows(_replace_rows(x, vector, is_byzantine)), state

  return base.Attack(optax.init_empty_state, apply)


def _replace_rows(x: jax.Array, row: jax.Array, mask: jax.Array) -> jax.Array:
  """`[n, d]` with one row [d] in place of the rows where `mask`."""
  if jax.default_backend() != 'cpu':
    return jnp.where(mask[:, None], row[None], x)

  # XLA:CPU would fuse the computation of the row into one select, and so do it
  # n times; it cannot fuse it into a loop.
  def replace(i, x):
    old = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    new = jnp.where(mask[i], row.astype(x.dtype), old)
    return jax.lax.dynamic_update_index_in_dim(x, new, i, 0)

  return jax.lax.fori_loop(0, x.shape[0], replace, x)
