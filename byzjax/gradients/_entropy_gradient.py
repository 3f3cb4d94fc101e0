"""The gradient of the local entropy, by an inner loop of Langevin steps."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, draws, flat, local

_NAME = 'entropy_gradient'


def entropy_gradient(
  loss_fn: local.LossFn | local.Objective,
  *,
  num_steps: int,
  gamma: optax.ScalarOrSchedule,
  step_size: base.Scalar = 0.1,
  noise: base.Scalar = 1e-4,
  momentum: base.Scalar = 0.9,
  averaging: base.Scalar = 0.25,
  weight_decay: base.Scalar = 0.0,
  needs_key: bool = False,
  has_aux: bool = False,
) -> local.GradientEstimator:
  r"""Entropy-SGD: the gradient of the local entropy, by Langevin steps.

  From :math:`x' = \mu = x` and :math:`m = 0`, for each of L batches

  .. math::
    g &= \nabla f(x') + \lambda x', \quad m \leftarrow \beta m + g \\
    x' &\leftarrow x' - \eta' (g + \beta m - \gamma (x - x'))
      + \epsilon \sqrt{2 \eta'}\, \mathcal{N}(0, I) \\
    \mu &\leftarrow (1 - a) \mu + a x'

  The estimate is :math:`x - \mu`. The gradient of the local entropy,
  :math:`\gamma (x - \langle x' \rangle)`, has another factor gamma, which is
  left to the learning rate: :math:`x \leftarrow x - \eta (x - \mu)` is
  `optimizer=optax.sgd(eta)`, with eta near 1. The message is roughly an average
  of L gradients, so honest messages are closer to each other. With L = 0 the
  estimate is the gradient on an ordinary batch.

  An estimate costs L gradients: if n workers have batches of B examples out of
  N in total, a round is `info.num_gradients * n * B / N` epochs.

  `averaging` and `noise` follow the released code. The paper has averaging 0.75
  (the code gives 0.75 to the old mu) and noise of standard deviation
  :math:`\epsilon \sqrt{\eta'}`: divide `noise` by :math:`\sqrt 2`. Its first
  version has :math:`2 \epsilon \sqrt{\eta'}`, and adds the gradient at x to
  :math:`x - \mu`. The Lua code applies weight decay after the momentum, the
  PyTorch code before it, as here; the latter also has weight decay and momentum
  in the outer step, which belong to the optimizer of the round.

  Args:
    loss_fn: f: `(params, batch) -> scalar`, or an `Objective`, whose anchor is
      the model received at the start of the round, not x.
    num_steps: L >= 0, a Python int; the paper has 20.
    gamma: strength of the attraction to x, >= 0, or a schedule of the round.
      The paper's scoping, gamma_0 (1 + gamma_1)^t, is
      `optax.exponential_decay(gamma_0, 1, 1 + gamma_1)`. The inner steps need
      `step_size * gamma < 2`.
    step_size: eta' >= 0 of the inner steps.
    noise: epsilon >= 0; its square is the temperature.
    momentum: beta in [0, 1], Nesterov's, reset in every call. It does not act
      on the attraction to x, so in the long run the loss has 1 / (1 - beta)
      times more weight relative to gamma than without momentum.
    averaging: a in [0, 1], the weight of the new x'.
    weight_decay: lambda >= 0, on x'; it does not act on x - x'.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`,
      such as for dropout; every inner step gets a new one.
    has_aux: whether the loss is `(loss, aux)`; aux is then the mean over the
      inner steps, in float.

    All numbers except num_steps may be traced.

  Returns:
    A `GradientEstimator`, for `value_and_grad` of every round that accepts one:
    batch leaves are `[L, ...]` (for the whole round `[n, L, ...]`), the loss is
    the mean over the inner steps, and the gradient is shaped like params,
    leaves in their dtypes. The inner steps run in float32 at least.

  Raises:
    ValueError: if an argument is out of range; at trace time, if the batch does
      not have L slices or the loss does not fit the flags.

  References:
    Chaudhari, Choromanska, Soatto, LeCun, Baldassi, Borgs, Chayes, Sagun,
    Zecchina, 2017, arXiv:1611.01838.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> estimator = byzjax.entropy_gradient(
    ...   lambda w, x: jnp.sum((w - x) ** 2) / 2, num_steps=2, gamma=0.5,
    ...   noise=0.0, momentum=0.0, averaging=1.0)
    >>> loss, gradient = estimator(
    ...   jnp.ones(2), jnp.zeros([2, 2]), jax.random.key(0))
    >>> print(gradient)  # x' is 0.9, then 0.9 - 0.1 (0.9 - 0.5 (1 - 0.9))
    [0.185 0.185]
  """
  checks.check_count(_NAME, 'num_steps', num_steps)
  if not callable(gamma):
    checks.check_range(_NAME, 'gamma', gamma, 0)
  checks.check_range(_NAME, 'step_size', step_size, 0)
  checks.check_range(_NAME, 'noise', noise, 0)
  checks.check_range(_NAME, 'momentum', momentum, 0, 1)
  checks.check_range(_NAME, 'averaging', averaging, 0, 1)
  checks.check_range(_NAME, 'weight_decay', weight_decay, 0)
  of_loss = local.as_estimator(
    loss_fn, name=_NAME, needs_key=needs_key, has_aux=has_aux
  )

  def estimate(params, batch, context):
    layout = flat.row_layout(params)
    x = layout.ravel(params)

    def decayed_gradient(w, batch, context):
      value, gradient = of_loss.estimate(layout.unravel(w), batch, context)
      return value, layout.ravel(gradient) + weight_decay * w

    if num_steps == 0:
      value, gradient = decayed_gradient(x, batch, context)
      return value, layout.unravel(gradient)

    _check_batch(batch, num_steps)
    now = gamma(context.round) if callable(gamma) else gamma

    def step(carry, inputs):
      w, mu, m = carry
      batch, key, k = inputs
      loss_key, noise_key = jax.random.split(key)
      inner = context._replace(key=loss_key, step=context.step * num_steps + k)
      value, g = decayed_gradient(w, batch, inner)
      m = momentum * m + g
      drawn = draws.draw(jax.random.normal, noise_key, w)
      w = w - step_size * (g + momentum * m - now * (x - w))
      w = w + noise * jnp.sqrt(2.0 * step_size) * drawn
      mu = (1 - averaging) * mu + averaging * w
      # Hyper-parameters of a wider type do not widen the walk.
      return (w.astype(x.dtype), mu.astype(x.dtype), m.astype(x.dtype)), value

    keys = jax.random.split(context.key, num_steps)
    (_, mu, _), values = lax.scan(
      step, (x, x, jnp.zeros_like(x)), (batch, keys, jnp.arange(num_steps))
    )
    value = local.mean_over_steps(_NAME, of_loss, values)
    return value, layout.unravel(x - mu)

  return local.GradientEstimator(
    estimate, max(num_steps, 1), _NAME, of_loss.has_aux
  )


def _check_batch(batch: Any, num_steps: int) -> None:
  rows = checks.num_workers(f'{_NAME}: batch', batch)
  if rows != num_steps:
    raise ValueError(
      f'{_NAME} needs batch leaves [num_steps, ...], a slice for each of'
      f' num_steps={num_steps} steps, got {rows}'
    )
