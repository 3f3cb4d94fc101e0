"""Worker momentum, as a moving average that starts at the first gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat


class WorkerMomentumState(NamedTuple):
  """State of `worker_momentum`."""

  step: jax.Array  # shape=(), dtype=int32
  momentum: base.Params


def worker_momentum(
  decay: base.Scalar,
) -> optax.GradientTransformation:
  """A moving average of gradients that starts at the first gradient.

  `m_0 = g_0`, `m_t = beta m_{t-1} + (1 - beta) g_t`. This differs from
  `optax.trace`, which sums (`M_t = beta M_{t-1} + g_t`), and from `optax.ema`,
  which starts at zero: a clipping radius or a learning rate tuned for one of
  them does not fit the others.

  Pass it as `worker` of `robust_round`, or wrap it in `per_worker`.

  Args:
    decay: beta in [0, 1]; 0 sends the gradient itself; may be traced.

  Returns:
    An optax transform with a `WorkerMomentumState`; updates keep shape and
    dtype, and the momentum is kept in float32 at least.

  Raises:
    ValueError: if beta is outside of [0, 1].

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333; the first step as in Yang,
    Shi, Li, 2023, arXiv:2305.13856.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.worker_momentum(0.75)
    >>> state = tx.init(jnp.zeros(1))
    >>> first, state = tx.update(jnp.array([4.]), state)
    >>> second, state = tx.update(jnp.array([8.]), state)
    >>> print(first, second)
    [4.] [5.]
  """
  checks.check_range('worker_momentum', 'decay', decay, 0, 1)

  def init_fn(params):
    # Half precision would round the decay itself: 0.99 is 0.988 in bfloat16.
    momentum = jax.tree.map(
      lambda p: jnp.zeros(jnp.shape(p), flat.compute_dtype(p)), params
    )
    return WorkerMomentumState(jnp.zeros([], jnp.int32), momentum)

  def update_fn(updates, state, params=None):
    del params
    # At the first step the whole weight is on the gradient.
    beta = jnp.where(state.step == 0, 0, decay)
    momentum = jax.tree.map(
      lambda m, g: (beta * m + (1 - beta) * g.astype(m.dtype)).astype(m.dtype),
      state.momentum,
      updates,
    )
    step = optax.safe_increment(state.step)
    updates = jax.tree.map(lambda m, g: m.astype(g.dtype), momentum, updates)
    return updates, WorkerMomentumState(step, momentum)

  return optax.GradientTransformation(init_fn, update_fn)
