"""The damage to a median or a trimmed mean, from one sort for all strengths.

With f equal values b among n, the k-th smallest is `clip(b, h_(k-f), h_(k))`, h
the sorted honest values: the k-th smallest value with -inf in the place of the
b, and with +inf. So f may be traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from byzjax._src import base, recipes, sorting
from byzjax.aggregators import _coordinate_median
from byzjax.attacks import _damage

# `b [k, width] -> what the rule makes of a column with it`
Aggregate = Callable[[jax.Array], jax.Array]


def is_possible(aggregator: base.Aggregator, scene: _damage.Scene) -> bool:
  """Whether the rule, and what is sent, are such."""
  if scene.draft.shape[0] > 1 or len(scene.rows) > sorting.MAX_NETWORK:
    return False
  name, config = _name_and_config(aggregator)
  if name == 'trimmed_mean':
    return 0 < config['num_byzantine'] < len(scene.rows) / 2
  return name == 'coordinate_median'


def _name_and_config(aggregator):
  recipe = recipes.recipe_of(aggregator)
  if recipe is None:
    return None, {}
  return recipe.factory.__name__, recipes.config_in(recipe) or {}


def trials(
  aggregator: base.Aggregator,
  scene: _damage.Scene,
  otherwise: Callable[[jax.Array], jax.Array],
) -> _damage.Trials:
  """How to search the strength of an attack of one row on such a rule.

  Both rules are continuous functions of b, so what is computed here is what
  they do, but for rounding. A trimmed mean with more attackers than it was
  made for is left to `otherwise`.
  """
  name, config = _name_and_config(aggregator)
  if name == 'coordinate_median':

    def evaluate(grid):
      return _distances(
        scene, grid, lambda low, high: _median(low, high, config['middle'])
      )

    return _damage.Trials(evaluate, True)

  trimmed = config['num_byzantine']
  count = scene.is_byzantine.sum()

  def trimmed_mean(low, high):
    return _trimmed_mean(low, high, trimmed, count)

  def evaluate_trimmed(grid):
    return jax.lax.cond(
      count <= trimmed,
      lambda: _distances(scene, grid, trimmed_mean),
      lambda: otherwise(grid).astype(grid.dtype),
    )

  return _damage.Trials(evaluate_trimmed, True)


def _distances(scene, grid, column_fn):
  """`|Agg(s) - mu|` for all strengths: float[k]."""

  def block(take, is_new):
    rows, bad = take(scene.rows), scene.is_byzantine[:, None]
    rows = jnp.where(jnp.isnan(rows), jnp.inf, rows)
    aggregate = column_fn(
      list(jnp.where(bad, -jnp.inf, rows)), list(jnp.where(bad, jnp.inf, rows))
    )
    mean = take(scene.mean)[None]
    b = mean + grid[:, None] * (take(scene.draft) - mean)
    y = aggregate(jnp.where(jnp.isnan(b), jnp.inf, b))
    y = jnp.where(jnp.isfinite(y), y, 0) - mean
    y = jnp.where(is_new[None], y, 0)
    return jnp.einsum('kd,kd->k', y, y, precision=jax.lax.Precision.HIGHEST)

  total = _damage.sum_over_blocks(block, scene, 4 * len(scene.rows))
  return jnp.sqrt(total)


def _median(
  low: list[jax.Array], high: list[jax.Array], middle: str
) -> Aggregate:
  """The median, from columns with -inf and with +inf for b."""
  below = _coordinate_median.middles(low, middle)
  above = _coordinate_median.middles(high, middle)
  is_one = below[0] is below[1]

  def aggregate(b):
    first = jnp.clip(b, below[0], above[0])
    second = first if is_one else jnp.clip(b, below[1], above[1])
    return sorting.between(first, second, middle)

  return aggregate


def _trimmed_mean(
  low: list[jax.Array], high: list[jax.Array], trimmed: int, count: jax.Array
) -> Aggregate:
  """The trimmed mean of columns with `count <= trimmed` values b.

  A sum of clips between neighbours, such as `clip(b, h_(1), h_(3)) + clip(b,
  h_(3), h_(5))`, is that between the outermost, plus what is in the middle. So
  one clip is left for every b, and for no more than the values that are kept.
  """
  n = len(low)
  kept = n - 2 * trimmed
  num_clips = min(trimmed, kept)
  ranks = range(trimmed, n - trimmed)
  first = max(trimmed, n - 2 * trimmed)  # which of the ranks may be attackers'
  labels = tuple(
    -1 if k < trimmed else n if k >= n - trimmed else 0 if k < first else k
    for k in range(n)
  )
  above = sorting.sorted_rows(high, labels)
  # Ranks in the middle of the honest values are in every mean.
  core = sorting.sum_of(
    [
      above[k] if k < first else jnp.where(k < n - trimmed - count, above[k], 0)
      for k in ranks
    ]
  )
  labels = tuple(
    k if trimmed <= k < trimmed + num_clips else -1 if k < trimmed else n
    for k in range(n)
  )
  below = sorting.sorted_rows(low, labels)

  def bounds(j):
    return [
      jnp.where(j < count, values, 0)
      for values in (below[trimmed + j], above[n - trimmed - 1 - j])
    ]

  pairs = [bounds(j) for j in range(num_clips)]

  def aggregate(b):
    clips = [jnp.clip(b, *pair) for pair in pairs]
    return (core[None] + sorting.sum_of(clips)) / kept

  return aggregate
