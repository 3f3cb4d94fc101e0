"""A random sign in every coordinate."""

import jax

from byzjax._src import base, checks, recipes
from byzjax.attacks import _message


@recipes.factory
def random_signs(*, scale: base.Scalar = 1.0) -> base.Attack:
  """Each Byzantine worker sends its own random signs, independent of all data.

  `x_b[j]` is `scale` or `-scale` with probability 1/2 each, redrawn for each
  Byzantine worker and round: an adversary of a majority vote that has no
  information.

  Args:
    scale: size of every entry; may be traced.

  Returns:
    An `Attack` without state that needs a `key`: `[n, ...] -> [n, ...]`, dtypes
    kept. The draw for worker i depends on the key and on i only, not on the
    number of devices.

  Raises:
    ValueError: at trace time, if `is_byzantine` is not bool[n] or no key is
      given.

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> attack = byzjax.random_signs(scale=3.0)
    >>> messages, _ = attack.apply(
    ...   jnp.ones([2, 5]), attack.init(None), key=jax.random.key(0),
    ...   is_byzantine=jnp.array([True, False]))
    >>> abs(messages[0])
    Array([3., 3., 3., 3., 3.], dtype=float32)
  """

  checks.check_range('random_signs', 'scale', scale)

  def send(view, state):
    _message.require_key('random_signs', view.key)

    def row(worker):
      return scale * _message.draw_row(jax.random.rademacher, view, worker)

    return row, state

  return _message.from_rows('random_signs', send)
