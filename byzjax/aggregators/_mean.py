"""The arithmetic mean: no robustness at all, and the control of every study."""

import optax

from byzjax._src import base, flat, recipes, reductions, rules


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

  def inspect(
    messages,
    state,
    params=None,
    *,
    key=None,
    axis_name=None,
    worker_weights=None,
    **extra,
  ):
    del params, key, extra
    x, layout = flat.ravel_rows('mean', messages)
    mask = reductions.finite_rows(x, axis_name=axis_name)
    given = rules.relative_weights(
      'mean', worker_weights, x.shape[0], supported=True
    )
    shares = reductions.shares(mask, given).astype(x.dtype)
    aggregate = layout.unravel(reductions.weighted_mean(shares, x))
    return aggregate, state, base.AggregationInfo(shares, mask)

  return base.Aggregator(
    optax.init_empty_state,
    inspect,
    base.GramRule(optax.init_empty_state, weights, weighted=True),
    'mean',
  )
