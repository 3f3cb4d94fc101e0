"""Delta-SGD: a step size from the local curvature of the loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, reductions


class ScaleByDeltaSgdState(NamedTuple):
  """State of `scale_by_delta_sgd`."""

  step: jax.Array  # shape=(), dtype=int32
  previous_params: base.Params
  step_size: jax.Array  # shape=(), eta_{k-1}; before the first step eta_0
  ratio: jax.Array  # shape=(), theta_{k-1}


def scale_by_delta_sgd(
  *,
  initial_step_size: base.Scalar = 0.2,
  gamma: base.Scalar = 2.0,
  damping: base.Scalar = 0.1,
  initial_ratio: base.Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """SGD with a step size that adapts to the local smoothness (Delta-SGD).

  The first step is `-eta_0 g(x_0)`. Then, with both gradients of the difference
  computed on the batch of the current step,

  `eta_k = min(gamma |x_k - x_{k-1}| / (2 |g(x_k) - g(x_{k-1})|),
  sqrt(1 + delta theta_{k-1}) eta_{k-1})`, `theta_k = eta_k / eta_{k-1}`,

  and the update is `-eta_k g(x_k)`. This is a complete optimizer: no learning
  rate follows, and it must come first in a chain, before any preconditioner,
  because it needs the gradient itself. Norms are over all leaves. If one of the
  differences is zero, the curvature is unknown and eta_k is the second term of
  the minimum.

  A step costs one extra gradient, and the state the memory of one extra model.
  In federated learning every worker has its own state, initialised anew in each
  round: `local_round(local_state='reset')`, which also passes `gradient_fn`.
  With a persistent state, the first difference of a round spans the server's
  step. The loss must be the same function at both points: with dropout, use the
  same key.

  The authors' code applies the growth rule to the first step too: that is
  `initial_step_size = eta_0 s` and `initial_ratio = s` with `s = sqrt(1 + delta
  theta_0)`. Its default is delta = 0.02, it writes gamma / 2 as the inverse of
  a damping factor, and it adds a small constant to the minimum, which is
  omitted here and matters only for step sizes of its order.

  All arguments may be traced.

  Args:
    initial_step_size: eta_0 > 0.
    gamma: gamma > 0; on a quadratic with Hessian `L I` the step size is at most
      `gamma / (2 L)`. With inf (and delta = 0) this is SGD.
    damping: delta >= 0, the growth rate of the step size; 0 for no growth.
    initial_ratio: theta_0 >= 0.

  Returns:
    An optax transform. `update(updates, state, params, *, gradient_fn)` needs
    the parameters and `gradient_fn: params -> gradient` on the batch that
    `updates` is the gradient on. Updates keep shape and dtype; the step size is
    float32 at least.

  Raises:
    ValueError: if an argument is out of range; at trace time, if `params` or
      `gradient_fn` is missing.

  References:
    Kim, Toghani, Uribe, Kyrillidis, 2023, arXiv:2306.11201; for one machine,
    Malitsky, Mishchenko, 2019, arXiv:1910.09529.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> tx = byzjax.scale_by_delta_sgd()
    >>> gradient_fn = jax.grad(lambda x: 5 * jnp.sum(x ** 2))
    >>> x = jnp.ones(2)
    >>> state = tx.init(x)
    >>> for _ in range(2):
    ...   update, state = tx.update(
    ...     gradient_fn(x), state, x, gradient_fn=gradient_fn)
    ...   x = x + update
    ...   print(state.step_size)
    0.2
    0.1
  """
  name = 'scale_by_delta_sgd'
  checks.check_range(
    name, 'initial_step_size', initial_step_size, 0, exclusive=True
  )
  checks.check_range(name, 'gamma', gamma, 0, exclusive=True)
  checks.check_range(name, 'damping', damping, 0)
  checks.check_range(name, 'initial_ratio', initial_ratio, 0)

  def init_fn(params):
    dtype = flat.compute_dtype(*jax.tree.leaves(params))
    return ScaleByDeltaSgdState(
      jnp.zeros([], jnp.int32),
      _copied(params),
      jnp.asarray(initial_step_size, dtype),
      jnp.asarray(initial_ratio, dtype),
    )

  def update_fn(
    updates: base.Params,
    state: ScaleByDeltaSgdState,
    params: base.Params | None = None,
    *,
    gradient_fn: Callable[[base.Params], base.Params] | None = None,
    **extra,
  ):
    del extra
    if params is None:
      raise ValueError(f'{name} needs params in update, got None')
    if gradient_fn is None:
      raise ValueError(
        f'{name} needs gradient_fn in update, the gradient on the batch of'
        ' this step as a function of params, got None'
      )
    eta, dtype = state.step_size, state.step_size.dtype
    dx = _distance(params, state.previous_params, dtype)
    dg = _distance(updates, gradient_fn(state.previous_params), dtype)
    # False for NaN too. A gradient that overflows says nothing of curvature,
    # and a step size of zero would stay zero.
    curved = (dx > 0) & (dg > 0) & jnp.isfinite(dg)
    cap = jnp.where(
      curved, gamma * dx / (2 * jnp.where(curved, dg, 1)), jnp.inf
    )
    grown = jnp.sqrt(1 + damping * state.ratio) * eta
    is_first = state.step == 0
    # Not 0, where the ratio is 0 / 0, nor inf: times a zero gradient it is NaN.
    limits = jnp.finfo(dtype)
    new_eta = jnp.clip(jnp.minimum(cap, grown), limits.tiny, limits.max)
    new_eta = jnp.where(is_first, eta, new_eta).astype(dtype)
    ratio = jnp.where(is_first, state.ratio, new_eta / eta).astype(dtype)
    updates = jax.tree.map(
      lambda g: (-new_eta * g.astype(dtype)).astype(g.dtype), updates
    )
    return updates, ScaleByDeltaSgdState(
      optax.safe_increment(state.step),
      _copied(params),
      new_eta,
      ratio,
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _copied(params: base.Params) -> base.Params:
  # Not the parameters' own buffers: a state may be donated. And no weak types.
  return jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)


def _distance(x: base.Params, y: base.Params, dtype: jnp.dtype) -> jax.Array:
  """The norm of `x - y` over all leaves."""
  squares = jax.tree.map(
    lambda a, b: jnp.sum(jnp.square(a.astype(dtype) - b.astype(dtype))), x, y
  )
  return reductions.sqrt(jnp.asarray(sum(jax.tree.leaves(squares))))
