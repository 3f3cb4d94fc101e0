"""One number in every coordinate, NaN and inf included."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, recipes
from byzjax.attacks import _message


@recipes.factory
def constant(*, value: base.Scalar = -100.0) -> base.Attack:
  """All attackers send the same number in every coordinate.

  `x_b[j] = value`. `jnp.nan` and `jnp.inf` are the attacks that a server meets
  first in practice.

  Args:
    value: any float, finite or not; DETOX uses -100; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: at trace time, if `is_byzantine` is not bool[n].

  References:
    Rajput, Wang, Charles, Papailiopoulos, 2019, arXiv:1907.12205.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.constant(value=jnp.nan)
    >>> messages, _ = attack.apply(
    ...   jnp.ones([2, 3]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False]))
    >>> messages
    Array([[nan, nan, nan],
           [ 1.,  1.,  1.]], dtype=float32)
  """

  checks.check_real('constant', 'value', value)

  def apply(
    messages, state, *, is_byzantine, key=None, axis_name=None, **knowledge
  ):
    del key, axis_name, knowledge
    is_byzantine = _message.mask_of('constant', messages, is_byzantine)
    filled = jax.tree.map(lambda x: jnp.full_like(x[:1], value), messages)
    return _message.overwrite(messages, filled, is_byzantine), state

  return base.Attack(optax.init_empty_state, apply)
