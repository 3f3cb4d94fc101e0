"""The arithmetic mean: no robustness at all, and the control of every study."""

import jax.numpy as jnp
import optax

from byzjax._src import base, flat, reductions


def mean() -> base.Aggregator:
  """The mean of the finite messages.

  `aggregate = (1 / |S|) sum_{i in S} x_i`, S the messages with finite entries
  only; zero if there is none. One finite message moves it without bound (its
  breakdown point is 0).

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: at trace time, if leaves do not share their leading axis.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.mean()(jnp.array([0., 1., 2., 3., 100.]))
    Array(21.2, dtype=float32)
  """

  def weights(gram, state, *, key=None):
    del key
    return gram.mask / jnp.maximum(gram.mask.sum(), 1), state

  def inspect(
    messages, state, params=None, *, key=None, axis_name=None, **extra
  ):
    del params, key, extra
    x, layout = flat.ravel_rows('mean', messages)
    mask = reductions.finite_rows(x, axis_name=axis_name)
    info = base.AggregationInfo(
      mask.astype(x.dtype) / jnp.maximum(mask.sum(), 1), mask
    )
    return layout.unravel(reductions.rows_mean(x, mask)), state, info

  return base.Aggregator(
    optax.init_empty_state,
    inspect,
    base.GramRule(optax.init_empty_state, weights),
  )
