"""Delayed Nesterov: the momentum is updated once per N messages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import (
  base,
  checks,
  flat,
  parameters,
)


class DelayedNesterovState(NamedTuple):
  """State of `delayed_nesterov`."""

  step: jax.Array  # shape=(), dtype=int32, messages so far
  momentum: base.Params  # m; float32 at least
  buffer: (
    base.Params
  )  # the sum of this buffer's messages, or their rows [N, ...]
  aggregator: base.State


def delayed_nesterov(
  learning_rate: optax.ScalarOrSchedule,
  *,
  num_buffered: int,
  momentum: base.Scalar = 0.9,
  activation: base.Scalar = 0.0,
  aggregator: base.Aggregator | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Nesterov momentum for single messages, updated once per N messages.

  Every message g contributes to a step at once, and the N-th message also
  updates the momentum by the mean of the last N:

  =============== ============================ =================================
  message         momentum                     step over -eps
  =============== ============================ =================================
  the first N - 1 unchanged                    `c beta m + g / N`
  the N-th        `m <- beta m + mean of N`    `(1 - (N - 1) c) beta m + g / N`
  =============== ============================ =================================

  The N-th step uses the new m. With N = 1 this is Nesterov momentum per
  message, `optax.sgd(eps, momentum=beta, nesterov=True)`; with beta = 0, plain
  SGD with weight 1 / N. If c = 0 and N = K messages come from the same
  parameters, every N messages make one synchronous Nesterov step on their mean,
  so a synchronous learning rate can be kept. With c > 0 this equality holds
  only for a constant momentum. Messages have weight 1 / N here; a deployed
  variant without this division uses an N times smaller eps.

  With an `aggregator` the momentum is updated by its aggregate of the last N
  messages instead of their mean. The steps `g / N` still use single messages:
  clip them first. A fast worker can fill the buffer, because the rule sees N
  messages, not N workers.

  `update` takes one message, a gradient or a pseudo-gradient (the parameters
  that were sent minus the result of the local steps), as in
  `asynchronous_round`. It needs no further arguments.

  Args:
    learning_rate: eps > 0, or a schedule of it by the number of messages.
    num_buffered: N >= 1, a Python int; usually the number of workers.
    momentum: beta in [0, 1]; may be traced.
    activation: c in [0, 1 / N], the share of the momentum in each of the first
      N - 1 steps; may be traced.
    aggregator: a rule over N messages, or None for the mean.

  Returns:
    An optax optimizer with a `DelayedNesterovState`: memory of two models, or
    of 1 + N with an aggregator. `update` forwards `key` to the aggregator.

  Raises:
    ValueError: if N, beta or c is out of range; at trace time, if the rule
      raises.

  References:
    Liu et al., 2024, arXiv:2401.09135.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> optimizer = byzjax.delayed_nesterov(1.0, num_buffered=2, momentum=0.5)
    >>> w = jnp.zeros(1)
    >>> state = optimizer.init(w)
    >>> for _ in range(2):
    ...   update, state = optimizer.update(jnp.array([4.]), state, w)
    ...   print(update, state.momentum)
    [-2.] [0.]
    [-4.] [4.]
  """
  name, n = 'delayed_nesterov', num_buffered
  checks.check_rate(name, 'learning_rate', learning_rate)
  checks.check_count(name, 'num_buffered', n, 1)
  checks.check_range(name, 'momentum', momentum, 0, 1)
  if aggregator is not None:
    checks.check_kind(name, 'aggregator', aggregator, base.Aggregator)
  checks.check_range(name, 'activation', activation, 0, 1 / n)

  def init_fn(params):
    zeros = jax.tree.map(
      lambda p: jnp.zeros_like(p, dtype=flat.compute_dtype(p)), params
    )
    step = jnp.zeros([], jnp.int32)
    if aggregator is None:
      # Not the same buffers twice: a state may be donated.
      return DelayedNesterovState(step, zeros, optax.tree.zeros_like(zeros), ())
    rows = parameters.zeros_like(params, (n,))
    return DelayedNesterovState(step, zeros, rows, aggregator.init(params))

  def gather(updates, state, hit, params, key):
    """The buffer with this message, its mean, and the aggregator's state."""
    if aggregator is None:
      total = jax.tree.map(
        lambda s, g: s + g.astype(s.dtype), state.buffer, updates
      )
      mean = jax.tree.map(lambda s: s / n, total)
      return jax.tree.map(lambda s: jnp.where(hit, 0, s), total), mean, ()
    slot = state.step % n
    rows = jax.tree.map(
      lambda r, g: lax.dynamic_update_index_in_dim(
        r, g.astype(r.dtype), slot, 0
      ),
      state.buffer,
      updates,
    )

    def aggregate(old):
      row, new = aggregator.update(rows, old, params, key=key)
      return optax.tree.cast_like(row, state.momentum), new

    mean, kept = lax.cond(
      hit, aggregate, lambda old: (state.momentum, old), state.aggregator
    )
    return rows, mean, kept

  def update_fn(updates, state, params=None, *, key=None, **extra):
    del extra
    hit = state.step % n == n - 1
    buffer, mean, kept = gather(updates, state, hit, params, key)
    new_momentum = jax.tree.map(
      lambda m, x: jnp.where(hit, momentum * m + x, m).astype(m.dtype),
      state.momentum,
      mean,
    )
    # With N = 1 exactly one.
    share = jnp.where(hit, 1 - (n - 1) * activation, activation)
    eps = base.value_at(learning_rate, state.step)
    updates = jax.tree.map(
      lambda g, m: (
        -eps * (share * (momentum * m) + g.astype(m.dtype) / n)
      ).astype(g.dtype),
      updates,
      new_momentum,
    )
    step = optax.safe_increment(state.step)
    return updates, DelayedNesterovState(step, new_momentum, buffer, kept)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
