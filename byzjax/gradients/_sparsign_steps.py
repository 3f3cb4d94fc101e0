"""Local steps along sparse signs (sparsignSGD), as a gradient estimator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, flat, local
from byzjax.compression import _sparsign

_NAME = 'sparsign_local_steps'


def sparsign_local_steps(
  loss_fn: local.LossFn | local.Objective,
  *,
  budget: base.Scalar,
  learning_rate: base.Scalar,
  needs_key: bool = False,
  has_aux: bool = False,
) -> Callable[..., tuple[Any, base.Params]]:
  """The sum of the sparse signs of a worker's local steps (sparsignSGD).

  `w_0 = w`, and for c = 0 .. tau - 1: `s_c = sparsign(grad loss(w_c, batch_c),
  B)`, `w_{c+1} = w_c - eta_L s_c`. The result, `sum_c s_c`, has integer entries
  from -tau to tau; the factor eta_L is left to the server's learning rate.
  `sparsign_codec(budget=1.0)` sends the sign of each non-zero entry.

  Args:
    loss_fn: `(params, batch_c) -> scalar`, or an `Objective`.
    budget: B >= 0 of the local steps; may be traced.
    learning_rate: eta_L >= 0 of the local steps; may be traced.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_c, key)`,
      such as for dropout; every local step gets a new one.
    has_aux: whether the loss is `(loss, aux)`; aux is then the mean over the
      local steps, in float. Pass the same flag to the round.

  Returns:
    `(params, batch, key) -> (loss, gradient)`, for
    `robust_round(value_and_grad=...)`: batch leaves are `[tau, ...]` (of the
    whole round `[n, tau, ...]`), loss is the mean over the local steps, and the
    gradient is shaped like params. With has_aux, `((loss, aux), gradient)`.

  Raises:
    ValueError: if an argument is negative, or the loss does not fit the flags.

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
  checks.check_range(_NAME, 'budget', budget, 0)
  checks.check_range(_NAME, 'learning_rate', learning_rate, 0)
  of_loss = local.as_estimator(
    loss_fn, name=_NAME, needs_key=needs_key, has_aux=has_aux
  )

  def estimate(params, batch, context):
    layout = flat.row_layout(params)
    num_steps = checks.num_workers(f'{_NAME}: batch', batch)

    def step(w, inputs):
      local_batch, key, c = inputs
      # What the loss draws must not depend on what the signs draw.
      inner = context._replace(
        key=jax.random.fold_in(key, 1), step=context.step * num_steps + c
      )
      value, gradient = of_loss.estimate(layout.unravel(w), local_batch, inner)
      s = _sparsign.sparsign(layout.ravel(gradient), budget, key)
      return (w - learning_rate * s).astype(w.dtype), (value, s)

    keys = jax.random.split(context.key, num_steps)
    _, (values, s) = lax.scan(
      step, layout.ravel(params), (batch, keys, jnp.arange(num_steps))
    )
    value = local.mean_over_steps(_NAME, of_loss, values)
    return value, layout.unravel(jnp.einsum('td->d', s))

  estimator = local.GradientEstimator(estimate, None, _NAME, of_loss.has_aux)
  # A function, for jax.jit, which takes no tuples.
  return lambda params, batch, key: estimator(params, batch, key)
