"""SMEGA2: one momentum for all workers, and predicted parameters for them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat


class Smega2State(NamedTuple):
  """State of `smega2`."""

  step: jax.Array  # shape=(), dtype=int32, messages so far
  momentum: base.Params  # m; float32 at least
  total: base.Params  # G, the sum of the messages since m last moved


class Smega2(optax.GradientTransformationExtraArgs):
  """An optax optimizer that can predict future parameters.

  Attributes:
    estimate: `(params, Smega2State) -> params`, the prediction that the server
      sends to its workers instead of its parameters.
  """

  estimate: Callable[[base.Params, Smega2State], base.Params]

  def __new__(
    cls, init: Callable, update: Callable, estimate: Callable
  ) -> 'Smega2':
    """Builds the transform from `init` and `update`."""
    self = super().__new__(cls, init, update)
    self.estimate = estimate
    return self


def smega2(
  learning_rate: optax.ScalarOrSchedule,
  *,
  num_workers: int,
  momentum: base.Scalar = 0.9,
) -> Smega2:
  """Momentum for asynchronous SGD that sends predicted parameters (SMEGA2).

  With N = num_workers messages per cycle and a message g: `G <- G + g`, `w <- w
  - eta (g + beta m)` with the momentum m before this message, and at the last
  message of a cycle `m <- beta m + G / N`, `G <- 0`.

  The server sends a worker the parameters that it predicts, from its momentum,
  for N messages later:

  `w - eta beta ((N - s (1 - beta)) m + s / N G)`,

  where s is the number of messages of the cycle so far (0 to N - 1):
  `estimate`. If the server does not send this prediction (or waits for each
  message), the method reduces to plain momentum; it is then `delayed_nesterov`
  with c = 1 / N and N times the learning rate, except that the N-th step there
  uses the new m.

  The authors' code also has a naive estimate, with s = 0 throughout, and a
  cycle that may differ from the number of workers: pass that as `num_workers`.

  `update` takes one gradient. In `asynchronous_round`, pass `optimizer=server`
  and `broadcast=server.estimate`.

  Args:
    learning_rate: eta > 0 of a single gradient, or a schedule of it by the
      number of messages.
    num_workers: N >= 1, the length of a cycle, a Python int.
    momentum: beta in [0, 1]; may be traced.

  Returns:
    An optax optimizer with a `Smega2State`, memory of two models, and
    `estimate(params, state)`, which is shaped like the parameters.

  Raises:
    ValueError: if N or beta is out of range.

  References:
    Cohen, Hakimi, Schuster, 2022, doi:10.1145/3545008.3545010.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> server = byzjax.smega2(1.0, num_workers=2, momentum=0.5)
    >>> w = jnp.zeros(1)
    >>> state = server.init(w)
    >>> for _ in range(2):
    ...   update, state = server.update(jnp.array([4.]), state, w)
    ...   w = w + update
    ...   print(w, server.estimate(w, state))
    [-4.] [-5.]
    [-8.] [-12.]
  """
  name, n = 'smega2', num_workers
  checks.check_rate(name, 'learning_rate', learning_rate)
  checks.check_count(name, 'num_workers', n, 1)
  checks.check_range(name, 'momentum', momentum, 0, 1)

  def init_fn(params):
    zeros = jax.tree.map(
      lambda p: jnp.zeros_like(p, dtype=flat.compute_dtype(p)), params
    )
    step = jnp.zeros([], jnp.int32)
    # Not the same buffers twice: a state may be donated.
    return Smega2State(step, zeros, optax.tree.zeros_like(zeros))

  def update_fn(updates, state, params=None, **extra):
    del params, extra
    eta = base.value_at(learning_rate, state.step)
    ends = state.step % n == n - 1
    total = jax.tree.map(
      lambda s, g: s + g.astype(s.dtype), state.total, updates
    )
    updates = jax.tree.map(
      lambda g, m: (-eta * (g.astype(m.dtype) + momentum * m)).astype(g.dtype),
      updates,
      state.momentum,
    )
    new_momentum = jax.tree.map(
      lambda m, s: jnp.where(ends, momentum * m + s / n, m).astype(m.dtype),
      state.momentum,
      total,
    )
    total = jax.tree.map(lambda s: jnp.where(ends, 0, s), total)
    step = optax.safe_increment(state.step)
    return updates, Smega2State(step, new_momentum, total)

  def estimate(params, state):
    eta = base.value_at(learning_rate, state.step)

    def forecast(w, m, total):
      s = (state.step % n).astype(m.dtype)
      step = (n - s * (1 - momentum)) * m + (s / n) * total
      return (w.astype(m.dtype) - eta * momentum * step).astype(w.dtype)

    return jax.tree.map(forecast, params, state.momentum, state.total)

  return Smega2(init_fn, update_fn, estimate)
