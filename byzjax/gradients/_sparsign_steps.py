"""Local steps along sparse signs, as a gradient estimator."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, flat
from byzjax.compression import _sparsign


def sparsign_local_steps(
  loss_fn: Callable[[base.Params, base.Batch], jax.Array],
  *,
  budget: base.Scalar,
  learning_rate: base.Scalar,
) -> Callable[..., tuple[jax.Array, base.Params]]:
  """The sum of the sparse signs along which a worker walks on its own.

  `w_0 = w`, and for c = 0 .. tau - 1: `s_c = sparsign(grad loss(w_c, batch_c),
  B)`, `w_{c+1} = w_c - eta_L s_c`. The result, `sum_c s_c`, has integers from
  -tau to tau: no factor eta_L, which belongs to the server's learning rate.
  `sparsign_codec(budget=1.0)` sends the sign of whatever is not zero in it.

  Args:
    loss_fn: `(params, batch_c) -> scalar`.
    budget: B >= 0 of the local steps; may be traced.
    learning_rate: eta_L >= 0 of the local steps; may be traced.

  Returns:
    `(params, batch, key) -> (loss, gradient)`, for
    `robust_round(value_and_grad=...)`: batch leaves are `[tau, ...]` (of the
    whole round `[n, tau, ...]`), loss is the mean over the local steps, and the
    gradient is shaped like params.

  Raises:
    ValueError: if an argument is negative.

  References:
    Jin, He, Zhong, Zhang, Quek, Dai, 2023, arXiv:2302.09634.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> steps = byzjax.sparsign_local_steps(
    ...   lambda w, x: jnp.sum((w - x) ** 2) / 2, budget=1e9, learning_rate=0.5)
    >>> loss, gradient = steps(
    ...   jnp.zeros(2), jnp.ones([3, 2]) * 1.2, jax.random.key(0))
    >>> print(gradient)
    [-3. -3.]
  """
  base.check_range('sparsign_local_steps', 'budget', budget, 0)
  base.check_range('sparsign_local_steps', 'learning_rate', learning_rate, 0)

  def value_and_grad(params, batch, key):
    layout = flat.row_layout(params)
    num_steps = base.num_workers('sparsign_local_steps: batch', batch)

    def step(w, inputs):
      local_batch, local_key = inputs
      loss, gradient = jax.value_and_grad(loss_fn)(
        layout.unravel(w), local_batch
      )
      s = _sparsign.sparsign(layout.ravel(gradient), budget, local_key)
      return (w - learning_rate * s).astype(w.dtype), (loss, s)

    keys = jax.random.split(key, num_steps)
    _, (losses, s) = lax.scan(step, layout.ravel(params), (batch, keys))
    return jnp.mean(losses), layout.unravel(jnp.einsum('td->d', s))

  return value_and_grad
