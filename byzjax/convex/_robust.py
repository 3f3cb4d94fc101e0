"""Adversarial training of a ReLU network as a convex program."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks
from byzjax.convex import _admm, _iteration, _linear, _losses, _problem
from byzjax.convex._iteration import AdmmHistory, AdmmState

_NAME = 'robust_admm'


def robust_admm(
  x: jax.Array,
  y: jax.Array,
  arrangements: jax.Array,
  *,
  epsilon: base.Scalar | jax.Array,
  beta: base.Scalar,
  rho: base.Scalar,
  num_iterations: int,
  loss: str = 'hinge',
  dual_ratio: base.Scalar = 1.0,
  record_every: int = 1,
  state: AdmmState | None = None,
) -> tuple[AdmmState, AdmmHistory]:
  r"""Adversarial training of a ReLU network: the worst inputs in a box (ADMM).

  .. math::
    \min_{v, w} \; \ell_\epsilon(v, w) + \beta \sum_i (|v_i| + |w_i|)
    \quad \text{with} \quad (2 D_i - I) X v_i \ge \epsilon |v_i|_1, \;
    (2 D_i - I) X w_i \ge \epsilon |w_i|_1

  where the loss is the one of `objective` with this epsilon. For the hinge loss
  it is `(1/n) sum_k (1 - y_k f_k + epsilon |r_k|_1)_+` with `r_k = sum_i D_i[k]
  (v_i - w_i)`. The constraints keep every unit active on the same examples in
  the whole box. So this loss is an upper bound, for feasible blocks, of the
  network's loss on any inputs in the box, whatever the attack.

  Two steps of `admm` change. The slopes `r_k` get copies, which are updated
  with those of the outputs by a joint proximal map of the loss; blocks and
  slacks are updated by a joint proximal map of the norm and the constraints.
  Each solves increasing equations in one variable, by bisection to the
  precision of its dtype. With epsilon zero the program, and so the optimum, is
  that of `admm`.

  The linear system has P d dimensions; memory is `8 (P d)^2` bytes in float64.

  Args:
    x: X, float[n, d].
    y: float[n]; -1 or 1 unless the loss is squared.
    arrangements: the D_i, bool[P, n], best from `sample_arrangements` with the
      same epsilon and some perturbations.
    epsilon: half the side of the box, `>= 0`, a number or float[d] (zero in a
      column of ones); may be traced.
    beta: weight of the norms, `>= 0`; may be traced.
    rho: penalty of the augmented Lagrangian, `> 0`; may be traced.
    num_iterations: a Python int >= 0.
    loss: 'squared', 'hinge' or 'logistic'.
    dual_ratio: the dual step as a multiple of rho, in (0, 1.618]; may be
      traced.
    record_every: iterations between entries of the history, a Python int >= 1
      that divides num_iterations.
    state: a state to continue from, or None to start at zero.

  Returns:
    An `AdmmState`, whose `blocks` are the v_i and w_i, and an `AdmmHistory` of
    the robust objective and constraints.

  Raises:
    ValueError: if shapes are inconsistent or an argument is out of its range.

  References:
    Bai, Gautam, Sojoudi, 2022, arXiv:2201.01965; Bai, Gautam, Gai, Sojoudi,
    2021, arXiv:2105.12237.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import convex
    >>> x = jax.random.normal(jax.random.key(0), (12, 2))
    >>> y = jnp.sign(x[:, 0])
    >>> patterns = convex.sample_arrangements(
    ...   x, 6, jax.random.key(1), epsilon=0.1, num_perturbations=2)
    >>> state, history = convex.robust_admm(
    ...   x, y, patterns, epsilon=0.1, beta=0.01, rho=0.01,
    ...   num_iterations=500)
    >>> bool(history.objective[-1] < 1 and history.violation[-1] < 0.1)
    True
  """
  _losses.check_loss(_NAME, loss, y)
  _admm.check_numbers(
    _NAME, beta, rho, dual_ratio, num_iterations, record_every
  )
  checks.check_range(_NAME, 'epsilon', epsilon, 0, array=True)
  x, y, masks = _problem.arrays(_NAME, x, y, arrangements)
  epsilon = _problem.sizes(epsilon, x)
  return _run(
    x, y, masks, epsilon, beta, rho, dual_ratio, state,
    loss, num_iterations, record_every,
  )  # fmt: skip


@functools.partial(
  jax.jit, static_argnames=('loss', 'num_iterations', 'record_every')
)
def _run(
  x, y, masks, epsilon, beta, rho, ratio, state,
  loss, num_iterations, record_every,
):  # fmt: skip
  fit_scale = _losses.scale(loss, y.size) / rho
  factors = _linear.factorize(x, masks, 1.0, slope_terms=True)
  if state is None:
    state = _iteration.zero_state(x, y, masks, loss=loss, robust=True)

  def step(state):
    u = _iteration.copy_step(state, factors, x, masks, 1.0)
    image = _iteration.images(x, masks, u)
    blocks, slacks = feasible_proximal(
      u + state.block_dual, image.slacks + state.slack_dual, epsilon, beta / rho
    )
    fits, slopes = loss_proximal(
      loss,
      image.fits + state.fit_dual,
      image.slopes + state.slope_dual,
      y,
      epsilon,
      fit_scale,
    )
    state = state._replace(
      copies=u, blocks=blocks, slacks=slacks, fits=fits, slopes=slopes
    )
    return _iteration.dual_step(state, image, loss, ratio)

  def measure(state):
    return _iteration.measure(
      state, x, y, masks, beta=beta, rho=rho, loss=loss, epsilon=epsilon
    )

  return _admm.repeat(step, measure, state, num_iterations, record_every)


def feasible_proximal(
  a: jax.Array, b: jax.Array, epsilon: jax.Array, threshold: base.Scalar
) -> tuple[jax.Array, jax.Array]:
  """Proximal map of the norms of the blocks v, with constraints on slacks s.

  `argmin threshold |v| + |v - a|^2 / 2 + |s - b|^2 / 2` with `s_k >= e . |v|`
  for all k, on the last axes d of a and n of b. With m the sum of the
  multipliers, `v = group(soft(a, e m))` and `m = sum_k (e . |v| - b_k)_+`.
  """

  def block(height):
    multiplier = jnp.sum(jnp.maximum(height[..., None] - b, 0), axis=-1)
    scaled = multiplier[..., None] * jnp.expand_dims(epsilon, range(a.ndim - 1))
    return _losses.group_threshold(_losses.soft_threshold(a, scaled), threshold)

  def excess(height):
    return _problem.spread(epsilon, block(height)) - height

  height = _root(
    excess, jnp.zeros(a.shape[:-1], a.dtype), _problem.spread(epsilon, a)
  )
  return block(height), jnp.maximum(b, height[..., None])


def loss_proximal(
  loss: str,
  a: jax.Array,
  b: jax.Array,
  y: jax.Array,
  epsilon: jax.Array,
  weight: base.Scalar,
) -> tuple[jax.Array, jax.Array]:
  """Proximal map of the loss l, of the outputs f[n] and the slopes r[n, d].

  `argmin weight * l(f, y, e . |r|) + (f - a)^2 / 2 + |r - b|^2 / 2`. With t the
  weighted derivative of l, f changes by t, and `r = soft(b, e t)`.
  """

  def moved(t):
    return _losses.soft_threshold(b, t[:, None] * epsilon[None])

  def force(t):
    spread = _problem.spread(epsilon, moved(t))
    if loss == 'squared':
      return weight * (jnp.maximum(jnp.abs(a - y) - t, 0) + spread)
    margin = y * a + t - spread
    if loss == 'hinge':
      return weight * (margin < 1)
    return weight * jax.nn.sigmoid(-margin)

  bound = jnp.full_like(a, weight)
  if loss == 'squared':
    bound *= jnp.abs(a - y) + _problem.spread(epsilon, b)
  t = _root(lambda t: force(t) - t, jnp.zeros_like(a), bound)
  if loss == 'squared':
    return y + _losses.soft_threshold(a - y, t), moved(t)
  return a + y * t, moved(t)


def _root(
  decreasing: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> jax.Array:
  """The roots of decreasing functions of one variable, by bisection."""

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    above = decreasing(middle) > 0
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  steps = jnp.finfo(low.dtype).nmant + 2
  low, high = lax.fori_loop(0, steps, halve, (low, high))
  return (low + high) / 2
