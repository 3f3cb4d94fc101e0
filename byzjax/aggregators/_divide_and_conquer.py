"""Divide and conquer: outliers along the top singular vector, in samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import (
  base,
  checks,
  flat,
  nonfinite,
  recipes,
  reductions,
  rules,
  spectral,
)
from byzjax.aggregators import _covariance_filter


def sample_coordinates(key: jax.Array, size: int, count: int) -> jax.Array:
  """`count` different coordinates out of `size`, each as likely: int32[count].

  One out of each of `count` consecutive parts of equal size, up to one; as some
  are smaller, all are turned by a common random amount.
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
    mask: bool[n]; what is not in it has no part in the mean and scores +inf.
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
  """The mean of what is no outlier in any of several samples of coordinates.

  DnC: in every iteration b coordinates are drawn. There, with v the top right
  singular vector of the messages minus their mean, the `n - floor(c f)` lowest
  `((x_i - mean) . v)^2` are kept; ties go to the lowest index. The aggregate is
  the mean of the messages kept in all iterations, or, if there is none, of
  those kept most often.

  With `b >= d` all coordinates are used, all iterations agree and one is run.
  The coordinates are one out of each of b consecutive parts of the messages,
  turned by a random amount: each is as likely, none is drawn twice, and the
  draw does not depend on the number of devices.

  The defaults are those of the libraries, which agree. There is no bound on
  what f messages do: one far away decides v, and another that is across v, a
  little to the side of the first, is kept at any distance.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    num_iterations: >= 1, a Python int.
    num_coordinates: b >= 1, a Python int.
    filter_fraction: c >= 0, a Python number, with `floor(c f) < n`.

  Returns:
    An `Aggregator` without state that needs a `key` if `b < d`: leaves `[n,
    *shape] -> [*shape]`. `inspect` tells which messages were kept, and the mean
    of their scores over the iterations.

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

  def inspect(
    messages,
    state,
    params=None,
    *,
    key=None,
    axis_name=None,
    num_coordinates=None,
    coordinates=None,
    worker_weights=None,
    **extra,
  ):
    del params, extra
    x, layout = flat.ravel_rows(name, messages)
    n = x.shape[0]
    _check_workers(name, n, num_byzantine, num_filtered)
    rules.relative_weights(name, worker_weights, n, supported=False)
    constant = jax.lax.stop_gradient(x)
    norms = reductions.squared_norms(constant, axis_name=axis_name)
    mask = nonfinite.usable_norms(norms)
    center = rules.median_norm_row(constant, norms, mask)
    size = _num_coordinates(x, num_coordinates, axis_name)

    def iterate(key):
      rows, middle = constant, center
      if key is not None:
        index = sample_coordinates(key, size, sample_size)
        rows = _own_columns(constant, index, axis_name, coordinates)
        middle = _own_columns(center[None], index, axis_name, coordinates)[0]
      inner = reductions.centered_gram(rows, middle, mask, axis_name=axis_name)
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

    weights = reductions.shares(kept).astype(x.dtype)
    info = base.AggregationInfo(weights, mask, kept=kept, scores=scores)
    return layout.unravel(reductions.combine(weights, x)), state, info

  return base.Aggregator(optax.init_empty_state, inspect, name=name)


def _check_workers(name, n, num_byzantine, num_filtered):
  checks.check_majority(name, n, num_byzantine)
  if num_filtered >= n:
    raise ValueError(
      f'{name} needs floor(filter_fraction * num_byzantine) < num_workers, got'
      f' {num_filtered} and {n}'
    )


def _num_coordinates(x, given, axis_name):
  """d: of all devices, and without padding where the caller tells it."""
  if given is not None:
    return given
  return x.shape[1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def _own_columns(x, index, axis_name, coordinates):
  """The columns `[n, d]` at these coordinates; zero for other devices' ones."""
  if axis_name is None:
    return x[:, index]
  width = x.shape[1]
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
  return jnp.where(mine[None], x[:, place], 0)
