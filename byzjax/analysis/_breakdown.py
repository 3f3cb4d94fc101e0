"""How many messages a rule really stands: the breakdown point, by search."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, reductions

# The smaller magnitude is this much of the larger one.
_STEP = 1e-3


class BreakdownPoint(NamedTuple):
  """What far away messages do to a rule.

  Attributes:
    num_byzantine: the least number of messages that took the aggregate
      anywhere; None if not even all of them did.
    displacements: float[n], for f = 1 ... n the farthest that f messages of the
      given magnitude moved the aggregate.
    exponents: float[n], the largest p such that this was in proportion to the
      p-th power of the magnitude: 0 is bounded, 1 is wherever they wish, and
      more is a jump in between.
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
  """The least number of messages that take a rule's aggregate anywhere.

  For f = 1 ... n, f of n Gaussian messages are put far away: all at M u, u a
  random direction; at M u and -M u; along the honest mean and against it; in a
  direction each; at M u, 100 M u, 10^4 M u, ..., and the same with a direction
  each; at M u or 10 M u by chance. The rule is broken if the aggregate moves by
  a distance that grows with M: faster than the root of it, from M / 1000 to M,
  and by more than the honest spread. The first f rows are Byzantine in the
  first draw, the last ones in the second, random ones in the others. All of it
  is one compiled program.

  What the rule was told to expect stays what it is: the search asks what it
  stands. Most rules stand what they were told, and medians all but a half.
  `krum(num_byzantine=f)` stands f + 1, where honest messages still have n - f -
  2 honest neighbours. It does not stand f + 3: each honest score then has the
  distance to a message at 100 M u in it, to which one at M u is closer. That
  nothing is found is no proof.

  Args:
    aggregator: the rule; one with state is tried in its first state.
    num_workers: n, a Python int.
    magnitude: M > 0, for messages of size one.
    num_coordinates: d, a Python int >= 1.
    num_draws: of messages and directions, a Python int >= 1.
    key: for the draws, and for rules that draw; not traced.

  Returns:
    A `BreakdownPoint`: the number, and what was found for every f.

  Raises:
    ValueError: if an argument is not an int in its range, or the magnitude not
      positive, and as the rule.

  References:
    Donoho, Huber, 1983, The notion of breakdown point.

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
  spread = np.sqrt(num_coordinates)
  growth = np.maximum(moved, spread) / np.maximum(near, spread)
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
    return reductions.distance(aggregate(rows, key), aggregate(honest, key))

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
