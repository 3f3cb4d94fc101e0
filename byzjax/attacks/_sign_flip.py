"""Sign flipping: the negative of the honest mean or of the own message."""

import jax
import optax

from byzjax._src import base, checks, recipes
from byzjax.attacks import _inner_product_manipulation, _message


@recipes.factory
def sign_flip(*, scale: base.Scalar = 1.0, own: bool = False) -> base.Attack:
  """Byzantine workers send a negative multiple of a mean or of their message.

  `x_b = -scale mu`, mu the mean of the honest messages (ByzFL; krum), or with
  `own=True` `x_b = -scale x_b`, of what the worker itself computed ("bit flip"
  of the official code of centered clipping with scale 1; Blades and ByzPy). The
  first form equals `inner_product_manipulation` and is usually called sign
  flipping for scales of 1 and more.

  Args:
    scale: factor; 1 flips the sign, 10 and 100 are the "reverse" attacks of
      ByzSGDnm and DETOX; may be traced.
    own: whether each Byzantine worker negates its own message.

  Returns:
    An `Attack` without state: `[n, ...] -> [n, ...]`, dtypes kept.

  Raises:
    ValueError: at trace time, if `is_byzantine` is not bool[n].

  References:
    Li, Xu, Chen, Giannakis, Ling, 2019, arXiv:1811.03761.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> attack = byzjax.sign_flip(scale=10.0)
    >>> messages, _ = attack.apply(
    ...   jnp.array([[7., 7.], [1., 2.], [3., 4.]]), attack.init(None),
    ...   is_byzantine=jnp.array([True, False, False]))
    >>> messages[0]
    Array([-20., -30.], dtype=float32)
  """
  checks.check_range('sign_flip', 'scale', scale)
  checks.check_flag('sign_flip', 'own', own)
  if not own:
    return _inner_product_manipulation.inner_product_manipulation(epsilon=scale)

  def apply(
    messages, state, *, is_byzantine, key=None, axis_name=None, **knowledge
  ):
    del key, axis_name, knowledge
    is_byzantine = _message.mask_of('sign_flip', messages, is_byzantine)
    flipped = jax.tree.map(lambda x: -scale * x, messages)
    return _message.overwrite(messages, flipped, is_byzantine), state

  return base.Attack(optax.init_empty_state, apply)
