"""The arithmetic mean: no robustness at all, and the control of every study."""

import optax

from byzjax._src import base, calls, recipes, reductions


@recipes.factory
def mean() -> base.Aggregator:
  """The mean of the finite messages, weighted if the workers are.

  `aggregate = sum_{i in S} p_i x_i / sum_{i in S} p_i`, S the messages with
  finite entries only and p the `worker_weights` (all equal by default); zero if
  there is none. One finite message moves it without bound (its breakdown point
  is 0). Where all messages have the same value, that is the result, bit for
  bit: rounding does not leave the range of what is averaged.

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
    shares = reductions.shares(gram.mask, gram.worker_weights)
    return base.AggregationInfo(shares), state

  def aggregate(rows, state, call):
    mask = reductions.finite_rows(rows, axis_name=call.axis_name)
    shares = reductions.shares(mask, call.worker_weights).astype(rows.dtype)
    y = reductions.weighted_mean(shares, rows)
    return y, state, base.AggregationInfo(shares, mask)

  rule = base.GramRule(optax.init_empty_state, weights, weighted=True)
  return calls.from_rows('mean', aggregate, gram_rule=rule, weighted=True)
