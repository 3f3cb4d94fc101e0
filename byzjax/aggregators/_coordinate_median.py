"""The coordinate-wise median."""

import jax
import jax.numpy as jnp

from byzjax._src import base, recipes, rules, selection, sorting


@recipes.factory
def coordinate_median(*, middle: str = 'mean') -> base.Aggregator:
  """The coordinate-wise median (CwMed).

  `aggregate[j] = median(x_1[j], ..., x_n[j])`. A NaN counts as +inf; with fewer
  than n/2 Byzantine values in a coordinate, the result lies between honest
  values.

  With `worker_weights` p it is the weighted median: the value at which the
  cumulative weight of the sorted values passes half of the total; if it equals
  half exactly, that value and the next are the two middle ones. Equal weights
  give the same bits as no weights.

  Implementations differ for an even number of values: the mean of the two
  middle ones is the default here, and the most common; Garfield and ByzPy
  (which call `torch.median`) take the lower one.

  Args:
    middle: 'mean' or 'lower': which of the two middle values to take, or both.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if `middle` is not one of the two; at trace time, if the leaves
      do not have the same leading axis.

  References:
    Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.coordinate_median()(jnp.array([0., 1., 2., 3., 100.]))
    Array(2., dtype=float32)
  """
  sorting.check_middle('coordinate_median', middle)
  return rules.from_column(
    lambda column: median(column, middle),
    weighted_fn=lambda column, weights: _weighted_median(
      column, weights, middle
    ),
    name='coordinate_median',
  )


def median(column: sorting.Column, middle: str) -> jax.Array:
  """The median of every column."""
  return sorting.between(*middles(column, middle), middle)


def middles(column: sorting.Column, middle: str) -> tuple[jax.Array, jax.Array]:
  """The two middle values of every column, or the one that counts, twice."""
  n = len(column)
  if isinstance(column, jax.Array):
    low_row, high_row = selection.middles(column, jnp.ones(n, column.dtype))
    return low_row, low_row if middle == 'lower' else high_row
  low, high = sorting.middle_ranks(n, middle)
  # Two middles are in order as well: the same bits for any order of the rows.
  labels = tuple((i >= low) + (i >= high) + (i > high) for i in range(n))
  rows = sorting.sorted_rows(column, labels)
  return rows[low], rows[high]


def _weighted_median(column, weights, middle):
  if isinstance(column, jax.Array):
    low, high = selection.middles(column, weights)
    return sorting.between(low, high, middle)
  return median_of_sorted(*sorting.sorted_with_weights(column, weights), middle)


def masses(
  weights: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
  """What the values up to each one weigh, and the values from each one on.

  Each is added up from its own end, so that equal weights tie exactly.
  """
  ascending, descending = [weights[0]], [weights[-1]]
  for low, high in zip(weights[1:], weights[-2::-1]):
    ascending.append(ascending[-1] + low)
    descending.append(descending[-1] + high)
  return ascending, descending[::-1]


def median_of_sorted(
  rows: list[jax.Array], weights: list[jax.Array], middle: str
) -> jax.Array:
  """The weighted median of sorted rows, each value with its weight."""
  upto, onward = masses(weights)
  low = high = rows[-1]
  for k in range(len(rows) - 2, -1, -1):
    low = jnp.where(upto[k] >= onward[k + 1], rows[k], low)
    high = jnp.where(upto[k] > onward[k + 1], rows[k], high)
  return sorting.between(low, high, middle)
