"""Bulyan: repeated Krum selection, then a mean of the middle values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import (
  base,
  calls,
  checks,
  grams,
  recipes,
  reductions,
  sorting,
)
from byzjax.aggregators import _mean_around_median, _trimmed_mean

FIRST_STAGES = ('krum', 'multi_krum')
SECOND_STAGES = ('mean_around_median', 'trimmed_mean')


@recipes.factory
def bulyan(
  *,
  num_byzantine: int,
  num_selected: int | None = None,
  num_averaged: int | None = None,
  num_neighbors: int | None = None,
  distance_power: int = 2,
  first_stage: str = 'krum',
  second_stage: str = 'mean_around_median',
  middle: str = 'mean',
) -> base.Aggregator:
  """Selects messages by repeated Krum, then averages the middle of each column.

  First, Krum runs theta times on the messages that remain, and each time moves
  the message that it picks to the set S. Then `aggregate[j]` is the mean of the
  `beta = theta - 2f` values of coordinate j in S that are closest to their
  median. Krum may pick Byzantine messages, but S holds too few of them to be a
  majority in any coordinate.

  With r messages remaining, a run of Krum scores each by its `r - f - 2`
  nearest neighbours among them (at least one). Ties go to the lowest index.
  Messages with a non-finite entry are never picked; if there are more than `n -
  theta` of them, the aggregate is zero.

  Implementations differ. Flower does the above. krum 0.9.1 runs multi-Krum
  instead (`first_stage='multi_krum'`): each run computes the mean of its `r - f
  - 2` best messages, adds this *mean* to S, and removes the message closest to
  it from those that remain; theta is `n - 2f - 2`, and S is averaged after
  trimming f values on both sides (`second_stage='trimmed_mean'`). Garfield
  measures from the lower of the two middle values (`middle='lower'`).

  Args:
    num_byzantine: f, a Python int >= 0.
    num_selected: theta, in `2f + 1 ... n`; None for `n - 2f`. For
      'multi_krum' at most `n - f - 2`, and None is `n - 2f - 2`.
    num_averaged: beta, in `1 ... theta - f`; None for `theta - 2f`. For
      'trimmed_mean' theta - beta must be even.
    num_neighbors: number of neighbours in the first run, in `1 ... n - 1`; each
      later run counts one less, but at least one. None for `n - f - 2`.
    distance_power: p >= 1 in `|x_i - x_j|^p`, as in `krum`.
    first_stage: 'krum' or 'multi_krum'.
    second_stage: 'mean_around_median' or 'trimmed_mean'.
    middle: 'mean' or 'lower': the median of an even number of values, as in
      `coordinate_median`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. In
    `inspect`, `kept` marks the messages that were picked, and `scores` are the
    Krum scores of the first run.

  Raises:
    ValueError: if an argument is not in its range; at trace time if `n < 4f +
      3`, or if `worker_weights` are given.

  References:
    El Mhamdi, Guerraoui, Rouault, 2018, arXiv:1802.07927.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.bulyan(num_byzantine=1)
    >>> rule(jnp.array([0., 1., 2., 3., 4., 5., 100.]))
    Array(2., dtype=float32)
  """
  checks.check_count('bulyan', 'num_byzantine', num_byzantine)
  checks.check_count('bulyan', 'distance_power', distance_power, 1)
  for name, value in [
    ('num_selected', num_selected),
    ('num_averaged', num_averaged),
    ('num_neighbors', num_neighbors),
  ]:
    if value is not None:
      checks.check_count('bulyan', name, value, 1)
  for name, stage, choices in [
    ('first_stage', first_stage, FIRST_STAGES),
    ('second_stage', second_stage, SECOND_STAGES),
  ]:
    if stage not in choices:
      raise ValueError(f'bulyan needs {name} in {choices}, got {stage!r}')
  sorting.check_middle('bulyan', middle)
  means = first_stage == 'multi_krum'

  def counts(n):
    theta = num_selected or n - 2 * num_byzantine - (2 if means else 0)
    beta = num_averaged or theta - 2 * num_byzantine
    neighbors = num_neighbors or n - num_byzantine - 2
    most = n - num_byzantine - 2 if means else n
    _check_counts(n, num_byzantine, theta, beta, neighbors, most)
    if second_stage == 'trimmed_mean' and (theta - beta) % 2:
      raise ValueError(
        'bulyan needs num_selected - num_averaged to be even to trim both'
        f' sides, got {theta} and {beta}'
      )
    return theta, beta, neighbors

  def middle_of(column, beta):
    if second_stage == 'trimmed_mean':
      return _trimmed_mean.middle_mean(column, (len(column) - beta) // 2)
    return _mean_around_median.around_median(column, beta, middle)

  def aggregate(rows, state, call):
    n = rows.shape[0]
    theta, beta, neighbors = counts(n)
    # Whom it picks is constant almost everywhere: no derivative.
    gram, center = grams.gram_of(
      lax.stop_gradient(rows), axis_name=call.axis_name
    )
    picks = _picks(
      gram,
      theta,
      neighbors,
      n - num_byzantine - 2 if means else 1,
      distance_power,
    )
    selected = (
      reductions.mix(picks.weights, rows, center, gram.mask)
      if means
      else rows.written()[picks.order]
    )
    y = sorting.by_column(lambda column: middle_of(column, beta), selected)
    # With too few usable messages, some runs had nothing to pick.
    usable = (picks.weights > 0).any(axis=1).all() & jnp.isfinite(y)
    info = base.AggregationInfo(
      mask=gram.mask,
      kept=(picks.weights > 0).any(axis=0),
      scores=picks.scores,
    )
    return jnp.where(usable, y, 0), state, info

  return calls.from_rows('bulyan', aggregate, takes_norms=True)


def _check_counts(
  n: int, f: int, theta: int, beta: int, neighbors: int, most: int
) -> None:
  """Raises an error unless so many messages can be picked and averaged."""
  if n < 4 * f + 3:
    raise ValueError(
      f'bulyan needs num_workers >= 4 * num_byzantine + 3, got {n} and {f}'
    )
  for name, value, low, high in [
    ('num_selected', theta, 2 * f + 1, most),
    ('num_averaged', beta, 1, theta - f),
    ('num_neighbors', neighbors, 1, n - 1),
  ]:
    if not low <= value <= high:
      raise ValueError(
        f'bulyan needs {name} in {low} ... {high} for num_workers = {n} and'
        f' num_byzantine = {f}, got {value}'
      )


class _Picks(NamedTuple):
  order: jax.Array  # int[theta], who leaves the remaining messages when
  weights: jax.Array  # float[theta, n], of the messages averaged in each run
  scores: jax.Array  # float[n], in the first run


def _picks(
  gram: base.Gram,
  num_selected: int,
  num_neighbors: int,
  num_best: int,
  distance_power: int,
) -> _Picks:
  """Runs (multi-)Krum again and again, on the messages that remain.

  The first run scores by `num_neighbors` neighbours and averages the `num_best`
  best messages; each that follows by one less of both, but at least one.
  """
  n = gram.mask.shape[0]
  distances = grams.squared_distances(gram)
  # Inner products may differ in the last bit from their transpose, but two
  # messages that are each other's nearest must tie.
  distances = jnp.minimum(distances, distances.T)
  # Each row sorted once; in every run those who remain are still in order.
  others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
  nearest = jnp.argsort(others, axis=1, stable=True)[:, : n - 1]
  powers = _powers(
    jnp.take_along_axis(others, nearest, axis=1), num_neighbors, distance_power
  )

  def scores(remaining, count):
    present = remaining[nearest]
    counted = present & (jnp.cumsum(present, axis=1) <= count)
    total = jnp.where(counted, powers, 0).sum(axis=1)
    # Even an overflowing score is better than that of a masked message.
    total = jnp.minimum(total, jnp.finfo(powers.dtype).max)
    return jnp.where(remaining & gram.mask, total, jnp.inf)

  def run(i, carry):
    remaining, order, weights = carry
    score = scores(remaining, jnp.maximum(num_neighbors - i, 1))
    rank = jnp.argsort(jnp.argsort(score, stable=True))
    best = (rank < jnp.maximum(num_best - i, 1)) & jnp.isfinite(score)
    # |x_j - mean|^2 is the mean squared distance to the averaged messages, up
    # to a constant.
    spread = jnp.where(best[None], distances, 0).sum(axis=1)
    pick = jnp.argmin(jnp.where(best, spread, jnp.inf))
    return (
      remaining.at[pick].set(False),
      order.at[i].set(pick),
      weights.at[i].set(reductions.shares(best).astype(weights.dtype)),
    )

  everyone = jnp.ones(n, bool)
  start = (
    everyone,
    jnp.zeros(num_selected, int),
    jnp.zeros((num_selected, n), distances.dtype),
  )
  _, order, weights = lax.fori_loop(0, num_selected, run, start)
  return _Picks(order, weights, scores(everyone, num_neighbors))


def _powers(squared, num_neighbors, distance_power):
  """`|x_i - x_j|^p` up to a factor, of distances that are sorted."""
  if distance_power == 2:
    return squared
  # In units of the best score, as Krum does.
  unit = squared[:, :num_neighbors].sum(axis=1).min()
  unit = jnp.where(unit > 0, unit, 1)
  return unit * (squared / unit) ** (distance_power / 2)
