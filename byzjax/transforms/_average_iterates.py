"""Polyak averaging: the mean of the iterates, kept in the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat
from byzjax.transforms import _arrivals


class AverageIteratesState(NamedTuple):
  """State of `average_iterates`."""

  step: jax.Array  # shape=(), dtype=int32, updates so far
  average: base.Params  # float32 at least


def average_iterates(
  decay: base.Scalar | None = None,
) -> optax.GradientTransformation:
  """Averages the parameters over the iterations; updates pass unchanged.

  With `x_t` the parameters after the t-th update, `state.average` is the mean
  of `x_1, ..., x_t` (Polyak-Ruppert averaging), or with a decay the moving
  average `a_t = beta a_{t-1} + (1 - beta) x_t` from `a_0 = x_0`. Evaluate the
  model there; the average is less noisy than x_t. Put this last in a chain,
  because it does not see what later transforms do.

  `optax.ema` averages the updates instead, and `optax.incremental_update` must
  be called outside the optimizer, which is not possible inside a round.

  Args:
    decay: beta in [0, 1], or None for the mean; may be traced.

  Returns:
    An optax transform with an `AverageIteratesState`. `update` needs params.

  Raises:
    ValueError: if beta is out of range; at trace time, if params is missing.

  References:
    Polyak, Juditsky, 1992, doi:10.1137/0330046.

  Example:
    >>> import byzjax, jax.numpy as jnp, optax
    >>> tx = optax.chain(optax.sgd(1.0), byzjax.average_iterates())
    >>> w = jnp.zeros(1)
    >>> state = tx.init(w)
    >>> for gradient in (-2., 1.):
    ...   update, state = tx.update(jnp.array([gradient]), state, w)
    ...   w = w + update
    >>> print(w, state[-1].average)
    [1.] [1.5]
  """
  name = 'average_iterates'
  if decay is not None:
    checks.check_range(name, 'decay', decay, 0, 1)

  def init_fn(params):
    # Not the parameters' own buffers: an update may be given those to reuse.
    average = jax.tree.map(
      lambda p: jnp.array(p, flat.compute_dtype(p)), params
    )
    return AverageIteratesState(jnp.zeros([], jnp.int32), average)

  def update_fn(updates, state, params=None):
    _arrivals.require(name, params=params)
    step = optax.safe_increment(state.step)

    def move(average, p, u):
      share = 1 / step.astype(average.dtype) if decay is None else 1 - decay
      # Rounded as the parameters themselves will be.
      x = jnp.asarray(p + u).astype(jnp.result_type(p)).astype(average.dtype)
      return (average + share * (x - average)).astype(average.dtype)

    average = jax.tree.map(move, state.average, params, updates)
    return updates, AverageIteratesState(step, average)

  return optax.GradientTransformation(init_fn, update_fn)
