"""The coordinate-wise trimmed mean."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, rules, selection, sorting
from byzjax.aggregators import _coordinate_median


@recipes.factory
def trimmed_mean(*, num_byzantine: int) -> base.Aggregator:
  """The mean of each coordinate without f values on either side (TrMean, CwTM).

  `aggregate[j] = (1 / (n - 2f)) sum_{k=f+1}^{n-f} x_(k)[j]`, with `x_(1)[j] <=
  ... <= x_(n)[j]` the sorted values of coordinate j. A NaN counts as +inf, so
  up to f bad values are trimmed.

  With `worker_weights` p each sorted value has the mass of its weight, and from
  either end as much mass is trimmed as the f heaviest workers have together, so
  that no f workers can reach the middle. The remaining values are averaged with
  the mass that they keep. If none is left, because f workers hold at least half
  of the weight, the result is the weighted median.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`. 0 gives the mean.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if f is not a non-negative int; at trace time if `n <= 2f` (some
      libraries silently lower f instead).

  References:
    Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.trimmed_mean(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(2., dtype=float32)
  """
  checks.check_count('trimmed_mean', 'num_byzantine', num_byzantine)

  def mean(column):
    checks.check_majority('trimmed_mean', len(column), num_byzantine)
    return middle_mean(column, num_byzantine)

  def weighted_mean(column, weights):
    checks.check_majority('trimmed_mean', len(column), num_byzantine)
    return _weighted_middle_mean(column, weights, num_byzantine)

  return rules.from_column(mean, weighted_fn=weighted_mean, name='trimmed_mean')


def middle_mean(column: sorting.Column, num_trimmed: int) -> jax.Array:
  """The mean of every column without so many values on both sides."""
  if isinstance(column, jax.Array):
    ones = jnp.ones(len(column), column.dtype)
    return selection.trimmed_mean(column, ones, num_trimmed, 0.5)[0]
  return sorting.mean_of(sorting.trimmed_rows(column, num_trimmed))


def _weighted_middle_mean(column, weights, f):
  n = len(column)
  largest = weights.max()
  weights = weights / jnp.where(largest > 0, largest, 1)
  trimmed = rules.largest_share(weights, f)
  # A rounding error of a length is no length, or it would let a value in whose
  # size is the attacker's choice.
  least = 4 * n * jnp.finfo(weights.dtype).eps * trimmed
  if isinstance(column, jax.Array):
    mean, total = selection.trimmed_mean(column, weights, trimmed, least)
    median = sorting.between(*selection.middles(column, weights), 'mean')
    return jnp.where(total > 0, mean, median)

  rows, lengths = sorting.sorted_with_weights(column, weights)
  upto, onward = _coordinate_median.masses(lengths)

  def left_of(k):
    below = upto[k - 1] if k else 0
    above = onward[k + 1] if k + 1 < n else 0
    length = lengths[k]
    length = length - jnp.clip(trimmed - below, 0, lengths[k])
    length = length - jnp.clip(trimmed - above, 0, lengths[k])
    return jnp.where(length > least, length, 0)

  left = [left_of(k) for k in range(n)]
  total = sorting.sum_of(left)
  mean = sorting.sum_of(
    [jnp.where(left[k] > 0, rows[k], 0) * left[k] for k in range(n)]
  ) / jnp.where(total > 0, total, 1)
  median = _coordinate_median.median_of_sorted(rows, lengths, 'mean')
  return jnp.where(total > 0, mean, median)
