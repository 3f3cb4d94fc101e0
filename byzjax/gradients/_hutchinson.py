"""The diagonal of a Hessian, estimated with one product."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base, draws, flat, loss_forms


def hutchinson_diagonal(
  loss_fn: Callable[[base.Params, base.Batch], jax.Array],
) -> Callable[[base.Params, base.Batch, jax.Array], base.Params]:
  """Hutchinson's estimate of the diagonal of the Hessian of a loss.

  `v * (nabla^2 f(w) v)` with v of independent random signs: its mean over v is
  the diagonal. If the Hessian is diagonal, the estimate is exact for every v;
  otherwise the variance of coordinate i is the sum of the squares of the other
  entries of row i. It costs about two gradients, and forms no matrix.

  Use it as the statistic of the Hessian rules of `scale_by_preconditioner`. To
  average over several v, use `jax.vmap` over keys.

  Args:
    loss_fn: `(params, batch) -> scalar`, twice differentiable in params.

  Returns:
    `(params, batch, key) -> tree` shaped like params, leaves in their dtypes.
    The sign of a coordinate depends on the key and on its position in the
    flattened parameters, not on how they are divided into leaves.

  References:
    Hutchinson, 1989, doi:10.1080/03610918908812806; for a diagonal, Bekas,
    Kokiopoulou, Saad, 2007, doi:10.1016/j.apnum.2007.01.003.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> diagonal = byzjax.hutchinson_diagonal(
    ...   lambda w, scales: jnp.sum(scales * w ** 2) / 2)
    >>> print(diagonal(jnp.ones(2), jnp.array([3., -5.]), jax.random.key(0)))
    [ 3. -5.]
  """

  loss_forms.check_signature('hutchinson_diagonal', loss_fn, needs_key=False)

  def estimate(params, batch, key):
    layout = flat.row_layout(params)
    like = jnp.zeros(layout.size, layout.dtype)
    v = layout.unravel(draws.draw(jax.random.rademacher, key, like))

    def of_batch(w):
      value = loss_fn(w, batch)
      return loss_forms.split_value(
        'hutchinson_diagonal', 'loss_fn', value, None
      )[0]

    gradient = jax.grad(of_batch)
    _, product = jax.jvp(gradient, (params,), (v,))
    return jax.tree.map(jnp.multiply, v, product)

  return estimate
