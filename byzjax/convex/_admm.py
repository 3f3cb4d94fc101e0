"""ADMM for the convex program of a two-layer ReLU network."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks
from byzjax.convex import _iteration, _linear, _losses, _problem
from byzjax.convex._iteration import AdmmHistory, AdmmState

_NAME = 'admm'


def admm(
  x: jax.Array,
  y: jax.Array,
  arrangements: jax.Array,
  *,
  beta: base.Scalar,
  rho: base.Scalar,
  num_iterations: int,
  loss: str = 'squared',
  dual_ratio: base.Scalar = 1.0,
  record_every: int = 1,
  state: AdmmState | None = None,
) -> tuple[AdmmState, AdmmHistory]:
  r"""Trains a two-layer ReLU network to the global optimum of a convex program.

  .. math::
    \min_{v, w} \; \ell\big(\textstyle\sum_i D_i X (v_i - w_i), y\big)
    + \beta \sum_i (|v_i| + |w_i|) \quad \text{with} \quad
    (2 D_i - I) X v_i \ge 0, \; (2 D_i - I) X w_i \ge 0

  Here u is a copy of all blocks, F maps blocks to outputs (`predict`), and G
  maps them to the left sides of the constraints (see `violation`): `u = v`, `G
  u = s`, `s >= 0`. One iteration, for the squared loss::

      u   <- (I + F^T F / rho + G^T G)^-1 (F^T y / rho + v - lambda
                                           + G^T (s - nu))
      v_i <- (1 - (beta / rho) / |u_i + lambda_i|)_+ (u_i + lambda_i)
      s   <- (G u + nu)_+
      lambda <- lambda + r (u - v),    nu <- nu + r (G u - s)

  The other losses also copy the outputs, `z = F u`, with a dual of its own.
  Then z is the proximal map of `loss / rho` at `F u + dual`, in closed form or
  by Newton steps, and `F^T F` replaces `F^T F / rho`. The matrix is factorised
  once, in n or P d dimensions, whichever is less; F and G are never built.

  Predictions are good long before the optimum is exact. To stop at a given
  residual, call the function again with the state that it returned.

  Args:
    x: X, float[n, d]. For a bias, append a column of ones.
    y: float[n]; -1 or 1 unless the loss is squared.
    arrangements: the D_i, bool[P, n], as from `sample_arrangements`.
    beta: weight of the norms, `>= 0`; may be traced.
    rho: penalty of the augmented Lagrangian, `> 0`; may be traced. It changes
      the speed of convergence, not the optimum.
    num_iterations: a Python int >= 0.
    loss: 'squared' (half the sum of squares), 'hinge' (the mean over examples)
      or 'logistic' (the sum over examples).
    dual_ratio: r, the dual step as a multiple of rho, in (0, 1.618]; may be
      traced.
    record_every: iterations between entries of the history, a Python int >= 1
      that divides num_iterations.
    state: a state to continue from, or None to start at zero.

  Returns:
    An `AdmmState`, whose `blocks` are the v_i and w_i, and an `AdmmHistory`.

  Raises:
    ValueError: if shapes are inconsistent or an argument is out of its range.

  References:
    Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965; Pilanci, Ergen, 2020,
    arXiv:2002.10553.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import convex
    >>> x = jax.random.normal(jax.random.key(0), (20, 3))
    >>> y = jnp.maximum(x[:, 0], 0) - jnp.maximum(x[:, 1], 0)
    >>> patterns = convex.sample_arrangements(x, 10, jax.random.key(1))
    >>> state, history = convex.admm(
    ...   x, y, patterns, beta=0.01, rho=0.1, num_iterations=300)
    >>> bool(history.objective[-1] < 0.1 * history.objective[0])
    True
    >>> network = convex.recover_network(state.blocks)
  """
  _losses.check_loss(_NAME, loss, y)
  check_numbers(_NAME, beta, rho, dual_ratio, num_iterations, record_every)
  x, y, masks = _problem.arrays(_NAME, x, y, arrangements)
  return _run(
    x, y, masks, beta, rho, dual_ratio, state,
    loss, num_iterations, record_every,
  )  # fmt: skip


def check_numbers(
  name: str, beta, rho, dual_ratio, num_iterations, record_every
) -> None:
  """Raises ValueError for an argument that is out of its range."""
  checks.check_range(name, 'beta', beta, 0)
  checks.check_range(name, 'rho', rho, 0, exclusive=True)
  checks.check_range(name, 'dual_ratio', dual_ratio, 0, 1.618, exclusive=True)
  checks.check_count(name, 'num_iterations', num_iterations)
  checks.check_count(name, 'record_every', record_every, 1)
  if num_iterations % record_every:
    raise ValueError(
      f'{name} needs record_every to divide num_iterations, got'
      f' {record_every} and {num_iterations}'
    )


def repeat(step, measure, state, num_iterations: int, record_every: int):
  """The state after all iterations, and a measurement every `record_every`."""

  def stretch(state, _):
    state = lax.fori_loop(0, record_every, lambda _, s: step(s), state)
    return state, measure(state)

  return lax.scan(stretch, state, length=num_iterations // record_every)


@functools.partial(
  jax.jit, static_argnames=('loss', 'num_iterations', 'record_every')
)
def _run(
  x, y, masks, beta, rho, ratio, state, loss, num_iterations, record_every
):
  weight = _iteration.fit_weight(loss, rho)
  fit_scale = _losses.scale(loss, y.size) / rho
  factors = _linear.factorize(x, masks, weight)
  if state is None:
    state = _iteration.zero_state(x, y, masks, loss=loss, robust=False)

  def step(state):
    u = _iteration.copy_step(state, factors, x, masks, weight)
    image = _iteration.images(x, masks, u)
    state = state._replace(
      copies=u,
      blocks=_losses.group_threshold(u + state.block_dual, beta / rho),
      slacks=jnp.maximum(image.slacks + state.slack_dual, 0),
      fits=_iteration.fit_step(state, image, y, loss, fit_scale),
    )
    return _iteration.dual_step(state, image, loss, ratio)

  def measure(state):
    return _iteration.measure(state, x, y, masks, beta=beta, rho=rho, loss=loss)

  return repeat(step, measure, state, num_iterations, record_every)
