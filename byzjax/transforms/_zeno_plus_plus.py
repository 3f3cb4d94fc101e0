"""A filter for single messages: do they point where one's own data do?"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, flat, round_arguments
from byzjax.transforms import _arrivals

_NAME = 'zeno_plus_plus'


class ZenoPlusPlusState(NamedTuple):
  """State of `zeno_plus_plus`."""

  inner: optax.OptState
  root: base.Params  # g, float32 at least
  num_arrivals: jax.Array  # shape=(), dtype=int32
  num_rejected: jax.Array  # shape=(), dtype=int32


def zeno_plus_plus(
  inner: optax.GradientTransformation,
  *,
  root_gradient: Callable[[base.Params, jax.Array], base.Params],
  refresh_every: int = 10,
  penalty: base.Scalar = 0.0,
  tolerance: base.Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
  r"""Takes gradients that agree with the server's own, as Zeno++ does.

  The server has a small clean root data set, and its gradient g there, which is
  computed anew after every `refresh_every` arrivals. A message x first gets the
  length of g, then it is taken if the loss on the root data should fall:

  .. math::
    \tilde x = \frac{|g|}{|x|} x, \qquad
    \text{taken if} \quad \langle g, \tilde x \rangle
      - \rho |\tilde x|^2 + \epsilon \ge 0

  and `inner` gets the rescaled message. As both have one length, this says
  `cos(g, x) >= rho - epsilon / |g|^2`. Workers are judged one by one: their
  number and f are no inputs, and all but one may be Byzantine. What an attacker
  keeps is a step of the length of g, at an angle that the threshold lets pass:
  with rho = epsilon = 0, any angle up to 90 degrees. The root data must stand
  for all data: a class that is not in it is held against those who have it.

  rho is that of the paper divided by the learning rate. The published scripts
  differ: both penalise the length *before* rescaling; that for text only ever
  shortens messages, and adds epsilon without the learning rate.

  A message that is zero or not finite, and every message while the norm of g
  is, is rejected: parameters and the state of `inner` stay.
  `update(updates, state, params)`; further arguments are handed to `inner`.

  Args:
    inner: the optimizer of the messages that are taken.
    root_gradient: `(params, refresh) -> gradient` on root data; `refresh`,
      int32[], counts from 0, to draw another batch each time.
    refresh_every: arrivals that share one g, a Python int >= 1.
    penalty: rho >= 0; may be traced.
    tolerance: epsilon >= 0, in units of `|g|^2`; may be traced.

  Returns:
    An optax transform with a `ZenoPlusPlusState`: memory of one model beside
    that of `inner`.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if params are
      missing or the root gradient has another form than they have.

  References:
    Xie, Koyejo, Gupta, 2020, arXiv:1903.07020.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = byzjax.zeno_plus_plus(
    ...   optax.sgd(0.5), root_gradient=lambda w, refresh: w)
    >>> w = jnp.array([5.])
    >>> state = tx.init(w)
    >>> for message in (1e9 * w, -w):
    ...   update, state = tx.update(message, state, w)
    ...   print(update, state.num_rejected)
    [-2.5] 0
    [0.] 1
  """
  round_arguments.check_transform(_NAME, 'inner', inner)
  checks.check_function(_NAME, 'root_gradient', root_gradient)
  checks.check_count(_NAME, 'refresh_every', refresh_every, 1)
  checks.check_range(_NAME, 'penalty', penalty, 0)
  checks.check_range(_NAME, 'tolerance', tolerance, 0)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    zero = jnp.zeros([], jnp.int32)
    root = jax.tree.map(
      lambda p: jnp.zeros(jnp.shape(p), flat.compute_dtype(p)), params
    )
    # Not the same buffer twice: a state may be donated.
    return ZenoPlusPlusState(
      inner.init(params), root, zero, jnp.zeros_like(zero)
    )

  def update_fn(updates, state, params=None, **extra):
    _arrivals.require(_NAME, params=params)

    def refreshed():
      found = root_gradient(params, state.num_arrivals // refresh_every)
      checks.check_trusted(_NAME, found, params, 'what root_gradient returns')
      return jax.tree.map(lambda g, r: g.astype(r.dtype), found, state.root)

    root = lax.cond(
      state.num_arrivals % refresh_every == 0, refreshed, lambda: state.root
    )
    # Norms in the dtype of g: bfloat16 is too coarse to add squares up.
    message = jax.tree.map(lambda x, r: x.astype(r.dtype), updates, root)
    largest, own = optax.tree.norm(message, ord=jnp.inf), optax.tree.norm(root)
    known = (largest > 0) & (largest < jnp.inf) & (own > 0) & jnp.isfinite(own)
    # Squares of small numbers are lost: the norm of a message that is made of
    # them is too short, and the message would become longer than g.
    message = jax.tree.map(
      lambda x: jnp.where(known, x / jnp.where(known, largest, 1), 0), message
    )
    factor = own / jnp.where(known, optax.tree.norm(message), 1)
    message = jax.tree.map(lambda x: x * factor, message)
    gain = optax.tree.vdot(root, message)
    accepted = known & (gain - penalty * own**2 + tolerance >= 0)
    message = jax.tree.map(lambda m, x: m.astype(x.dtype), message, updates)
    updates, inner_state = _arrivals.update_if(
      accepted, inner, message, state.inner, params, **extra
    )
    return updates, ZenoPlusPlusState(
      inner_state,
      root,
      optax.safe_increment(state.num_arrivals),
      state.num_rejected + (~accepted).astype(jnp.int32),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
