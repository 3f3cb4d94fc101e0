"""Gaussian noise in place of the message."""

import jax

from byzjax._src import base, checks, recipes
from byzjax.attacks import _message


@recipes.factory
def gaussian(*, std: base.Scalar = 1.0, mean: base.Scalar = 0.0) -> base.Attack:
  """Each Byzantine worker sends its own Gaussian noise, independent of data.

  `x_b ~ N(mean, std^2 I)`, redrawn for each Byzantine worker and round. (In
  ByzFL all of them send one common draw.)

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
  checks.check_range('gaussian', 'std', std, 0)
  checks.check_range('gaussian', 'mean', mean)

  def send(view, state):
    _message.require_key('gaussian', view.key)

    def row(worker):
      noise = _message.draw_row(jax.random.normal, view, worker)
      return mean + std * noise

    return row, state

  return _message.from_rows('gaussian', send)
