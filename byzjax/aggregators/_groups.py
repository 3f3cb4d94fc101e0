"""Groups of points by their distances: DBSCAN, mean shift, single linkage.

All have fixed shapes, so that they compile: n points, of which a mask says
which are there. They follow scikit-learn, ties included.
"""

import jax
import jax.numpy as jnp

from byzjax._src import base

# Steps of mean shift; scikit-learn's limit.
_MAX_STEPS = 300


def bottlenecks(distances: jax.Array) -> jax.Array:
  """The least t at which i and j are linked by steps of at most t: [n, n].

  The distances at which single linkage joins them.
  """

  def through(k, least):
    return jnp.minimum(least, jnp.maximum(least[:, k, None], least[k][None]))

  return jax.lax.fori_loop(0, distances.shape[0], through, distances)


def majority_component(
  distances: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The first single-linkage cluster of more than half of all points.

  HDBSCAN with `min_cluster_size = floor(m / 2) + 1`, `min_samples = 1` and one
  cluster allowed finds the same: so large a cluster never splits in two. All
  merges at the same distance count at once.

  Args:
    distances: float[n, n], symmetric, with zeros on the diagonal.
    mask: bool[n], which m points there are.

  Returns:
    bool[n], and the least step that links each point to the cluster, float[n].
  """
  apart = jnp.where(mask[:, None] & mask[None], distances, jnp.inf)
  least = bottlenecks(apart)
  reached = jnp.sort(least, axis=1)[:, mask.sum() // 2]
  first = jnp.argmin(reached)
  return (least[first] <= reached[first]) & mask, least[first]


def largest_of_dbscan(
  distances: jax.Array, mask: jax.Array, radius: base.Scalar, min_samples: int
) -> jax.Array:
  """The largest cluster of DBSCAN: bool[n]; nobody if all points are noise.

  A point with `min_samples` points within the radius, itself among them, is a
  core point. Linked core points are a cluster, with what is within the radius
  of one; of two such clusters a point is in that of the lowest core point. Of
  equal clusters that one is first, too.
  """
  n = mask.shape[0]
  near = (distances <= radius) & mask[:, None] & mask[None]
  core = mask & (near.sum(axis=1) >= min_samples)
  links = jnp.where(near & core[:, None] & core[None], 0.0, jnp.inf)
  linked = bottlenecks(links) == 0
  # A cluster goes by its lowest core point.
  label = jnp.where(core, jnp.argmax(linked, axis=1), n)
  label = jnp.where(near & core[None], label[None], n).min(axis=1)
  return _most_frequent(label, n)


def bandwidth_of(
  distances: jax.Array, mask: jax.Array, quantile: float
) -> jax.Array:
  """The mean distance to the neighbour number `floor(q m)`, itself the first.

  1 at least, of m points; 0.1 where that is zero.
  """
  m = mask.sum()
  # A product that float32 rounds down must not lose a neighbour.
  count = jnp.maximum(jnp.floor(m * quantile * (1 + 1e-6)), 1).astype(jnp.int32)
  apart = jnp.where(mask[None], distances, jnp.inf)
  farthest = jnp.sort(apart, axis=1)[:, count - 1]
  mean = jnp.where(mask, farthest, 0).sum() / jnp.maximum(m, 1)
  return jnp.where(mean > 0, mean, 0.1)


def largest_of_mean_shift(
  points: jax.Array, mask: jax.Array, bandwidth: jax.Array
) -> jax.Array:
  """The largest cluster of mean shift with a flat kernel: bool[n].

  scikit-learn's `MeanShift(bin_seeding=True, cluster_all=False)`: seeds are the
  occupied cells of a grid as wide as the bandwidth, or all points if each has
  its own. They move to the mean of what is within the bandwidth; of two ends
  that close, that with more points stays. A point is in the cluster of the
  nearest end, if that is within the bandwidth.
  """
  n = mask.shape[0]
  cells = jnp.round(points / bandwidth)
  same = jnp.all(cells[:, None] == cells[None], axis=2)
  same &= mask[:, None] & mask[None]
  alone = jnp.sum(same) == mask.sum()
  seeds = jnp.where(alone, points, cells * bandwidth)

  def shift(carry):
    ends, sizes, moving, step = carry
    near = (_distances(ends, points) <= bandwidth) & mask[None]
    found = near.sum(axis=1, dtype=jnp.int32)
    weights = near / jnp.maximum(found, 1)[:, None]
    means = jnp.sum(weights[:, :, None] * points[None], axis=1)
    means = jnp.where((moving & (found > 0))[:, None], means, ends)
    sizes = jnp.where(moving, found, sizes)
    moved = jnp.sqrt(jnp.sum(jnp.square(means - ends), axis=1))
    moving &= (found > 0) & (moved > 1e-3 * bandwidth)
    return means, sizes, moving, step + 1

  ends, sizes, _, _ = jax.lax.while_loop(
    lambda carry: jnp.any(carry[2]) & (carry[3] <= _MAX_STEPS),
    shift,
    (seeds, jnp.zeros(n, jnp.int32), mask, 0),
  )
  # By size, and of equal sizes by their coordinates.
  order = jnp.lexsort([*ends.T[::-1], sizes])[::-1]
  ends, sizes = ends[order], sizes[order]
  close = _distances(ends, ends) <= bandwidth

  def drop(i, stays):
    dropped = stays[i] & close[i] & (jnp.arange(n) > i)
    return stays & ~dropped

  stays = jax.lax.fori_loop(0, n, drop, sizes > 0)
  apart = jnp.where(stays[None], _distances(points, ends), jnp.inf)
  inside = mask & (apart.min(axis=1) <= bandwidth)
  return _most_frequent(jnp.where(inside, jnp.argmin(apart, axis=1), n), n)


def distances_between(points: jax.Array) -> jax.Array:
  """`|x_i - x_j|` of a few coordinates: `[n, k] -> [n, n]`."""
  return _distances(points, points)


def _distances(x, y):
  return jnp.sqrt(jnp.sum(jnp.square(x[:, None] - y[None]), axis=2))


def _most_frequent(label, none):
  """Who has the label that most have, the lowest of them; `none` is none."""
  members = label[None] == jnp.arange(none)[:, None]
  return members[jnp.argmax(members.sum(axis=1))] & (label < none)
