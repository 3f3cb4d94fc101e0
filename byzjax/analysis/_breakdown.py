"""Empirical breakdown point: how many bad messages a rule tolerates."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, reductions

# The smaller magnitude is this much of the larger one.
_STEP = 1e-3


class BreakdownPoint(NamedTuple):
  """The displacement of a rule by messages far away.

  Attributes:
    num_byzantine: the smallest number of messages that moved the aggregate
      arbitrarily far; None if not even all of them did.
    displacements: float[n], for f = 1 ... n the largest displacement of the
      aggregate by f messages of the given magnitude; inf if it is no number.
    exponents: float[n], the largest p for which this displacement grew as the
      p-th power of the magnitude: 0 is bounded, 1 is proportional, and more is
      a jump in between.
  """

  num_byzantine: int | None
  displacements: np.ndarray
  exponents: np.ndarray


def breakdown_point(
  aggregator: base.Aggregator,
  *,
  num_workers: int,
  magnitude: float = 1e6,
  num_coordinates: int = 8,
  num_draws: int = 8,
  key: jax.Array,
) -> BreakdownPoint:
  """Searches the smallest number of messages that can break a rule.

  For f = 1 ... n, f of n Gaussian messages are moved far away, in several ways:
  all to M u, u a random direction; to M u and -M u; along the honest mean and
  opposite to it; each in its own direction; to M u, 100 M u, 10^4 M u, ...,
  also with a direction each; to M u or 10 M u at random. The rule is broken if
  the displacement of the aggregate grows with M: faster than its square root,
  from M / 1000 to M, and by more than the spread of the honest messages. The
  first f rows are Byzantine in the first draw, the last ones in the second,
  random ones in the others. The search is one compiled program.

  The f of the rule itself is not changed: the search finds what the rule
  tolerates. Most rules tolerate the f that they were given, and medians any
  minority. `krum(num_byzantine=f)` tolerates f + 1, because honest messages
  then still have n - f - 2 honest neighbours. It does not tolerate f + 3: each
  honest score then includes the distance to a message at 100 M u, to which a
  message at M u is closer. If the search finds nothing, this proves nothing.

  Args:
    aggregator: the rule; a rule with state is used in its initial state.
    num_workers: n, a Python int.
    magnitude: M > 0, for messages of size one.
    num_coordinates: d, a Python int >= 1.
    num_draws: number of random draws, a Python int >= 1.
    key: for the draws, and for rules that need a key; not traced.

  Returns:
    A `BreakdownPoint`: the number, and the results for every f.

  Raises:
    ValueError: if an argument is not an int in its range, the magnitude is not
      positive, or the rule raises.

  References:
    Donoho, Huber, 1983, "The notion of breakdown point".

  Example:
    >>> import byzjax, jax
    >>> point = byzjax.analysis.breakdown_point(
    ...   byzjax.coordinate_median(), num_workers=5, key=jax.random.key(0))
    >>> point.num_byzantine, point.exponents.round(1).tolist()
    (3, [0.0, 0.0, 1.0, 1.0, 1.0])
  """
  name = 'breakdown_point'
  checks.check_count(name, 'num_workers', num_workers, 1)
  checks.check_count(name, 'num_coordinates', num_coordinates, 1)
  checks.check_count(name, 'num_draws', num_draws, 1)
  checks.check_kind(name, 'aggregator', aggregator, base.Aggregator)
  checks.check_key(name, 'key', key)
  checks.check_range(name, 'magnitude', magnitude, 0, exclusive=True)

  random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
  draws = [
    _draw(random, i, num_workers, num_coordinates) for i in range(num_draws)
  ]
  honest, is_byzantine, far = (np.stack(parts) for parts in zip(*draws))
  near, moved = np.asarray(
    _displacements(
      aggregator,
      honest,
      is_byzantine,
      far,
      jax.random.split(key, num_draws),
      np.array([_STEP * magnitude, magnitude]),
    )
  )
  spread, largest = np.sqrt(num_coordinates), np.finfo(moved.dtype).max
  # No larger: a rule that gives no number for either is broken, too.
  near = np.clip(near, spread, largest)
  growth = np.maximum(moved, spread).astype(float) / near
  exponents = np.log(growth).max(axis=(0, 2)) / np.log(1 / _STEP)
  broken = np.flatnonzero(exponents > 0.5)
  point = int(broken[0]) + 1 if len(broken) else None
  return BreakdownPoint(point, moved.max(axis=(0, 2)), exponents)


@functools.partial(jax.jit, static_argnums=0)
def _displacements(aggregator, honest, is_byzantine, far, keys, sizes):
  """How far the aggregate moves: float[size, draw, f, p].

  From honest [draw, n, d], is_byzantine [draw, f, n], far [draw, f, p, n, d].
  """

  def aggregate(rows, key):
    state = aggregator.init(jnp.zeros_like(rows[0]))
    return aggregator.update(rows, state, key=key)[0]

  def displacement(honest, is_byzantine, far, key, size):
    rows = jnp.where(is_byzantine[:, None], size * far, honest)
    moved = reductions.distance(aggregate(rows, key), aggregate(honest, key))
    return jnp.where(jnp.isnan(moved), jnp.inf, moved)

  per_placement = jax.vmap(displacement, (None, None, 0, None, None))
  per_count = jax.vmap(per_placement, (None, 0, 0, None, None))
  per_draw = jax.vmap(per_count, (0, 0, 0, 0, None))
  per_size = jax.vmap(per_draw, (None, None, None, None, 0))
  return per_size(honest, is_byzantine, far, keys, sizes)


def _draw(random, index, n, d):
  """Honest rows [n, d], who is Byzantine [f, n], and where [f, p, n, d]."""
  # A common part, so that there is an honest direction.
  honest = random.normal(size=(n, d)) + random.normal(size=(1, d))
  orders = (np.arange(n), np.arange(n)[::-1], random.permutation(n))
  order = orders[min(index, 2)]
  rank = np.argsort(order)
  is_byzantine = rank[None] < np.arange(1, n + 1)[:, None]
  mean = honest.mean(axis=0, keepdims=True)
  mean /= np.linalg.norm(mean)
  far = [_directions(random, honest, mean, rank, n, d) for _ in range(n)]
  return honest, is_byzantine, np.stack(far)


def _directions(random, honest, mean, rank, n, d):
  """Where messages may be, in units of M: [p, n, d]."""
  each = random.normal(size=(n, d))
  each /= np.linalg.norm(each, axis=1, keepdims=True)
  one, ones = each[:1], np.ones((n, 1))
  rank = rank[:, None]
  ladder = 100.0 ** np.minimum(rank, 4)
  return np.stack(
    [
      one * ones,
      one * (-1.0) ** rank,
      mean * ones,
      -mean * ones,
      each,
      one * ladder,
      each * ladder,
      one * np.where(random.random(size=(n, 1)) < 0.5, 1, 10),
    ]
  )
