"""The same number in every coordinate, possibly NaN or inf."""

import jax.numpy as jnp

from byzjax._src import base, checks, recipes
from byzjax.attacks import _message


@recipes.factory
def constant(*, value: base.Scalar = -100.0) -> base.Attack:
  """Byzantine workers send the same number in every coordinate.

  `x_b[j] = value`. With `jnp.nan` or `jnp.inf` it models faulty workers, the
  failures most common in practice.

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

  def row(view, state):
    return jnp.full_like(view.x[0], value), state

  return _message.from_view('constant', row)
