"""A diagonal preconditioner refreshed at communication rounds (SAVIC)."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, reductions

Rule = Literal['adam', 'rmsprop', 'adagrad', 'adahessian', 'oasis']


class ScaleByPreconditionerState(NamedTuple):
  """State of `scale_by_preconditioner`."""

  num_refreshes: jax.Array  # shape=(), dtype=int32
  scale: base.Params  # D, float32 at least; without the lower bound


class Preconditioner(optax.GradientTransformationExtraArgs):
  """An optax transform that divides by a diagonal, refreshed on request.

  `update(updates, state, params=None, *, statistic=None, refresh=True,
  **extra)`, as in `scale_by_preconditioner`. Pass updates of zero to refresh
  the state alone.

  Attributes:
    uses_hessian: whether the statistic is an estimate of the diagonal of the
      Hessian, such as `hutchinson_diagonal`, instead of a gradient.
  """

  uses_hessian: bool

  def __new__(
    cls,
    init: Callable[[base.Params], ScaleByPreconditionerState],
    update: Callable,
    uses_hessian: bool,
  ) -> 'Preconditioner':
    """Builds the transform from `init` and `update`."""
    self = super().__new__(cls, init, update)
    self.uses_hessian = uses_hessian
    return self


def scale_by_preconditioner(
  rule: Rule = 'adam',
  *,
  decay: base.Scalar = 0.999,
  lower_bound: base.Scalar,
) -> Preconditioner:
  """Divides updates by a diagonal preconditioner, refreshed on request (SAVIC).

  `u / max(alpha, |D|)`, coordinate by coordinate. D is 1 at the start; at the
  t-th refresh (t = 0, 1, ...) with a statistic H it becomes

  ========== ===================================== ====================
  rule       D_t                                   H
  ========== ===================================== ====================
  adam       `sqrt(beta_t D^2 + (1 - beta_t) H^2)` gradient
  rmsprop    `sqrt(beta D^2 + (1 - beta) H^2)`     gradient
  adagrad    `sqrt(D^2 + H^2)`                     gradient
  adahessian as adam                               Hutchinson's product
  oasis      `beta D + (1 - beta) H`               Hutchinson's product
  ========== ===================================== ====================

  with `beta_t = (beta - beta^{t+1}) / (1 - beta^{t+1})`: this is Adam's bias
  correction, and the first refresh replaces the initial 1. With beta = 1 it is
  `t / (t + 1)`, a plain average; rmsprop and oasis with beta = 1 never change
  D, and (for alpha <= 1) do not precondition at all.

  Differences from optax: `scale_by_rms` and `scale_by_rss` add a small number
  instead of taking a maximum, and start at their `initial_scale` and
  `initial_accumulator_value`, which are 1 here. `scale_by_adam` refreshes in
  every step and includes a first moment; here, put a momentum transform before
  this one in a chain.

  In a local method (SAVIC) D is refreshed when workers communicate, and is
  constant during the local steps of a round. It may be computed from an
  aggregate of the workers' statistics and be the same for all (global), or from
  each worker's own (local). A global D is a second target for attacks: making D
  small lengthens the steps of all workers, up to `1 / alpha` times the
  gradient. So alpha should not be tiny. It is in the units of the statistic,
  and therefore has no default.

  A coordinate whose statistic is not finite, or overflows, keeps its D. Squares
  are never computed explicitly, so finite statistics neither overflow nor
  underflow.

  Args:
    rule: 'adam', 'rmsprop', 'adagrad', 'adahessian' or 'oasis'.
    decay: beta in [0, 1]; not used by adagrad. May be traced.
    lower_bound: alpha > 0; may be traced. The norm of an update is at most `1 /
      alpha` times that of the input.

  Returns:
    A `Preconditioner`. Its `update` takes `statistic`, shaped like the updates,
    or None to use the updates themselves (only for rules with H = gradient),
    and `refresh`, a bool or bool[]: whether to refresh D before the division.
    Updates keep shape and dtype.

  Raises:
    ValueError: if the rule is unknown or a number out of its range; at trace
      time, if a Hessian rule gets no statistic, or the statistic has another
      shape.

  References:
    Chezhegov, Skorik, Khachaturov, Shalagin, Avetisyan, Takac, Kholodov,
    Beznosikov, 2024, arXiv:2406.00846. AdaHessian: Yao, Gholami, Shen, Mustafa,
    Keutzer, Mahoney, 2020, arXiv:2006.00719. OASIS: Jahani, Rusakov, Shi,
    Richtarik, Mahoney, Takac, 2021, arXiv:2109.05198.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.scale_by_preconditioner('adam', lower_bound=0.5)
    >>> gradient = jnp.array([4., -0.1])
    >>> update, state = tx.update(gradient, tx.init(gradient))
    >>> print(update, state.scale)
    [ 1.  -0.2] [4.  0.1]
    >>> print(tx.update(2 * gradient, state, refresh=False)[0])
    [ 2.  -0.4]
  """
  name = 'scale_by_preconditioner'
  if rule not in get_args(Rule):
    raise ValueError(
      f'{name} needs rule to be one of {get_args(Rule)}, got {rule!r}'
    )
  checks.check_range(name, 'decay', decay, 0, 1)
  checks.check_range(name, 'lower_bound', lower_bound, 0, exclusive=True)
  uses_hessian = rule in ('adahessian', 'oasis')

  def init_fn(params):
    scale = jax.tree.map(
      lambda p: jnp.ones_like(p, dtype=flat.compute_dtype(p)), params
    )
    return ScaleByPreconditionerState(jnp.zeros([], jnp.int32), scale)

  def update_fn(
    updates, state, params=None, *, statistic=None, refresh=True, **extra
  ):
    del params, extra
    if refresh is not False:
      if statistic is None and uses_hessian:
        raise ValueError(
          f'{name}: the rule {rule!r} needs statistic in update, an estimate'
          ' of the diagonal of the Hessian such as that of'
          ' hutchinson_diagonal, got None'
        )
      statistic = updates if statistic is None else statistic
      _check_shapes(name, statistic, state.scale)
      state = _refreshed(rule, decay, statistic, state, refresh)
    updates = jax.tree.map(
      lambda u, d: (
        u.astype(d.dtype) / jnp.maximum(lower_bound, jnp.abs(d))
      ).astype(u.dtype),
      updates,
      state.scale,
    )
    return updates, state

  return Preconditioner(init_fn, update_fn, uses_hessian)


def _refreshed(
  rule: Rule,
  decay: base.Scalar,
  statistic: base.Params,
  state: ScaleByPreconditionerState,
  refresh: bool | jax.Array,
) -> ScaleByPreconditionerState:
  """The state after one refresh, or the state itself if there is none."""
  old, new = _shares(rule, decay, state.num_refreshes)

  def move(h, d):
    h = h.astype(d.dtype)
    if rule == 'oasis':
      moved = old * d + new * h
    else:
      moved = reductions.hypot(
        reductions.sqrt(old) * d, reductions.sqrt(new) * h
      )
    moved = moved.astype(d.dtype)
    return jnp.where(jnp.isfinite(moved) & refresh, moved, d)

  return ScaleByPreconditionerState(
    state.num_refreshes + jnp.asarray(refresh, jnp.int32),
    jax.tree.map(move, statistic, state.scale),
  )


def _shares(
  rule: Rule, decay: base.Scalar, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What the old scale and the statistic count in a refresh."""
  if rule == 'adagrad':
    return jnp.ones([]), jnp.ones([])
  decay = jnp.asarray(decay, flat.compute_dtype(jnp.result_type(float)))
  if rule in ('adam', 'adahessian'):
    # Powers of a decay near one are near one: their distance to it, by expm1,
    # keeps its digits. Clipped, as the logarithms of 0 and 1 leave 0 / 0.
    log = jnp.log(jnp.clip(decay, 1e-30, 1 - jnp.finfo(decay.dtype).epsneg))
    decay = decay * jnp.expm1(count * log) / jnp.expm1((count + 1) * log)
  return decay, 1 - decay


def _check_shapes(
  name: str, statistic: base.Params, scale: base.Params
) -> None:
  leaves, treedef = jax.tree.flatten(statistic)
  expected, expected_treedef = jax.tree.flatten(scale)
  got = [jnp.shape(x) for x in leaves]
  shapes = [jnp.shape(x) for x in expected]
  if (got, treedef) != (shapes, expected_treedef):
    raise ValueError(
      f'{name} needs a statistic shaped like the parameters, {shapes} in'
      f' {expected_treedef}, got {got} in {treedef}'
    )
