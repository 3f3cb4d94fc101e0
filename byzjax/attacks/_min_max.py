"""Min-max and min-sum: far from the mean, but within honest distances."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions
from byzjax.attacks import _message

_DEVIATIONS = ('std', 'unit', 'sign')


@recipes.factory
def min_max(
  *,
  deviation: str = 'std',
  ddof: int = 1,
  max_gamma: base.Scalar | None = None,
) -> base.Attack:
  """The farthest message within the largest distance of honest ones (Min-Max).

  `x_b = mu - gamma p` with the largest gamma for which `max_i |x_b - x_i|^2 <=
  max_ij |x_i - x_j|^2` over honest i and j; mu is the honest mean and p the
  deviation: their standard deviations s, `mu / |mu|` or `sign(mu)`.

  Each `|mu - gamma p - x_i|^2` is a parabola in gamma that is below the bound
  at 0, so gamma is the smallest of n positive roots, computed exactly. The
  official code halves its steps from 10, so gamma stays below 20
  (`max_gamma=20`), with `mu / |mu|` by default; Blades bisects [0, 5] to 0.01
  (`max_gamma=5`) with s, and may slightly exceed the bound. Both have ddof 1.

  Args:
    deviation: p: 'std' for s, 'unit' for `mu / |mu|` or 'sign' for `sign(mu)`.
    ddof: s divides the squares by (number of honest messages - ddof); 0 or 1.
    max_gamma: the largest gamma, >= 0, or None for no limit; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if
      `is_byzantine` is not bool[n].

  References:
    Shejwalkar, Houmansadr, 2021, NDSS, "Manipulating the Byzantine".

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.min_max()
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7.], [1.], [3.], [5.]]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False, False]))
    >>> messages[0]  # at most 4 away from all
    Array([1.], dtype=float32)
  """

  def length(view, mean, direction):
    gram = reductions.centered_gram(
      view.x, mean, view.is_honest, axis_name=view.axis_name
    )
    squared = jnp.diagonal(gram)
    distances = squared[:, None] + squared[None] - 2 * gram
    both = view.is_honest[:, None] & view.is_honest[None]
    bound = jnp.where(both, distances, 0).max()
    # t^2 - 2 t b_i + |y_i|^2 = bound, with b_i = -p . y_i / |p|.
    y = view.x - mean[None]
    b = -reductions.psum(reductions.matmul(y, direction), view.axis_name)
    b = jnp.where(view.is_honest, b, 0)
    room = jnp.maximum(bound - squared, 0)
    root = reductions.sqrt(b**2 + room)
    # The sum of root and b, without cancellation if b is negative.
    below = root - b
    far = jnp.where(b > 0, b + root, room / jnp.where(below > 0, below, 1))
    return _least(far, view.is_honest)

  return _along_deviation('min_max', deviation, ddof, max_gamma, length)


@recipes.factory
def min_sum(
  *,
  deviation: str = 'std',
  ddof: int = 1,
  bound: str = 'min',
  max_gamma: base.Scalar | None = None,
) -> base.Attack:
  """The farthest message within the sum of honest distances (Min-Sum).

  `x_b = mu - gamma p` as in `min_max`, with the largest gamma for which `sum_i
  |x_b - x_i|^2 <= min_i sum_j |x_i - x_j|^2` over honest i and j. For any point
  y, the sum over h honest messages is that at mu plus `h |y - mu|^2`; so `x_b`
  is as far from mu as the honest message nearest to it.

  The official code takes the minimum, and halves its steps from 10 (see
  `min_max`); the formula in the paper takes the maximum, so that `x_b` is as
  far from mu as the farthest honest message.

  Args:
    deviation: p: 'std' for s, 'unit' for `mu / |mu|` or 'sign' for `sign(mu)`.
    ddof: s divides the squares by (number of honest messages - ddof); 0 or 1.
    bound: 'min' or 'max' over i of the sums of honest messages.
    max_gamma: the largest gamma, >= 0, or None for no limit; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if
      `is_byzantine` is not bool[n].

  References:
    Shejwalkar, Houmansadr, 2021, NDSS, "Manipulating the Byzantine".

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.min_sum()
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7.], [1.], [2.], [4.], [5.]]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False, False, False]))
    >>> messages[0]
    Array([2.], dtype=float32)
  """
  checks.check_choice('min_sum', 'bound', bound, ('min', 'max'))

  def length(view, mean, direction):
    del direction
    squared = reductions.squared_norms(
      view.x, center=mean, axis_name=view.axis_name
    )
    distances = reductions.sqrt(jnp.where(view.is_honest, squared, 0))
    if bound == 'max':
      return distances.max()
    return _least(distances, view.is_honest)

  return _along_deviation('min_sum', deviation, ddof, max_gamma, length)


def _least(values, mask):
  least = jnp.where(mask, values, jnp.inf).min()
  return jnp.where(jnp.any(mask), least, 0)


def _along_deviation(
  name: str,
  deviation: str,
  ddof: int,
  max_gamma: base.Scalar | None,
  length_fn: Callable[[_message.View, jax.Array, jax.Array], jax.Array],
) -> base.Attack:
  """`mu - t p / |p|` with `t = length_fn(view, mu, p / |p|)`."""
  checks.check_choice(name, 'deviation', deviation, _DEVIATIONS)
  _message.check_ddof(name, ddof)
  if max_gamma is not None:
    checks.check_range(name, 'max_gamma', max_gamma, 0)

  def send(view, state):
    mean = _message.mean_of(view)
    if deviation == 'std':
      p = reductions.rows_std(view.x, view.is_honest, mean, ddof=ddof)
    elif deviation == 'unit':
      p = _message.unit(mean, view.axis_name)
    else:
      p = jnp.sign(mean)
    direction = _message.unit(p, view.axis_name)
    length = length_fn(view, mean, direction)
    if max_gamma is not None:
      length = jnp.minimum(length, max_gamma * _message.norm(p, view.axis_name))
    return mean - length.astype(mean.dtype) * direction, state

  return _message.from_view(name, send)
