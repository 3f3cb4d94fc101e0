"""Mixup: convex combinations of a batch and a shuffled copy of it."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, flat, local
from byzjax.objectives import _wasserstein


def mixup(
  loss_fn: local.LossFn | local.Objective,
  *,
  alpha: base.Scalar = 0.2,
  needs_key: bool = False,
  has_aux: bool = False,
) -> local.Objective:
  """The loss on convex combinations of pairs of examples (mixup).

  `t l(x', y) + (1 - t) l(x', y[p])` with `x' = t x + (1 - t) x[p]`, where p is
  a permutation of the rows and `t ~ Beta(alpha, alpha)` one number for the
  batch, both redrawn in each local step. For the cross entropy this is the loss
  on the combined labels. XLA computes the features of x' once for both terms.

  Args:
    loss_fn: `(params, (inputs, labels)) -> scalar`, or an `Objective`, such as
      `fedbr`, of such batches, whose inputs are floats.
    alpha: parameter of the Beta distribution, alpha > 0; near 0 it is almost
      the plain loss. May be traced.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`,
      such as for dropout; both terms get the same.
    has_aux: whether the loss is `(loss, aux)`; the round then reports `t aux +
      (1 - t) aux'` of the two terms, in float.

  Returns:
    An `Objective` that uses the key of its context.

  Raises:
    ValueError: if alpha is not positive, or the loss does not fit the flags; at
      trace time, if the inputs are not floats.

  References:
    Zhang, Cisse, Dauphin, Lopez-Paz, 2018, arXiv:1710.09412.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> objective = byzjax.objectives.mixup(
    ...   lambda w, batch: jnp.mean((w * batch[0] - batch[1]) ** 2))
    >>> context = byzjax.LocalContext(None, jax.random.key(0), jnp.array(0))
    >>> x = jnp.array([3.0, 3.0])  # a blend of equal examples is the example
    >>> print(f"{objective.loss(2.0, (x, 2 * x + 1), context):.3f}")
    1.000
  """
  checks.check_range('mixup', 'alpha', alpha, 0, exclusive=True)
  inner = local.as_objective(
    loss_fn, name='mixup', needs_key=needs_key, has_aux=has_aux
  )

  def loss(params, batch, context):
    inputs, labels = batch
    _wasserstein.check_floats('mixup', inputs, 'blends')
    share_key, order_key, inner_key = jax.random.split(context.key, 3)
    share = jax.random.beta(share_key, alpha, alpha)
    order = jax.random.permutation(order_key, inputs.shape[0])
    mixed = share * inputs + (1 - share) * inputs[order]
    mixed = mixed.astype(inputs.dtype)
    context = context._replace(key=inner_key)

    def of(labels):
      return local.loss_and_aux(
        'mixup', inner, params, (mixed, labels), context
      )

    def blended(a, b):
      dtype = flat.compute_dtype(jnp.result_type(a))
      return (share * a + (1 - share) * b).astype(dtype)

    (first, aux), (second, other) = of(labels), of(labels[order])
    value = (share * first + (1 - share) * second).astype(first.dtype)
    return local.joined(inner, value, jax.tree.map(blended, aux, other))

  return local.Objective(loss, 'mixup', inner.has_aux)
