"""Values just beyond the honest range, on the wrong side, per coordinate."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions
from byzjax.attacks import _message


@recipes.factory
def fang(*, scale: base.Scalar = 2.0) -> base.Attack:
  """Values beyond the honest range, opposite to the mean, in every coordinate.

  If the honest mean of a coordinate is positive, each Byzantine worker draws a
  value below the honest minimum l, uniform between l and `b l` (between l and
  `l / b` for positive l); otherwise above the maximum u, between u and `b u`
  (`u / b` for negative u). This moves the trimmed mean and the median as far
  within the honest values as f such values can.

  The paper takes the sign of the change of the model; with gradients or momenta
  as messages that is the sign of the honest mean.

  Args:
    scale: b >= 1, how far beyond the range; 2 in the paper; may be traced.

  Returns:
    An `Attack` without state that needs a `key`: `[n, ...] -> [n, ...]`, dtypes
    kept. The draw for worker i depends on the key and on i only.

  Raises:
    ValueError: if `scale < 1`; at trace time, if `is_byzantine` is not bool[n]
      or no key is given.

  References:
    Fang, Cao, Jia, Gong, 2020, arXiv:1911.11815.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> attack = byzjax.fang(scale=1.0)  # at the ends themselves
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7., 7.], [1., -2.], [3., 1.]]), attack.init(None),
    ...   key=jax.random.key(0), is_byzantine=jnp.array([True, False, False]))
    >>> messages[0]
    Array([1., 1.], dtype=float32)
  """
  checks.check_range('fang', 'scale', scale, 1)

  def send(view, state):
    _message.require_key('fang', view.key)
    mean = _message.mean_of(view)
    low, high = _extremes(view.x, view.is_honest)
    near = jnp.where(mean > 0, low, high)
    outwards = (near > 0) == (mean <= 0)  # away from zero
    far = jnp.where(outwards, scale * near, near / scale)

    def row(worker):
      share = _message.draw_row(jax.random.uniform, view, worker)
      return near + share * (far - near)

    return row, state

  return _message.from_rows('fang', send)


def _extremes(x, mask):
  """The least and the largest entry of every column where `mask`: [d], [d]."""

  def fold(i, ends):
    row, (low, high) = x[i], ends
    low = jnp.where(mask[i] & (row < low), row, low)
    return low, jnp.where(mask[i] & (row > high), row, high)

  ends = (
    jnp.where(mask[0], x[0], jnp.inf),
    jnp.where(mask[0], x[0], -jnp.inf),
  )
  n = x.shape[0]
  if n <= reductions.MAX_UNROLLED:
    for i in range(1, n):
      ends = fold(i, ends)
  else:
    ends = jax.lax.fori_loop(1, n, fold, ends)
  return tuple(jnp.where(jnp.any(mask), end, 0) for end in ends)
