"""The coordinate-wise median."""

from byzjax._src import base, rules, sorting


def coordinate_median() -> base.Aggregator:
  """The median of every coordinate.

  `aggregate[j] = median(x_1[j], ..., x_n[j])`; for even n the mean of the two
  middle values. (ByzPy and Garfield take the lower of the two.) A NaN counts as
  +inf; with fewer than n/2 bad values in a column the result is between honest
  values.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: at trace time, if leaves do not share their leading axis.

  References:
    Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.coordinate_median()(jnp.array([0., 1., 2., 3., 100.]))
    Array(2., dtype=float32)
  """

  def median(column):
    n = len(column)
    low, high = (n - 1) // 2, n // 2
    labels = tuple(0 if i < low else 1 if i <= high else 2 for i in range(n))
    rows = sorting.sorted_rows(column, labels)
    if low == high:
      return rows[low]
    return rows[low] + (rows[high] - rows[low]) / 2

  return rules.from_column(median, name='coordinate_median')
