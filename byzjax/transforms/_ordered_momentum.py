"""Ordered momentum (OrMo): late gradients enter the momentum at their place."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat
from byzjax.transforms import _arrivals

Bucket = Literal['ceil', 'floor']


class OrderedMomentumState(NamedTuple):
  """State of `ordered_momentum`."""

  step: jax.Array  # shape=(), dtype=int32, messages so far
  num_ticks: (
    jax.Array
  )  # shape=(), dtype=int32, I: decays of the momentum so far
  momentum: base.Params  # u, the learning rates included; float32 at least


def ordered_momentum(
  learning_rate: optax.ScalarOrSchedule,
  *,
  num_workers: int,
  momentum: base.Scalar = 0.9,
  bucket: Bucket = 'ceil',
  delay_adaptive: bool = False,
  catch_up: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Momentum for asynchronous SGD that is independent of arrival order (OrMo).

  Gradients are assigned to buckets by `b(i) = ceil(i / K)`, where i is the
  iteration at which their parameters were sent and K = num_workers, and the
  momentum decays once per bucket instead of once per message. At the t-th
  update of the server, with a gradient g of iteration i:

  1. if `b(t) > I` and no worker is waiting for parameters: `w <- w - beta u`,
     `u <- beta u`, `I <- I + 1`;
  2. with `j = I - b(i)`: `u <- u + beta^j eta g`, `w <- w - (1 + beta + ... +
     beta^j) eta g`.

  So g has the same effect as if it had arrived in time. If every step waits for
  all workers, this is momentum SGD on the *sum* of K gradients: eta here is 1 /
  K of the learning rate for their mean. With K = 1 it is heavy-ball momentum,
  with beta = 0 asynchronous SGD. At any time

  `(1 - beta) (w_0 - w_t) + beta u_t = sum of all eta g`,

  so `params - beta / (1 - beta) * state.momentum` are the parameters of plain
  SGD with the learning rate `eta / (1 - beta)` on the same gradients.

  With bucket='floor', b(i) is `floor(i / K)`; its first bucket has 2 K - 1
  members.

  The delay-adaptive option differs from that of the paper (OrMo-DA), whose
  convergence is proven for a learning rate that needs the smoothness constant
  of the loss. The factor `min(1, K / staleness)` here needs none; it is adapted
  from delay-adaptive SGD without momentum (Mishchenko et al.), and no theorem
  of the paper covers it.

  Workers add weight decay to their gradients. A schedule is evaluated once per
  message, when it arrives.

  `update(updates, state, params, *, issued_at, staleness, is_waiting=False)`
  takes one gradient. `asynchronous_round` passes these arguments; in your own
  training loop, pass `issued_at`, the i above, from the server's own count of
  updates when it sent the parameters, never from a worker; `staleness`, the
  number of updates since then; and `is_waiting`, whether some worker has
  delivered a message and is waiting for parameters.

  Args:
    learning_rate: eta > 0 of a single gradient, or a schedule of it by the
      number of messages.
    num_workers: K >= 1, a Python int.
    momentum: beta in [0, 1); may be traced.
    bucket: 'ceil' or 'floor'.
    delay_adaptive: whether eta is multiplied by `min(1, K / staleness)`, as by
      the transform `delay_adaptive`; not covered by the theorems, see above.
    catch_up: False moves w by `eta g` for any j, for ablations; then the
      equation above does not hold.

  Returns:
    An optax optimizer with an `OrderedMomentumState`; memory of one model.

  Raises:
    ValueError: if K or beta is out of range or the bucket unknown; at trace
      time, if `issued_at` or `staleness` is missing.

  References:
    Shi, Yang, Li, 2024, arXiv:2407.19234; for the factor of the delay,
    Mishchenko, Bach, Even, Woodworth, 2022, arXiv:2206.07638.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> optimizer = byzjax.ordered_momentum(0.5, num_workers=2, momentum=0.5)
    >>> w = jnp.zeros(1)
    >>> state = optimizer.init(w)
    >>> for t, i in enumerate([0, 1, 0]):  # The last one is late.
    ...   update, state = optimizer.update(
    ...     jnp.ones(1), state, w, issued_at=i, staleness=t - i)
    ...   w = w + update
    >>> print(w, state.momentum)
    [-2.] [1.]
  """
  name = 'ordered_momentum'
  checks.check_rate(name, 'learning_rate', learning_rate)
  checks.check_count(name, 'num_workers', num_workers, 1)
  checks.check_momentum(name, 'momentum', momentum)
  checks.check_choice(name, 'bucket', bucket, get_args(Bucket))
  checks.check_flag(name, 'delay_adaptive', delay_adaptive)
  checks.check_flag(name, 'catch_up', catch_up)

  def bucket_of(iteration):
    return (iteration + (bucket == 'ceil') * (num_workers - 1)) // num_workers

  def init_fn(params):
    zeros = jax.tree.map(
      lambda p: jnp.zeros_like(p, dtype=flat.compute_dtype(p)), params
    )
    step = jnp.zeros([], jnp.int32)
    # Not the same buffer twice: a state may be donated.
    return OrderedMomentumState(step, jnp.zeros_like(step), zeros)

  def update_fn(
    updates,
    state,
    params=None,
    *,
    issued_at=None,
    staleness=None,
    is_waiting=False,
    **extra,
  ):
    del params, extra
    _arrivals.require(name, issued_at=issued_at, staleness=staleness)
    dtype = flat.compute_dtype(*jax.tree.leaves(state.momentum))
    beta = jnp.asarray(momentum, dtype)
    # The server's count and not that of this state: a filter in front may keep
    # messages from here.
    late = bucket_of(issued_at + staleness) > state.num_ticks
    ticks = late & ~jnp.asarray(is_waiting, bool)
    num_ticks = state.num_ticks + ticks.astype(jnp.int32)
    j = jnp.maximum(num_ticks - bucket_of(issued_at), 0).astype(dtype)
    rate = base.value_at(learning_rate, state.step)
    eta = jnp.asarray(rate, dtype)
    if delay_adaptive:
      eta = eta * _delay_factor(num_workers, staleness, dtype)
    entering = beta**j * eta
    moving = _geometric_sum(beta, j) * eta if catch_up else eta
    decayed = jax.tree.map(
      lambda u: jnp.where(ticks, beta * u, u).astype(u.dtype), state.momentum
    )
    new_updates = jax.tree.map(
      lambda g, u: (
        -jnp.where(ticks, u, 0) - moving * g.astype(u.dtype)
      ).astype(g.dtype),
      updates,
      decayed,
    )
    new_momentum = jax.tree.map(
      lambda g, u: (u + entering * g.astype(u.dtype)).astype(u.dtype),
      updates,
      decayed,
    )
    step = optax.safe_increment(state.step)
    return new_updates, OrderedMomentumState(step, num_ticks, new_momentum)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _geometric_sum(beta: jax.Array, j: jax.Array) -> jax.Array:
  """`1 + beta + ... + beta^j`, to all digits also near beta = 1."""
  gap = 1 - beta
  total = -jnp.expm1((j + 1) * jnp.log1p(-gap)) / jnp.where(gap > 0, gap, 1)
  return jnp.where(gap > 0, total, j + 1)


def _delay_factor(
  num_workers: int, staleness: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  return num_workers / jnp.maximum(num_workers, staleness).astype(dtype)
