"""Coordinate-wise means of the values closest to a robust centre."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, rules, selection, sorting
from byzjax.aggregators import _coordinate_median, _trimmed_mean


@recipes.factory
def mean_around_median(
  *,
  num_byzantine: int,
  num_kept: int | None = None,
  middle: str = 'mean',
) -> base.Aggregator:
  """The mean of the values closest to the median of each coordinate (MeaMed).

  `aggregate[j] = (1/k) sum_{i in N_k} x_i[j]`, where N_k holds the k values
  closest to `median(x_1[j], ..., x_n[j])`. A NaN counts as +inf. Of two equally
  distant values the smaller is taken.

  ByzFL calls the rule Meamed and ByzPy "mean of medians"; both keep `k = n -
  f`, the default. ByzPy and Garfield measure from the lower of the two middle
  values (`middle='lower'`). ByzFL breaks ties by the order of the messages.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    num_kept: k, in `1 ... n - f`; None for `n - f`.
    middle: 'mean' or 'lower': the median of an even number of values, as in
      `coordinate_median`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if an argument is not in its range; at trace time if `n <= 2f`
      or `k > n - f`.

  References:
    Xie, Koyejo, Gupta, 2018, arXiv:1802.10116.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.mean_around_median(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  name = 'mean_around_median'
  checks.check_count(name, 'num_byzantine', num_byzantine)
  if num_kept is not None:
    checks.check_count(name, 'num_kept', num_kept, 1)
  sorting.check_middle(name, middle)

  def mean_of_closest(column):
    n = len(column)
    checks.check_majority(name, n, num_byzantine)
    count = n - num_byzantine if num_kept is None else num_kept
    if count > n - num_byzantine:
      raise ValueError(
        f'{name} needs num_kept <= num_workers - num_byzantine, got {count}'
        f' and {n} - {num_byzantine}'
      )
    return around_median(column, count, middle)

  return rules.from_column(mean_of_closest, name=name)


@recipes.factory
def phocas(*, num_byzantine: int) -> base.Aggregator:
  """The mean of the values closest to the trimmed mean of each coordinate.

  `aggregate[j] = (1 / (n - f)) sum_{i in N} x_i[j]`, where N holds the n - f
  values closest to the `trimmed_mean` of the coordinate (without its f smallest
  and f largest values). A NaN counts as +inf. Of two equally distant values the
  smaller is taken.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if f is not a non-negative int; at trace time if `n <= 2f`.

  References:
    Xie, Koyejo, Gupta, 2018, arXiv:1805.09682.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.phocas(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  checks.check_count('phocas', 'num_byzantine', num_byzantine)

  def mean_of_closest(column):
    n, f = len(column), num_byzantine
    checks.check_majority('phocas', n, f)
    if isinstance(column, jax.Array):
      center = _trimmed_mean.middle_mean(column, f)
      return selection.mean_around(column, n - f, center, center)
    rows = sorting.sorted_rows(column, _labels(n, n - f))
    center = sorting.mean_of(rows[f : n - f])
    return _mean_around(rows, n - f, center, center)

  return rules.from_column(mean_of_closest, name='phocas')


def around_median(
  column: sorting.Column, count: int, middle: str = 'mean'
) -> jax.Array:
  """Per column, the mean of the `count` values closest to the median."""
  n = len(column)
  if isinstance(column, jax.Array):
    centers = _coordinate_median.middles(column, middle)
    return selection.mean_around(column, count, *centers)
  low, high = sorting.middle_ranks(n, middle)
  rows = sorting.sorted_rows(column, _labels(n, count, low, high))
  return _mean_around(rows, count, rows[low], rows[high])


def _labels(n: int, count: int, *needed: int) -> tuple[int, ...]:
  """What to sort apart: what may be left out, and the ranks that are needed."""
  return tuple(
    # The others keep to their side of the needed ones.
    n + sum(i > k for k in needed)
    if n - count <= i < count and i not in needed
    else i
    for i in range(n)
  )


def _mean_around(
  rows: list[jax.Array], count: int, low: jax.Array, high: jax.Array
) -> jax.Array:
  """The mean of the `count` sorted values closest to `(low + high) / 2`.

  In sorted order they are a window `r[s], ..., r[s + count - 1]`. It begins
  behind r[i] exactly if r[i + count] is closer than r[i], and has one value of
  every residue of the index modulo `count`. So the sum needs one choice per
  value that is left out, and no sliding sums, which would cancel.

  The two middles come apart, since what is half way between two values is as
  close to one as to the other, but for its rounding.
  """
  chosen = []
  for first in range(count):
    value = rows[first]
    for i in range(first, len(rows) - count, count):
      closer = low - rows[i] > rows[i + count] - high
      value = jnp.where(closer, rows[i + count], value)
    chosen.append(value)
  return sorting.mean_of(chosen)
