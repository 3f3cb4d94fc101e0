"""The arithmetic mean: not robust, the baseline of every study."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, calls, recipes, reductions

# Messages of which the mean without some is compiled as one kernel, beside the
# kernel for all: more take a loop, which adds less to the time of compiling.
_MAX_UNROLLED = 32


@recipes.factory
def mean() -> base.Aggregator:
  """The mean of the finite messages, weighted by `worker_weights` if given.

  `aggregate = sum_{i in S} p_i x_i / sum_{i in S} p_i`, where S holds the
  messages with finite entries only and p are the `worker_weights` (all equal by
  default); zero if S is empty. One finite message can move the aggregate
  arbitrarily far: the breakdown point is 0. If all messages have the same
  value, the aggregate is that value, bit for bit.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: at trace time, if the leaves do not share their leading axis.

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
    given, axes = call.worker_weights, call.axis_name

    def mean_of(mask, **options):
      shares = reductions.shares(mask, given).astype(rows.dtype)
      return reductions.weighted_mean(shares, rows, **options)

    def masked(_):
      mask = reductions.finite_rows(rows, axis_name=axes)
      return mean_of(mask, max_unrolled=_MAX_UNROLLED), mask

    # One pass is enough if it shows that there is nothing to leave out.
    plain = mean_of(jnp.ones(rows.shape[0], bool))
    finite = reductions.finite_rows(plain[None], axis_name=axes)[0]
    y, counted = jax.lax.cond(
      finite,
      lambda plain: (plain, jnp.broadcast_to(finite, rows.shape[:1])),
      masked,
      plain,
    )
    shares = reductions.shares(counted, given).astype(rows.dtype)
    mask = counted
    if given is not None:  # who weighs nothing was not looked at
      mask = reductions.finite_rows(rows, axis_name=axes)
    return y, state, base.AggregationInfo(shares, mask)

  rule = base.GramRule(optax.init_empty_state, weights, weighted=True)
  return calls.from_rows('mean', aggregate, gram_rule=rule, weighted=True)
