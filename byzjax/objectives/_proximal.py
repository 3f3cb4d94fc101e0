"""FedProx: a loss with a proximal term around the received parameters."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat, local


def proximal(
  loss_fn: local.LossFn | local.Objective,
  *,
  mu: base.Scalar,
  needs_key: bool = False,
  has_aux: bool = False,
) -> local.Objective:
  """The loss plus a proximal term around the received parameters (FedProx).

  `loss(w) + (mu / 2) |w - anchor|^2`, over all leaves of w; anchor is the model
  that the worker received at the start of the round. With `mu = 0` this is the
  loss, and a local round is FedAvg.

  Args:
    loss_fn: `(params, batch_i) -> scalar`, or an `Objective`, such as `fedbr`.
    mu: weight of the proximal term, mu >= 0; may be traced.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`,
      such as for dropout.
    has_aux: whether the loss is `(loss, aux)`; the round then reports aux.

  Returns:
    An `Objective`. Its gradient is that of the loss plus `mu (w - anchor)`.

  Raises:
    ValueError: if mu is negative, or the loss does not fit the flags.

  References:
    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, 2020, arXiv:1812.06127.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> objective = byzjax.objectives.proximal(lambda w, x: w * x, mu=10.0)
    >>> context = byzjax.LocalContext(
    ...   anchor=jnp.array(1.0), key=jax.random.key(0), step=jnp.array(0))
    >>> print(jax.grad(objective.loss)(jnp.array(1.5), 2.0, context))
    7.0
  """
  checks.check_range('proximal', 'mu', mu, 0)
  inner = local.as_objective(
    loss_fn, name='proximal', needs_key=needs_key, has_aux=has_aux
  )

  def loss(params, batch, context):
    value, aux = local.loss_and_aux('proximal', inner, params, batch, context)
    anchor = jax.lax.stop_gradient(context.anchor)
    penalty = mu / 2 * _squared_distance(params, anchor)
    return local.joined(inner, value + penalty.astype(value.dtype), aux)

  return local.Objective(loss, 'proximal', inner.has_aux)


def _squared_distance(x: base.Params, y: base.Params) -> jax.Array:
  def of_leaf(a, b):
    dtype = flat.compute_dtype(a)
    return jnp.sum(jnp.square(a.astype(dtype) - b.astype(dtype)))

  return jax.tree.reduce(jnp.add, jax.tree.map(of_leaf, x, y))
