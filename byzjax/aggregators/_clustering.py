"""Clustering by direction: the mean of the larger of two clusters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  grams,
  nonfinite,
  recipes,
  reductions,
)

_LINKAGES = ('average', 'complete', 'single')


class ClippedClusteringState(NamedTuple):
  """The state of `clipped_clustering`: earlier norms, padded with +inf."""

  norms: jax.Array


def cosine_distances(gram: base.Gram) -> jax.Array:
  """`1 - cos(x_i, x_j)` in [0, 2]: float[n, n]; 1 to a message of zeros."""
  norms = reductions.sqrt(gram.squared_norms)
  product = norms[:, None] * norms[None]
  has_direction = product > 0
  # Not from x_i . x_j, whose difference to the product of norms cancels.
  apart = grams.squared_distances(gram) - jnp.square(
    norms[:, None] - norms[None]
  )
  distances = apart / (2 * jnp.where(has_direction, product, 1))
  return jnp.where(has_direction, jnp.clip(distances, 0, 2), 1)


def larger_cluster(
  distances: jax.Array, mask: jax.Array, linkage: str
) -> jax.Array:
  """Which messages are in the larger of two clusters: bool[n].

  Agglomerative clustering: starting from n clusters of one message, the two at
  the smallest distance are merged until two clusters are left. Ties go to the
  pair, and to the cluster, with the lowest index.

  Args:
    distances: float[n, n].
    mask: bool[n], the messages that take part.
    linkage: the distance between clusters, 'average', 'complete' or 'single'.
  """
  n = mask.shape[0]
  upper = jnp.triu(jnp.ones((n, n), bool), 1)

  def merge(_, carry):
    # A cluster goes by its lowest index; `alive` are those.
    distances, alive, cluster = carry
    pairs = upper & alive[:, None] & alive[None]
    nearest = jnp.argmin(jnp.where(pairs, distances, jnp.inf))
    i, j = nearest // n, nearest % n
    if linkage == 'average':
      size_i, size_j = (cluster == i).sum(), (cluster == j).sum()
      share = size_j / (size_i + size_j)
      merged = distances[i] + share * (distances[j] - distances[i])
    elif linkage == 'complete':
      merged = jnp.maximum(distances[i], distances[j])
    else:
      merged = jnp.minimum(distances[i], distances[j])
    merged = merged.astype(distances.dtype)
    after = (
      distances.at[i].set(merged).at[:, i].set(merged),
      alive.at[j].set(False),
      jnp.where(cluster == j, i, cluster),
    )
    too_many = alive.sum() > 2
    return jax.tree.map(lambda a, b: jnp.where(too_many, a, b), after, carry)

  start = distances, mask, jnp.where(mask, jnp.arange(n), n)
  _, _, cluster = jax.lax.fori_loop(0, max(n - 2, 0), merge, start)
  sizes = jnp.sum(cluster[None] == jnp.arange(n)[:, None], axis=1)
  return (cluster == jnp.argmax(sizes)) & mask


def gram_of_directions(rows, squared_norms, mask, axis_name):
  """The Gram matrix of `x_i / |x_i|`.

  Normalised first: with messages of very different norms, angles computed from
  their inner products and distances would lose too many digits.
  """
  rows, squared_norms = jax.lax.stop_gradient((rows, squared_norms))
  norms = reductions.sqrt(squared_norms)
  known = mask & (norms > 0)
  scales = jnp.where(known, 1 / jnp.where(known, norms, 1), 0)
  directions = rows.scaled(scales, mask)
  unit_norms = known.astype(rows.dtype)
  _, inner = grams.gram_about_message(
    lambda i: reductions.centered_gram(
      directions,
      grams.center_row(directions, i, known),
      mask,
      axis_name=axis_name,
    ),
    grams.lower_median_index(squared_norms, known),
    known,
  )
  return base.Gram(inner, unit_norms, mask)


@recipes.factory
def clustering(*, linkage: str = 'complete') -> base.Aggregator:
  """The mean of the larger of two clusters of messages by cosine distance.

  The distance is `1 - cos(x_i, x_j)`, or 1 if one of the two messages is zero.
  Agglomerative clustering: starting from n clusters of one message, the two at
  the smallest distance are merged until two are left; the aggregate is the mean
  of the larger. Ties go to the lowest index. f is not an input.

  The clusters depend on directions only, not on norms: one very long message in
  the direction of the honest ones can move the aggregate arbitrarily far.
  `clipped_clustering` prevents that.

  Old versions of Blades pass the cosine similarity where a distance is
  expected, and so group the most different messages; this rule does not.

  Args:
    linkage: the distance between two clusters: 'complete', the largest distance
      between their messages; 'average', the mean; 'single', the smallest.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports which messages were kept.

  Raises:
    ValueError: if linkage is not one of the three.

  References:
    Sattler, Mueller, Wiegand, Samek, 2020, ICASSP,
    doi:10.1109/ICASSP40776.2020.9054676; the clustering is that of Sattler,
    Mueller, Samek, 2019, arXiv:1910.01991.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[1., 0.], [3., 1.], [2., -1.], [-2., 0.]])
    >>> byzjax.clustering()(x)
    Array([2., 0.], dtype=float32)
  """
  _check_linkage('clustering', linkage)

  # No function of the Gram matrix: angles would lose too many digits.
  def aggregate(rows, state, call):
    norms = reductions.squared_norms(rows, axis_name=call.axis_name)
    mask = nonfinite.usable_norms(norms)
    gram = gram_of_directions(rows, norms, mask, call.axis_name)
    distances = cosine_distances(jax.lax.stop_gradient(gram))
    kept = larger_cluster(distances, mask, linkage)
    weights = reductions.shares(kept).astype(rows.dtype)
    info = base.AggregationInfo(weights, mask, kept=kept)
    return reductions.combine(weights, rows), state, info

  return calls.from_rows('clustering', aggregate, takes_norms=True)


@recipes.factory
def clipped_clustering(
  *,
  linkage: str = 'average',
  max_norm: base.Scalar = float('inf'),
  num_remembered: int = 1000,
) -> base.Aggregator:
  """The mean of the larger cluster of messages clipped to the median norm.

  `y_i = x_i min(1, c / |x_i|)`, where c is the median of the norms of the
  current and the last `num_remembered` messages, but at most `max_norm`; then
  `clustering` of the y_i. So the norm of the aggregate is at most c, and a
  Byzantine minority among all these messages cannot raise c above the norms of
  the others.

  The original code and fedlib remember the norms of all rounds; here the number
  is fixed, because the norms are part of the state. fedlib's `max_tau` (1e5
  there) is `max_norm`; its `agg='median'` takes the coordinate-wise median of
  the cluster instead of the mean.

  Args:
    linkage: as in `clustering`.
    max_norm: an upper limit of c, >= 0, in the units of the messages; may be
      traced.
    num_remembered: number of norms to remember from earlier rounds, a Python
      int >= 0. Norms of masked messages are not remembered.

  Returns:
    An `Aggregator` with a `ClippedClusteringState`: leaves `[n, *shape] ->
    [*shape]`. `inspect` reports which messages were kept, and the clipping
    factor of each.

  Raises:
    ValueError: if an argument is out of its range.

  References:
    Li, Ngai, Voigt, 2023, IEEE Transactions on Big Data,
    doi:10.36227/techrxiv.19560325.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[1., 0.], [4., 0.], [90., 0.], [-4., 0.]])
    >>> byzjax.clipped_clustering()(x)
    Array([3., 0.], dtype=float32)
  """
  name = 'clipped_clustering'
  _check_linkage(name, linkage)
  checks.check_range(name, 'max_norm', max_norm, 0)
  checks.check_count(name, 'num_remembered', num_remembered)

  def init(params):
    dtype = flat.row_layout(params).dtype
    return ClippedClusteringState(jnp.full(num_remembered, jnp.inf, dtype))

  def aggregate(rows, state, call):
    squared = reductions.squared_norms(rows, axis_name=call.axis_name)
    mask = nonfinite.usable_norms(squared)
    norms = jnp.where(mask, reductions.sqrt(squared), jnp.inf)
    seen = jnp.concatenate([norms, state.norms.astype(norms.dtype)])
    limit = jnp.minimum(_median_of_finite(seen), max_norm)
    clipped = mask & (norms > limit)
    factors = jnp.where(clipped, limit / jnp.where(clipped, norms, 1), 1)

    # Clipping turns no message.
    gram = gram_of_directions(rows, squared, mask, call.axis_name)
    kept = larger_cluster(cosine_distances(gram), mask, linkage)
    weights = (reductions.shares(kept) * factors).astype(rows.dtype)

    # The latest first, and what is no norm last.
    latest = seen[jnp.argsort(seen == jnp.inf, stable=True)][:num_remembered]
    state = ClippedClusteringState(latest.astype(state.norms.dtype))
    info = base.AggregationInfo(weights, mask, kept=kept, factors=factors)
    return reductions.combine(weights, rows), state, info

  return calls.from_rows(name, aggregate, init=init, takes_norms=True)


def _median_of_finite(x):
  """The mean of the two middle finite values; inf if there is none."""
  x, count = jnp.sort(x), jnp.sum(x < jnp.inf)
  return (x[jnp.maximum(count - 1, 0) // 2] + x[count // 2]) / 2


def _check_linkage(name, linkage):
  if linkage not in _LINKAGES:
    raise ValueError(
      f'{name} needs linkage to be one of {_LINKAGES}, got {linkage!r}'
    )
