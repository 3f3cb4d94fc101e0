"""The vote that harms a majority vote most."""

import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions
from byzjax.attacks import _message


@recipes.factory
def flip_vote(*, scale: base.Scalar = 1.0) -> base.Attack:
  """Byzantine workers vote against the majority of the honest signs.

  `x_b[j] = -scale sign(sum_i sign(x_i[j]))` over honest i. A majority vote on
  signs changes in every coordinate in which the honest votes differ by less
  than f, which is the most that f votes can achieve. If the honest votes tie,
  it is `-scale sign(mu[j])`, opposite to the honest mean mu.

  Args:
    scale: size of every entry, for rules that depend on it; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: at trace time, if `is_byzantine` is not bool[n].

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291, for
    the vote; its theory covers workers that negate their own signs only.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.flip_vote()
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7., 7.], [1., -2.], [3., -4.], [-9., 5.]]),
    ...   attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False, False]))
    >>> messages[0]
    Array([-1.,  1.], dtype=float32)
  """

  checks.check_range('flip_vote', 'scale', scale)

  def row(view):
    ones = view.is_honest.astype(view.x.dtype)
    votes = reductions.weighted_sum(ones, view.x, jnp.sign)
    mean = _message.mean_of(view)
    return -scale * jnp.sign(jnp.where(votes == 0, mean, votes))

  return _message.from_honest('flip_vote', row)
