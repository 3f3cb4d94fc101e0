"""Gaussian noise instead of a message."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, flat
from byzjax.attacks import _message

# Coordinates drawn from one key. A shard of padded coordinates is a multiple of
# it, so the draw does not depend on how the coordinates are split.
_BLOCK = 32


def gaussian(*, std: base.Scalar = 1.0, mean: base.Scalar = 0.0) -> base.Attack:
  """Every attacker sends noise of its own, independent of all data.

  `x_b ~ N(mean, std^2 I)`, drawn anew for each attacker and round. (ByzFL sends
  one draw from all attackers.)

  Args:
    std: standard deviation of each coordinate, >= 0; may be traced.
    mean: mean of each coordinate; may be traced.

  Returns:
    An `Attack` without state that needs a `key`: `[n, ...] -> [n, ...]`, dtypes
    kept. The draw for worker i depends on the key and on i only, not on the
    number of devices.

  Raises:
    ValueError: if std is negative; at trace time, if `is_byzantine` is not
      bool[n] or no key is given.

  References:
    Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, arXiv:1703.02757.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> attack = byzjax.gaussian(std=200.0)
    >>> messages, _ = attack.apply(
    ...   jnp.ones([2, 3]), attack.init(None), key=jax.random.key(0),
    ...   is_byzantine=jnp.array([True, False]))
    >>> messages[1]
    Array([1., 1., 1.], dtype=float32)
  """
  base.check_range('gaussian', 'std', std, 0)

  def apply(
    messages, state, *, is_byzantine, key=None, axis_name=None, **knowledge
  ):
    del knowledge
    n = _message.check_mask('gaussian', messages, is_byzantine)
    if key is None:
      raise ValueError('gaussian needs a key to draw its noise, got None')
    x, layout = flat.ravel_rows('gaussian', messages)
    noise = _normal_rows(key, n, x.shape[1], x.dtype, axis_name)
    noise = layout.unravel_rows(mean + std * noise)
    return _message.overwrite(messages, noise, is_byzantine), state

  return base.Attack(optax.init_empty_state, apply)


def _normal_rows(key, n, d, dtype, axis_name):
  """N(0, 1) for [n, d], block by block from (worker, global block number)."""
  num_blocks = -(-d // _BLOCK)
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_blocks

  def block(worker_key, index):
    block_key = jax.random.fold_in(worker_key, index)
    return jax.random.normal(block_key, (_BLOCK,), dtype)

  def row(worker):
    worker_key = jax.random.fold_in(key, worker)
    indices = first + jnp.arange(num_blocks)
    return jax.vmap(block, (None, 0))(worker_key, indices).reshape(-1)[:d]

  return jax.vmap(row)(jnp.arange(n))
