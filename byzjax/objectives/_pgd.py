"""PGD: adversarial test inputs inside a box."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, local
from byzjax.objectives import _wasserstein


def pgd_inputs(
  loss_fn: local.PlainLossFn,
  params: base.Params,
  batch: tuple[jax.Array, Any],
  *,
  epsilon: base.Scalar,
  step_size: base.Scalar,
  num_steps: int,
  value_range: tuple[float, float] | None = None,
) -> jax.Array:
  """Adversarial inputs within epsilon of the given ones (PGD).

  `x'_0 = x`, `x'_{k+1} = clip(x'_k + alpha sign(grad_x l(x'_k, y)), x -
  epsilon, x + epsilon)`: projected gradient ascent in the l-infinity norm. This
  is a test-time attack, unrelated to Byzantine workers. Entries of zero
  gradient do not move.

  The start is x; other implementations start at a random point of the box. The
  WAFL experiments do not clip to the range of pixels (the default); most others
  do.

  Args:
    loss_fn: `(params, (inputs, labels)) -> scalar`, a mean of per-row losses.
    params: parameters of the model; derivatives treat the result as constant.
    batch: `(inputs, labels)`, inputs float `[B, ...]`.
    epsilon: half the side of the box, epsilon >= 0; may be traced.
    step_size: alpha >= 0; may be traced.
    num_steps: number of ascent steps, a Python int >= 0.
    value_range: `(low, high)` to which inputs are clipped after every step, or
      None.

  Returns:
    x', with the shape and dtype of the inputs.

  Raises:
    ValueError: if an argument is out of its range, loss_fn is an `Objective`,
      or the inputs are not floats.

  References:
    Madry, Makelov, Schmidt, Tsipras, Vladu, 2018, arXiv:1706.06083.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> def linear(w, batch):
    ...   return jnp.mean(batch[0] @ w)
    >>> byzjax.objectives.pgd_inputs(
    ...   linear, jnp.array([3.0, -4.0]), (jnp.zeros([1, 2]), jnp.zeros(1)),
    ...   epsilon=0.5, step_size=0.2, num_steps=10)
    Array([[ 0.5, -0.5]], dtype=float32)
  """
  _wasserstein.check_plain('pgd_inputs', loss_fn)
  checks.check_count('pgd_inputs', 'num_steps', num_steps)
  checks.check_range('pgd_inputs', 'epsilon', epsilon, 0)
  checks.check_range('pgd_inputs', 'step_size', step_size, 0)
  checks.check_pair('pgd_inputs', 'batch', batch)
  if value_range is not None:
    checks.check_pair('pgd_inputs', 'value_range', value_range)
    checks.check_reals('pgd_inputs', 'value_range', value_range)
  if value_range is not None and not value_range[0] < value_range[1]:
    raise ValueError(
      f'pgd_inputs needs value_range to be (low, high) with low < high, got'
      f' {value_range}'
    )
  inputs, labels = batch
  inputs = _wasserstein.float_inputs('pgd_inputs', inputs)
  gradient = _wasserstein.input_gradients('pgd_inputs', loss_fn, params, labels)

  def ascend(_, moved):
    moved = moved + step_size * jnp.sign(gradient(moved))
    moved = jnp.clip(moved, inputs - epsilon, inputs + epsilon)
    if value_range is not None:
      moved = jnp.clip(moved, *value_range)
    return moved.astype(inputs.dtype)

  return lax.stop_gradient(lax.fori_loop(0, num_steps, ascend, inputs))
