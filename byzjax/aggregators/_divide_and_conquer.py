"""Divide and conquer (DnC): outliers along top singular vectors of samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import (
  base,
  calls,
  checks,
  grams,
  nonfinite,
  recipes,
  reductions,
  spectral,
)
from byzjax.aggregators import _covariance_filter


def sample_coordinates(key: jax.Array, size: int, count: int) -> jax.Array:
  """`count` distinct coordinates out of `size`, uniformly drawn: int32[count].

  One is drawn from each of `count` consecutive parts of (nearly) equal size,
  and all are shifted by a common random offset, since the sizes may differ by
  one.
  """
  part_key, turn_key = jax.random.split(key)
  bounds = np.arange(count + 1, dtype=np.int64) * size // count
  bounds = bounds.astype(np.int32)
  low, high = jnp.asarray(bounds[:-1]), jnp.asarray(bounds[1:])
  drawn = jax.random.randint(part_key, (count,), low, high, jnp.int32)
  turn = jax.random.randint(turn_key, (), 0, size, jnp.int32)
  # Not modulo the sum, which may overflow.
  return jnp.where(drawn >= size - turn, drawn - (size - turn), drawn + turn)


def outlier_scores(inner: jax.Array, mask: jax.Array) -> jax.Array:
  """`((x_i - mean) . v)^2` of the top right singular vector v: float[n].

  Args:
    inner: float[n, n], the Gram matrix around any point.
    mask: bool[n]; other messages do not enter the mean and score +inf.
  """
  centered = _covariance_filter.recentered(inner, reductions.shares(mask))
  centered = jnp.where(mask[:, None] & mask[None], centered, 0)
  value, vector = spectral.top_eigenpair(centered)
  return jnp.where(mask, jnp.maximum(value, 0) * jnp.square(vector), jnp.inf)


@recipes.factory
def divide_and_conquer(
  *,
  num_byzantine: int,
  num_iterations: int = 5,
  num_coordinates: int = 10_000,
  filter_fraction: float = 1.0,
) -> base.Aggregator:
  """Drops outliers along the top singular vector of random coordinates (DnC).

  Divide and conquer: every iteration draws b coordinates. On these, with v the
  top right singular vector of the messages minus their mean, the `n - floor(c
  f)` messages with the smallest `((x_i - mean) . v)^2` are kept; ties go to the
  lowest index. The aggregate is the mean of the messages kept in all
  iterations, or, if there is none, of those kept most often.

  With `b >= d` all coordinates are used; all iterations would agree, so one is
  run. Otherwise one coordinate is drawn from each of b consecutive parts of the
  message, and all are shifted by a common random offset: all coordinates are
  equally likely, none is drawn twice, and the draw does not depend on the
  number of devices.

  The defaults are those of the libraries, which agree. f Byzantine messages can
  move the aggregate without bound: one far away determines v, and another far
  away in a direction orthogonal to v is kept.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    num_iterations: number of draws of coordinates, a Python int >= 1.
    num_coordinates: b >= 1, a Python int.
    filter_fraction: c >= 0, a Python number, with `floor(c f) < n`.

  Returns:
    An `Aggregator` without state that needs a `key` if `b < d`: leaves `[n,
    *shape] -> [*shape]`. `inspect` reports which messages were kept, and their
    scores averaged over the iterations.

  Raises:
    ValueError: if an argument is out of its range; at trace time if `n <= 2f`,
      `floor(c f) >= n`, or there is no key although `b < d`.

  References:
    Shejwalkar, Houmansadr, 2021, NDSS, doi:10.14722/ndss.2021.24498.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.divide_and_conquer(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  name, sample_size = 'divide_and_conquer', num_coordinates
  checks.check_count(name, 'num_byzantine', num_byzantine)
  checks.check_count(name, 'num_iterations', num_iterations, 1)
  checks.check_count(name, 'num_coordinates', sample_size, 1)
  checks.check_range(name, 'filter_fraction', filter_fraction, 0)
  num_filtered = math.floor(filter_fraction * num_byzantine)

  def kept_and_scores(inner, mask):
    scores = outlier_scores(inner, mask)
    order = jnp.argsort(scores, stable=True)[: len(scores) - num_filtered]
    return jnp.zeros_like(mask).at[order].set(True) & mask, scores

  def aggregate(rows, state, call):
    key, axis_name = call.key, call.axis_name
    _check_workers(name, rows.shape[0], num_byzantine, num_filtered)
    constant = jax.lax.stop_gradient(rows)
    norms = reductions.squared_norms(constant, axis_name=axis_name)
    mask = nonfinite.usable_norms(norms)
    first = grams.lower_median_index(norms, mask)
    size = call.extra.get('num_coordinates')
    size = size or _num_coordinates(rows, axis_name)

    def iterate(key):
      sample = constant
      if key is not None:
        coordinates = call.extra.get('coordinates')
        place, mine = _own_places(
          sample_coordinates(key, size, sample_size),
          rows.shape[1],
          axis_name,
          coordinates,
        )
        # What is not here is zero for all.
        sample = jnp.where(mine[None], constant.take(place).written(), 0)
      _, inner = grams.gram_about_message(
        lambda i: reductions.centered_gram(
          sample, grams.center_row(sample, i, mask), mask, axis_name=axis_name
        ),
        first,
        mask,
      )
      return kept_and_scores(inner, mask)

    if sample_size >= size:
      kept, scores = iterate(None)
    else:
      if key is None:
        raise ValueError(
          f'{name} needs a key to draw {sample_size} of {size} coordinates,'
          ' got None'
        )
      keys = jax.random.split(key, num_iterations)
      times_kept, scores = jax.lax.map(iterate, keys)
      times_kept, scores = times_kept.sum(axis=0), scores.mean(axis=0)
      kept = (times_kept == times_kept.max()) & mask

    weights = reductions.shares(kept).astype(rows.dtype)
    info = base.AggregationInfo(weights, mask, kept=kept, scores=scores)
    return reductions.combine(weights, rows), state, info

  return calls.from_rows(name, aggregate, takes_norms=True)


def _check_workers(name, n, num_byzantine, num_filtered):
  checks.check_majority(name, n, num_byzantine)
  if num_filtered >= n:
    raise ValueError(
      f'{name} needs floor(filter_fraction * num_byzantine) < num_workers, got'
      f' {num_filtered} and {n}'
    )


def _num_coordinates(rows, axis_name):
  """d: of all devices, with padding."""
  devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
  return rows.shape[1] * devices


def _own_places(index, width, axis_name, coordinates):
  """Where these coordinates are here, and which of them are here at all."""
  if axis_name is None:
    return index, jnp.ones(index.shape, bool)
  if coordinates is None:
    place = index - jax.lax.axis_index(axis_name) * width
    mine = (place >= 0) & (place < width)
    place = jnp.clip(place, 0, width - 1)
  else:
    order = jnp.argsort(coordinates)
    place = order[
      jnp.searchsorted(coordinates, index, sorter=order).clip(0, width - 1)
    ]
    mine = coordinates[place] == index
  return place, mine
