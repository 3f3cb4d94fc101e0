"""STORM (MVR): worker momentum corrected by a second gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, local

_NAME = 'storm'


class StormState(NamedTuple):
  """The worker state of `storm`."""

  step: jax.Array  # shape=(), dtype=int32
  momentum: base.Params


def storm(
  loss_fn: local.LossFn | local.Objective,
  *,
  decay: base.Scalar,
  needs_key: bool = False,
  has_aux: bool = False,
) -> local.StatefulEstimator:
  r"""Worker momentum corrected by a second gradient (STORM, MVR).

  .. math::
    m_0 = \nabla f(w_0; \xi_0), \qquad
    m_t = \nabla f(w_t; \xi_t)
      + \beta \big(m_{t-1} - \nabla f(w_{t-1}; \xi_t)\big)

  with the *same* batch and key in both gradients. `worker_momentum` averages
  gradients at old parameters; here the difference of the two gradients corrects
  for the change of the parameters. On a quadratic with additive noise the error
  of m is only noise, of variance (1 - beta) / (1 + beta) times that of one
  gradient, however fast the parameters move. With constant parameters it is
  `worker_momentum`; with beta = 0 the gradient; and without noise the exact
  gradient for every beta.

  It takes two gradients per round, and the parameters of the previous round.
  MVR (momentum-based variance reduction) is the same with `a = 1 - beta`.

  Args:
    loss_fn: f, `(params, batch_i) -> scalar`, or an `Objective`.
    decay: beta in [0, 1]; may be traced. Large values need small step sizes.
    needs_key: whether the loss takes a key, `loss_fn(params, batch_i, key)`.
    has_aux: whether the loss is `(loss, aux)`; aux is that at the new
      parameters.

  Returns:
    A `StatefulEstimator`, for `robust_round(value_and_grad=...)`; do not pass
    `worker`, which would average the momentum again. A worker keeps a
    `StormState`, with its momentum in float32 at least.

  Raises:
    ValueError: if beta is outside [0, 1]; at trace time, if the loss does not
      fit the flags.

  References:
    Cutkosky, Orabona, 2019, arXiv:1905.10018; with Byzantine workers,
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp, optax
    >>> def loss_fn(w, x):
    ...   return jnp.sum((w - x) ** 2) / 2
    >>> round = byzjax.robust_round(
    ...   loss_fn, num_workers=5, aggregator=byzjax.coordinate_median(),
    ...   optimizer=optax.sgd(0.5),
    ...   value_and_grad=byzjax.storm(loss_fn, decay=0.9))
    >>> state, batch = round.init(jnp.ones(2)), jnp.zeros([5, 2])
    >>> for _ in range(3):
    ...   state, info = round.step(state, batch, jax.random.key(0))
    >>> print(state.params)  # The exact gradient: 1, 1/2, 1/4, 1/8.
    [0.125 0.125]
  """
  checks.check_range(_NAME, 'decay', decay, 0, 1)
  estimator = local.as_estimator(
    loss_fn, name=_NAME, needs_key=needs_key, has_aux=has_aux
  )

  def init(params):
    momentum = jax.tree.map(
      lambda p: jnp.zeros(jnp.shape(p), flat.compute_dtype(p)), params
    )
    return StormState(jnp.zeros([], jnp.int32), momentum)

  def estimate(params, previous, batch, state, context):
    new = local.estimate(estimator, params, batch, context)
    old = local.estimate(estimator, previous, batch, context)
    beta = jnp.where(state.step == 0, 0, decay)

    def corrected(m, g, g_old):
      new, old = g.astype(m.dtype), g_old.astype(m.dtype)
      return (new + beta * (m - old)).astype(m.dtype)

    momentum = jax.tree.map(
      corrected, state.momentum, new.gradient, old.gradient
    )
    message = jax.tree.map(
      lambda m, g: m.astype(g.dtype), momentum, new.gradient
    )
    state = StormState(optax.safe_increment(state.step), momentum)
    return local.joined(estimator, new.loss, new.aux), message, state

  return local.StatefulEstimator(
    init, estimate, 2, name=_NAME, has_aux=estimator.has_aux
  )
