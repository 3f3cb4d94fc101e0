"""The coordinate-wise trimmed mean."""

from byzjax._src import base, rules, sorting


def trimmed_mean(*, num_byzantine: int) -> base.Aggregator:
  """The mean of every coordinate without its f smallest and f largest values.

  `aggregate[j] = (1 / (n - 2f)) sum_{k=f+1}^{n-f} x_(k)[j]`, with `x_(1)[j] <=
  ... <= x_(n)[j]`. A NaN counts as +inf, so up to f bad values are trimmed
  away. The middle is summed after sorting; sums minus extremes would cancel.

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
  base.check_count('trimmed_mean', 'num_byzantine', num_byzantine)

  def middle_mean(column):
    base.check_majority('trimmed_mean', len(column), num_byzantine)
    middle = sorting.trimmed_rows(column, num_byzantine)
    total = middle[0]
    for row in middle[1:]:
      total += row
    return total / len(middle)

  return rules.from_column(middle_mean, name='trimmed_mean')
