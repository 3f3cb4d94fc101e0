"""The steps of an ADMM iteration that all methods here share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base
from byzjax.convex import _linear, _losses, _problem


class AdmmState(NamedTuple):
  """The state of ADMM; duals are scaled by 1 / rho.

  Attributes:
    blocks: float[2, P, d], the v_i and the w_i: the solution.
    copies: float[2, P, d], u; converges to the blocks.
    slacks: float[2, P, n], s; `G u` converges to it.
    fits: float[n], z; `F u` converges to it. The labels if the loss is squared,
      which needs no copy of its outputs.
    slopes: float[n, d]; `sum_i D_i[k] (u_v - u_w)` converges to it. None
      without adversarial inputs.
    block_dual: float[2, P, d], lambda, of `u = v`.
    slack_dual: float[2, P, n], nu, of `G u = s`.
    fit_dual: float[n], of `F u = z`.
    slope_dual: float[n, d], or None.
  """

  blocks: jax.Array
  copies: jax.Array
  slacks: jax.Array
  fits: jax.Array
  slopes: base.State
  block_dual: jax.Array
  slack_dual: jax.Array
  fit_dual: jax.Array
  slope_dual: base.State


class AdmmHistory(NamedTuple):
  """Measurements after every recorded iteration, each float[T].

  Attributes:
    objective: at the blocks, which need not be feasible.
    violation: the largest violation of a constraint by the blocks.
    primal_residual: `|u - v| + |G u - s| + ...`, over all constraints.
    dual_residual: the norm of the gradient of the Lagrangian with respect to u.
  """

  objective: jax.Array
  violation: jax.Array
  primal_residual: jax.Array
  dual_residual: jax.Array


class Images(NamedTuple):
  """The images of the copies u under G, F and the map to slopes."""

  slacks: jax.Array
  fits: jax.Array
  slopes: jax.Array


def zero_state(
  x: jax.Array, y: jax.Array, masks: jax.Array, *, loss: str, robust: bool
) -> AdmmState:
  """Zeros; for the squared loss the copy of the outputs holds the labels."""
  blocks = jnp.zeros((2, len(masks), x.shape[1]), x.dtype)
  slacks = jnp.zeros((2, *masks.shape), x.dtype)
  slopes = jnp.zeros_like(x) if robust else None
  is_direct = loss == 'squared' and not robust
  fits = y if is_direct else jnp.zeros_like(y)
  return AdmmState(
    blocks, blocks, slacks, fits, slopes,
    blocks, slacks, jnp.zeros_like(y), slopes,
  )  # fmt: skip


def fit_weight(loss: str, rho: base.Scalar, robust: bool = False) -> Any:
  """The weight of `F^T F` in the linear system."""
  return 1 / rho if loss == 'squared' and not robust else 1.0


def copy_step(
  state: AdmmState,
  factors: _linear.Factors,
  x: jax.Array,
  masks: jax.Array,
  weight: base.Scalar,
) -> jax.Array:
  """Step 1: u, from a linear system."""
  rhs = state.blocks - state.block_dual
  rhs += _problem.slack_transpose(x, masks, state.slacks - state.slack_dual)
  target = weight * (state.fits - state.fit_dual)[:, None] * x
  if state.slopes is not None:
    target += state.slopes - state.slope_dual
  rhs += _problem.slopes_transpose(masks, target)
  return _linear.solve(factors, x, masks, rhs)


def images(x: jax.Array, masks: jax.Array, copies: jax.Array) -> Images:
  """G u, F u and the slopes of u."""
  slopes = _problem.slopes(masks, copies)
  return Images(
    _problem.slack(x, masks, copies), jnp.sum(x * slopes, axis=1), slopes
  )


def fit_step(
  state: AdmmState, image: Images, y: jax.Array, loss: str, weight: base.Scalar
) -> jax.Array:
  """Step 3 for the outputs: z, by the proximal map of the loss."""
  if loss == 'squared':
    return state.fits
  return _losses.proximal(loss, image.fits + state.fit_dual, y, weight)


def dual_step(
  state: AdmmState, image: Images, loss: str, ratio: base.Scalar
) -> AdmmState:
  """Step 4: the duals move by the residuals of the constraints."""
  robust = state.slopes is not None
  state = state._replace(
    block_dual=state.block_dual + ratio * (state.copies - state.blocks),
    slack_dual=state.slack_dual + ratio * (image.slacks - state.slacks),
  )
  if robust or loss != 'squared':
    state = state._replace(
      fit_dual=state.fit_dual + ratio * (image.fits - state.fits)
    )
  if robust:
    state = state._replace(
      slope_dual=state.slope_dual + ratio * (image.slopes - state.slopes)
    )
  return state


def measure(
  state: AdmmState,
  x: jax.Array,
  y: jax.Array,
  masks: jax.Array,
  *,
  beta: base.Scalar,
  rho: base.Scalar,
  loss: str,
  epsilon: jax.Array | None = None,
) -> AdmmHistory:
  """Objective and residuals of a state."""
  image, norm = images(x, masks, state.copies), jnp.linalg.norm
  primal = norm((state.copies - state.blocks).reshape(-1))
  primal += norm((image.slacks - state.slacks).reshape(-1))
  gradient = state.block_dual
  gradient += _problem.slack_transpose(x, masks, state.slack_dual)
  if loss == 'squared' and state.slopes is None:
    dual = (image.fits - y)[:, None] * x / rho
  else:
    primal += norm(image.fits - state.fits)
    dual = state.fit_dual[:, None] * x
  if state.slopes is not None:
    primal += norm((image.slopes - state.slopes).reshape(-1))
    dual += state.slope_dual
  gradient += _problem.slopes_transpose(masks, dual)
  return AdmmHistory(
    _problem.value(state.blocks, x, y, masks, beta, loss, epsilon),
    _problem.broken(state.blocks, x, masks, epsilon),
    primal,
    rho * norm(gradient.reshape(-1)),
  )
