"""The coordinate-wise majority vote on signs."""

import jax
import jax.numpy as jnp

from byzjax._src import base, calls, recipes, reductions
from byzjax.aggregators import _packed_vote


@recipes.factory
def majority_vote(*, zeros: str = 'plus') -> base.Aggregator:
  """The majority sign of every coordinate (the vote of signSGD).

  `aggregate[j] = sign(sum_i sign(x_i[j]))`, and with `worker_weights` p
  `sign(sum_i p_i sign(x_i[j]))`. Only the signs of the messages matter: they
  may be gradients, or signs already. f Byzantine workers cannot change a
  coordinate in which the margin among the other workers exceeds f votes.

  Conventions for `sign(0)` differ. The official code sends one bit, and decodes
  a zero and a tied vote as +1: with `zeros='plus'`, the default, the aggregate
  is always +1 or -1, and a NaN votes +1 too. With `zeros='abstain'` (three
  values, as `numpy.sign`) a zero or a NaN does not vote and a tie gives 0.

  In a `robust_round` with a sign codec, no attack on messages and at most 128
  workers, the two-valued vote runs on packed words, 32 coordinates at a time.

  Args:
    zeros: 'plus' or 'abstain'.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if `zeros` is not one of the two.

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.majority_vote()
    >>> rule(jnp.array([[-1., 7., 0.], [-2., -0.1, 1.], [99., -1., -1.]]))
    Array([-1., -1.,  1.], dtype=float32)
  """
  if zeros not in ('plus', 'abstain'):
    raise ValueError(
      f"majority_vote needs zeros to be 'plus' or 'abstain', got {zeros!r}"
    )

  def aggregate(rows, state, call):
    if call.worker_weights is None:
      votes = jnp.ones(rows.shape[0], rows.dtype)
      margin = reductions.weighted_sum(
        votes, rows, lambda row: _sign(row, zeros)
      )
    else:
      votes = call.worker_weights.astype(rows.dtype)
      margin = _weighted_margin(votes, rows, zeros)
    return _sign(margin, zeros), state, base.AggregationInfo()

  return calls.from_rows(
    'majority_vote',
    aggregate,
    by_coordinate=True,
    weighted=True,
    inspect_words=_packed_vote.inspect_words if zeros == 'plus' else None,
  )


def _sign(x: jax.Array, zeros: str) -> jax.Array:
  """+1 or -1, and for `zeros='abstain'` 0 for what has no sign."""
  one = jnp.ones((), x.dtype)
  rest = one if zeros == 'plus' else jnp.where(x > 0, one, 0)
  return jnp.where(x < 0, -one, rest)


def _weighted_margin(weights, rows, zeros):
  # Both sides add up alike: equal weights tie exactly.
  def votes(sign):
    return reductions.weighted_sum(
      weights, rows, lambda row: (_sign(row, zeros) == sign).astype(row.dtype)
    )

  return votes(1) - votes(-1)
