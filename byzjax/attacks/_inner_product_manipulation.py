"""Inner-product manipulation (IPM): a small step in the opposite direction."""

from byzjax._src import base, checks, recipes
from byzjax.attacks import _message


@recipes.factory
def inner_product_manipulation(*, epsilon: base.Scalar = 0.1) -> base.Attack:
  """Byzantine workers send the negative honest mean, scaled (IPM).

  `x_b = -epsilon mu`, mu the mean of the honest messages. The attack is
  omniscient and aims at a negative inner product of the aggregate and the
  gradient. With a small epsilon the message is close to zero, where median-like
  rules do not reject it; a mean is only shrunk by it.

  Args:
    epsilon: factor, usually 0.1 (the official code of centered clipping); 0.2
      to 10 elsewhere; may be traced.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: at trace time, if `is_byzantine` is not bool[n].

  References:
    Xie, Koyejo, Gupta, 2019, arXiv:1903.03936.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.inner_product_manipulation(epsilon=0.5)
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7., 7.], [1., 2.], [3., 4.]]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False]))
    >>> messages[0]
    Array([-1. , -1.5], dtype=float32)
  """
  checks.check_range('inner_product_manipulation', 'epsilon', epsilon)
  return _message.from_honest(
    'inner_product_manipulation',
    lambda view: -epsilon * _message.mean_of(view),
  )
