"""Inputs moved to where the loss is high, at a price: WAFL."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax._src import base, checks, local, loss_forms


def wasserstein(
  loss_fn: local.LossFn,
  *,
  gamma: base.Scalar,
  step_size: base.Scalar | None = None,
  num_ascent_steps: int = 10,
  surrogate: bool = False,
  needs_key: bool = False,
  has_aux: bool = False,
) -> local.LossFn:
  """The loss on the worst inputs near those of the batch: WAFL.

  The dual form of the largest loss over distributions near the data,
  `phi_gamma(x, y; w) = max over x' of l(x', y; w) - (gamma / 2) |x' - x|^2`,
  with x' from K steps of gradient ascent (see `wasserstein_inputs`) and then
  held fixed: the gradient in w is that of the loss at x', which is the gradient
  of `phi_gamma` where the ascent has converged. It does if gamma exceeds the
  smoothness of the loss in x. Large gamma is the plain loss; so is K = 0, bit
  for bit. A gradient costs K + 1 gradients.

  Labels stay as they are, and inputs are not clipped to a range. The value is
  the loss at x', as in the released code; with `surrogate=True` it is
  `phi_gamma`, and the gradient in w is the same. The released code also stops
  the ascent where the gradient is small; here it is always K steps.

  Args:
    loss_fn: `(params, (inputs, labels)) -> scalar`, the mean over the rows of
      the batch of a loss of each row by itself (no batch statistics).
    gamma: price of moving, gamma > 0; may be traced.
    step_size: alpha of the ascent, `0 < alpha gamma < 2`, beyond which it
      diverges; None for `1 / gamma`. May be traced.
    num_ascent_steps: K >= 0, a Python int.
    surrogate: whether the value of the loss is `phi_gamma`.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`,
      such as one with dropout; the ascent and the loss at its end use the same.
    has_aux: whether it returns `(loss, aux)`; aux is then that at x'.

  Returns:
    `(params, (inputs, labels)) -> scalar`, for any round in place of loss_fn,
    with the same `needs_key` and `has_aux`: it takes and returns what loss_fn
    does.

  Raises:
    ValueError: if an argument is out of its range, or loss_fn is an `Objective`
      (wrap the other way round: `proximal(wasserstein(...), ...)`).

  References:
    Nguyen, Nguyen, Nguyen, Pham, Bui, Dinh, Le, 2022, arXiv:2206.01432; the
    dual as in Sinha, Namkoong, Volpi, Duchi, 2018, arXiv:1710.10571.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> def linear(w, batch):
    ...   return jnp.mean(batch[0] @ w)
    >>> loss_fn = byzjax.objectives.wasserstein(
    ...   linear, gamma=2.0, surrogate=True)
    >>> w, batch = jnp.array([3.0, 4.0]), (jnp.zeros([5, 2]), jnp.zeros(5))
    >>> print(loss_fn(w, batch))  # 0 + |w|^2 / (2 gamma)
    6.25
  """
  name = 'wasserstein'
  step_size = _check_step(loss_fn, gamma, step_size, num_ascent_steps)
  checks.check_flag(name, 'surrogate', surrogate)
  local.as_objective(loss_fn, name=name, needs_key=needs_key, has_aux=has_aux)
  plain: Any = loss_fn

  def loss(params, batch, *key):
    inputs, labels = batch

    def of(params, batch):
      output = plain(params, batch, *key)
      return loss_forms.split_value(name, 'loss_fn', output, has_aux)

    moved = wasserstein_inputs(
      lambda params, batch: of(params, batch)[0],
      params,
      batch,
      gamma=gamma,
      step_size=step_size,
      num_ascent_steps=num_ascent_steps,
    )
    value, aux = of(params, (moved, labels))
    if surrogate:
      price = gamma / 2 * jnp.sum(jnp.square(moved - inputs)) / len(inputs)
      value = value - price.astype(value.dtype)
    return (value, aux) if has_aux else value

  if needs_key:
    return lambda params, batch, key: loss(params, batch, key)
  return lambda params, batch: loss(params, batch)


def wasserstein_inputs(
  loss_fn: local.PlainLossFn,
  params: base.Params,
  batch: tuple[jax.Array, Any],
  *,
  gamma: base.Scalar,
  step_size: base.Scalar | None = None,
  num_ascent_steps: int = 10,
) -> jax.Array:
  """The inputs that `wasserstein` evaluates the loss at.

  `x'_0 = x`, `x'_{k+1} = x'_k + alpha (grad_x l(x'_k, y) - gamma (x'_k - x))`
  for each row by itself. Where the gradient g is constant the result is `x + (1
  - (1 - alpha gamma)^K) g / gamma`, and a fixed point has `x' - x = grad_x
  l(x') / gamma`.

  Args:
    loss_fn: as in `wasserstein`; the gradient of one row is the number of rows
      times that of the mean.
    params: of the model; the result is a constant for differentiation.
    batch: `(inputs, labels)`, inputs float `[B, ...]`.
    gamma: as in `wasserstein`.
    step_size: as in `wasserstein`.
    num_ascent_steps: as in `wasserstein`.

  Returns:
    x', shape and dtype of the inputs.

  Raises:
    ValueError: as `wasserstein`, or if the inputs are not real numbers.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> def linear(w, batch):
    ...   return jnp.mean(batch[0] @ w)
    >>> byzjax.objectives.wasserstein_inputs(
    ...   linear, jnp.array([3.0, 4.0]), (jnp.zeros([1, 2]), jnp.zeros(1)),
    ...   gamma=2.0)
    Array([[1.5, 2. ]], dtype=float32)
  """
  step_size = _check_step(loss_fn, gamma, step_size, num_ascent_steps)
  checks.check_pair('wasserstein_inputs', 'batch', batch)
  inputs, labels = batch
  inputs = float_inputs('wasserstein', inputs)
  gradient = input_gradients('wasserstein', loss_fn, params, labels)

  def ascend(_, moved):
    slope = gradient(moved) - gamma * (moved - inputs)
    return (moved + step_size * slope).astype(inputs.dtype)

  return lax.stop_gradient(lax.fori_loop(0, num_ascent_steps, ascend, inputs))


def input_gradients(name, loss_fn, params, labels):
  """`inputs -> gradient of the loss of each row in its inputs`."""
  # Nothing of the ascent is differentiated, so nothing of it needs tangents.
  params = lax.stop_gradient(params)

  def gradient(inputs):
    def mean_loss(x):
      value = loss_fn(params, (x, labels))
      return loss_forms.split_value(name, 'loss_fn', value, None)[0]

    return len(inputs) * jax.grad(mean_loss)(inputs)

  return gradient


def float_inputs(name: str, inputs: jax.Array) -> jax.Array:
  """The inputs as a constant; ValueError if they cannot be moved."""
  inputs = jnp.asarray(inputs)
  if not jnp.issubdtype(inputs.dtype, jnp.floating):
    raise ValueError(
      f'{name} needs inputs of real numbers, which it moves, got {inputs.dtype}'
    )
  return lax.stop_gradient(inputs)


def check_plain(name: str, loss_fn: Any) -> None:
  """Raises ValueError if the loss is not `(params, batch) -> scalar`."""
  if isinstance(loss_fn, local.Objective):
    raise ValueError(
      f'{name} needs a loss (params, batch) -> scalar, got the Objective'
      f' {loss_fn.name}: wrap the plain loss first, and that in the Objective'
    )
  checks.check_function(name, 'loss_fn', loss_fn)


def _check_step(loss_fn, gamma, step_size, num_ascent_steps):
  name = 'wasserstein'
  check_plain(name, loss_fn)
  checks.check_count(name, 'num_ascent_steps', num_ascent_steps)
  checks.check_range(name, 'gamma', gamma, 0, exclusive=True)
  if step_size is None:
    return 1 / gamma
  checks.check_range(name, 'step_size', step_size, 0, exclusive=True)
  traced = any(isinstance(x, jax.core.Tracer) for x in (gamma, step_size))
  if not traced and not np.all(np.multiply(step_size, gamma) < 2):
    raise ValueError(
      f'{name} needs step_size * gamma < 2, or the ascent diverges, got'
      f' {step_size} and {gamma}'
    )
  return step_size
