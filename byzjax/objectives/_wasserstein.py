"""WAFL: inputs moved to where the loss is high, at a transport cost."""

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
  """The loss on the worst inputs near those of the batch (WAFL).

  It is the dual form of the worst-case loss over distributions near the data in
  Wasserstein distance, `phi_gamma(x, y; w) = max over x' of l(x', y; w) -
  (gamma / 2) |x' - x|^2`, with x' from K steps of gradient ascent (see
  `wasserstein_inputs`) and then held constant: the gradient with respect to w
  is that of the loss at x', which is the gradient of `phi_gamma` if the ascent
  has converged. It converges if gamma exceeds the smoothness of the loss in x.
  A large gamma gives the plain loss; so does K = 0, bit for bit. A gradient
  costs K + 1 gradients.

  Labels are unchanged, and inputs are not clipped to a range. The value is the
  loss at x', as in the released code; with `surrogate=True` it is `phi_gamma`,
  with the same gradient. The released code also stops the ascent if the
  gradient is small; here it always takes K steps.

  Args:
    loss_fn: `(params, (inputs, labels)) -> scalar`, a mean of per-row losses
      (no batch statistics).
    gamma: cost of moving an input, gamma > 0; may be traced.
    step_size: alpha of the ascent, `0 < alpha gamma < 2` (otherwise it
      diverges); None for `1 / gamma`. May be traced.
    num_ascent_steps: K >= 0, a Python int.
    surrogate: whether the value is `phi_gamma` instead of the loss at x'.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`,
      such as for dropout; the ascent and the loss at x' use the same.
    has_aux: whether the loss is `(loss, aux)`; aux is then that at x'.

  Returns:
    `(params, (inputs, labels)) -> scalar`, to be used in any round instead of
    loss_fn, with the same `needs_key` and `has_aux`: its arguments and outputs
    are those of loss_fn.

  Raises:
    ValueError: if an argument is out of its range, or loss_fn is an `Objective`
      (reverse the order: `proximal(wasserstein(...), ...)`).

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
  """The inputs at which `wasserstein` evaluates the loss.

  `x'_0 = x`, `x'_{k+1} = x'_k + alpha (grad_x l(x'_k, y) - gamma (x'_k - x))`
  for each row separately. If the gradient g is constant, the result is `x + (1
  - (1 - alpha gamma)^K) g / gamma`; a fixed point satisfies `x' - x = grad_x
  l(x') / gamma`.

  Args:
    loss_fn: as in `wasserstein`; the gradient of one row is the number of rows
      times that of the mean.
    params: parameters of the model; derivatives treat the result as constant.
    batch: `(inputs, labels)`, inputs float `[B, ...]`.
    gamma: as in `wasserstein`.
    step_size: as in `wasserstein`.
    num_ascent_steps: as in `wasserstein`.

  Returns:
    x', with the shape and dtype of the inputs.

  Raises:
    ValueError: as for `wasserstein`, or if the inputs are not floats.

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
  check_floats(name, inputs, 'moves')
  return lax.stop_gradient(inputs)


def check_floats(name: str, inputs: jax.Array, does: str) -> None:
  """Raises ValueError unless the inputs are floats, and says what they are for.

  What is made of inputs has their dtype, and whole numbers wrap around in it.
  """
  dtype = jnp.result_type(inputs)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f'{name} needs inputs to be floats, because it {does} them, got {dtype}'
    )


def check_plain(name: str, loss_fn: Any) -> None:
  """Raises ValueError if the loss is not `(params, batch) -> scalar`."""
  if isinstance(loss_fn, local.Objective):
    raise ValueError(
      f'{name} needs a loss (params, batch) -> scalar, got the Objective'
      f' {loss_fn.name}: wrap the plain loss in {name} first, and the result in'
      ' the Objective'
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
