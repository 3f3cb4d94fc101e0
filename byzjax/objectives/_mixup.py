"""A batch blended with a shuffled copy of itself."""

import jax

from byzjax._src import base, local


def mixup(
  loss_fn: local.LossFn | local.Objective, *, alpha: base.Scalar = 0.2
) -> local.Objective:
  """The loss on blends of pairs of examples, and on both of their labels.

  `t l(x', y) + (1 - t) l(x', y[p])` with `x' = t x + (1 - t) x[p]`, a
  permutation p of the rows and one `t ~ Beta(alpha, alpha)` for the batch, new
  at each local step. For the cross entropy this is the loss on the blended
  labels. XLA computes the features of x' once for both terms.

  Args:
    loss_fn: `(params, (inputs, labels)) -> scalar`, or an `Objective`, such as
      `fedbr`, of such batches.
    alpha: of the Beta distribution, alpha > 0; small is near the plain loss.
      May be traced.

  Returns:
    An `Objective` that draws from the key of its context.

  Raises:
    ValueError: if alpha is not positive.

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
  base.check_range('mixup', 'alpha', alpha, 0, exclusive=True)
  inner = local.as_objective(loss_fn)

  def loss(params, batch, context):
    inputs, labels = batch
    share_key, order_key, inner_key = jax.random.split(context.key, 3)
    share = jax.random.beta(share_key, alpha, alpha)
    order = jax.random.permutation(order_key, inputs.shape[0])
    mixed = share * inputs + (1 - share) * inputs[order]
    mixed = mixed.astype(inputs.dtype)
    context = context._replace(key=inner_key)
    first = inner.loss(params, (mixed, labels), context)
    second = inner.loss(params, (mixed, labels[order]), context)
    return (share * first + (1 - share) * second).astype(first.dtype)

  return local.Objective(loss, 'mixup')
