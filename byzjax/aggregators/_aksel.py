"""AKSEL: the messages closest to the coordinate-wise median."""

import jax.numpy as jnp
from jax import lax

from byzjax._src import (
  base,
  calls,
  checks,
  nonfinite,
  recipes,
  reductions,
  sorting,
)
from byzjax.aggregators import _coordinate_median


@recipes.factory
def aksel(
  *,
  num_byzantine: int,
  num_selected: int | None = None,
  middle: str = 'mean',
) -> base.Aggregator:
  """The mean of the m messages closest to the coordinate-wise median (AKSEL).

  `aggregate = (1/m) sum_{i in S} x_i`, where S holds the m messages with the
  smallest `|x_i - med|` and `med = coordinate_median(x)`. A message is kept or
  left out as a whole. Ties go to the lowest index.

  Implementations differ in m: krum (the Python package) takes `n - f`, the
  default here; Garfield takes `ceil(n / 2)` and the lower of the two middle
  values (`middle='lower'`).

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    num_selected: m, in `1 ... n - f`; None for `n - f`.
    middle: 'mean' or 'lower': the median of an even number of values, as in
      `coordinate_median`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`.

  Raises:
    ValueError: if an argument is not in its range; at trace time if `n <= 2f`,
      `m > n - f`, or if `worker_weights` are given.

  References:
    Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault, 2021, "AKSEL: Fast
    Byzantine SGD", OPODIS 2020, doi:10.4230/LIPIcs.OPODIS.2020.8.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.aksel(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  checks.check_count('aksel', 'num_byzantine', num_byzantine)
  if num_selected is not None:
    checks.check_count('aksel', 'num_selected', num_selected, 1)
  sorting.check_middle('aksel', middle)

  def aggregate(rows, state, call):
    n = rows.shape[0]
    checks.check_majority('aksel', n, num_byzantine)
    count = n - num_byzantine if num_selected is None else num_selected
    if count > n - num_byzantine:
      raise ValueError(
        'aksel needs num_selected <= num_workers - num_byzantine, got'
        f' {count} and {n} - {num_byzantine}'
      )
    # Whom it selects is constant almost everywhere: no derivative.
    scores = _distances(lax.stop_gradient(rows), middle, call.axis_name)
    mask = nonfinite.usable_norms(scores)
    scores = jnp.where(mask, scores, jnp.inf)
    closest = jnp.argsort(scores, stable=True)[:count]
    kept = jnp.zeros(n, bool).at[closest].set(True) & mask
    weights = reductions.shares(kept).astype(rows.dtype)
    info = base.AggregationInfo(weights, mask, kept=kept, scores=scores)
    return reductions.combine(weights, rows), state, info

  return calls.from_rows('aksel', aggregate)


def _distances(rows, middle, axis_name):
  """`|x_i - med|^2`, not finite where x_i is not: `[n, d] -> [n]`."""
  median = sorting.by_column(
    lambda column: _coordinate_median.median(column, middle), rows
  )
  median = jnp.where(jnp.isfinite(median), median, 0)
  return reductions.squared_norms(rows, center=median, axis_name=axis_name)
