"""SignGuard: filters by sign statistics (largest cluster) and by norms."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  grams,
  layouts,
  nonfinite,
  parameters,
  recipes,
  reductions,
  rules,
)
from byzjax.aggregators import _clustering, _groups, _norms

_METHODS = ('mean_shift', 'dbscan')
_FEATURES = ('signs', 'cosine', 'distance')
# What the official code has as constants.
_FIRST_ROUNDS = {'cosine': 3, 'distance': 1}
_QUANTILE, _EPSILON, _FAR = 0.5, 1e-8, 1.1


class SignGuardState(NamedTuple):
  """The state of `sign_guard` for a feature other than 'signs'.

  Attributes:
    step: int32[], the number of calls so far.
    previous: the previous aggregate.
  """

  step: jax.Array
  previous: base.Aggregate


@recipes.factory
def sign_guard(
  *,
  feature: str = 'signs',
  method: str = 'mean_shift',
  fraction: float = 0.1,
  shortest: base.Scalar = 0.1,
  longest: base.Scalar = 3.0,
  radius: base.Scalar = 0.05,
  min_samples: int = 2,
  middle: str = 'lower',
) -> base.Aggregator:
  """The clipped mean of messages with typical norms and signs (SignGuard).

  With M the median norm, `S = {i : shortest M < |x_i| < longest M}`. In a
  window of `k = floor(fraction d)` consecutive coordinates, with a start drawn
  at random in every round, let p_i, z_i and q_i be the shares of positive, zero
  and negative entries of message i; its features are `p_i / max p`, `z_i / max
  z`, `q_i / max q` (1e-8 is added to every maximum). T is the largest cluster
  of the features. The aggregate is the mean of `x_i min(1, M / |x_i|)` over the
  messages in both S and T, or over all messages if there is none. Its norm is
  at most M. f is not an input. Ties go to the lowest index.

  `feature` can add one more feature s_i:

  - 'cosine', SignGuard-Sim: `s_i = cos(x_i, previous aggregate)`, or in the
    first three rounds the median over j of `cos(x_i, x_j)`, with 0 for j = i;
    the feature is `min(max(s_i, 0), med s) / (5 med s + 1e-8)`.
  - 'distance', SignGuard-Dist: `s_i = |x_i - previous aggregate|`, or in the
    first round the sum of the `floor(n / 2)` smallest distances to messages
    (including 0 to itself); the feature is 0.2 where `s_i >= 1.1 med s`, else
    0.

  These medians take the lower of two middle values. Attacks that preserve the
  shares of signs are not detected: `alie`, `min_max`, and sign flipping of
  gradients with as many positive as negative entries.

  Clusters are those of scikit-learn; the official code uses its MeanShift, with
  a bandwidth from quantile 0.5. If all features are equal, that code raises;
  here the bandwidth is then 0.1, as in FL-Byzantine-Library. FLPoison uses
  DBSCAN with `min_samples=3` and `middle='mean'`, and raises if no message is
  kept. fedlib clips first and uses all coordinates and k-means with two
  clusters, which is not implemented here.

  Args:
    feature: 'signs' for the plain rule, 'cosine' or 'distance'.
    method: 'mean_shift', or 'dbscan'.
    fraction: share of the coordinates in the window, in (0, 1], a Python
      number; k is at least 1. 1 takes all coordinates and needs no key. A small
      window may lie in a single layer.
    shortest: lower bound on norms in units of M, >= 0; may be traced.
    longest: upper bound on norms in units of M, >= 0; may be traced.
    radius: the radius of DBSCAN, >= 0; may be traced.
    min_samples: for DBSCAN, a Python int >= 1: how many messages within the
      radius make a core point.
    middle: 'lower' or 'mean': the median norm M used for clipping when n is
      even. The bounds on norms always use the mean of the two middle values.

  Returns:
    An `Aggregator` that needs a `key` if `fraction < 1`, with a
    `SignGuardState` for 'cosine' and 'distance': leaves `[n, *shape] ->
    [*shape]`. `inspect` reports which messages were kept, and the clipping
    factor of each.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if there is
      no key although a window is drawn.

  References:
    Xu, Huang, Song, Lan, 2022, ICDCS, arXiv:2109.05872.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[1., 2.], [2., 1.], [1., 1.], [-1., -1.], [9., 9.]])
    >>> rule = byzjax.sign_guard(fraction=1.0, method='dbscan')
    >>> rule.inspect(x, rule.init(x[0]))[2].kept
    Array([ True,  True,  True, False, False], dtype=bool)
  """
  name = 'sign_guard'
  checks.check_choice(name, 'feature', feature, _FEATURES)
  checks.check_choice(name, 'method', method, _METHODS)
  if not isinstance(fraction, (int, float)):
    raise ValueError(
      f'{name} needs fraction to be a Python number, got {fraction!r}'
    )
  checks.check_range(name, 'fraction', fraction, 0, 1, exclusive=True)
  checks.check_range(name, 'shortest', shortest, 0)
  checks.check_range(name, 'longest', longest, 0)
  checks.check_range(name, 'radius', radius, 0)
  checks.check_count(name, 'min_samples', min_samples, 1)
  _norms.check_middle(name, middle)

  def init(params):
    zeros = parameters.zeros_like(params)
    return SignGuardState(jnp.zeros([], jnp.int32), zeros)

  def largest_cluster(features, mask):
    distances = _groups.distances_between(features)
    if method == 'dbscan':
      return _groups.largest_of_dbscan(distances, mask, radius, min_samples)
    bandwidth = _groups.bandwidth_of(distances, mask, _QUANTILE)
    return _groups.largest_of_mean_shift(features, mask, bandwidth)

  def aggregate(rows, state, call):
    constant = jax.lax.stop_gradient(rows)
    squared = reductions.squared_norms(constant, axis_name=call.axis_name)
    mask = nonfinite.usable_norms(squared)
    norms = reductions.sqrt(jnp.where(mask, squared, 0))
    counts = _sign_counts(constant, _window(name, fraction, rows, call), call)
    counts = jnp.where(mask[:, None], counts, 0).astype(norms.dtype)
    most = jnp.maximum(counts.max(axis=0), 0)
    size = jnp.maximum(counts.sum(axis=1).max(), 1)
    features = (counts / size) / (most / size + _EPSILON)[None]
    if feature != 'signs':
      more = _similarity(
        feature, constant, squared, mask, state.previous, state.step, call
      )
      features = jnp.concatenate([features, more[:, None]], axis=1)

    center = _norms.median(norms, mask)
    usual = (norms > shortest * center) & (norms < longest * center)
    kept = usual & largest_cluster(features, mask)
    kept = jnp.where(jnp.any(kept), kept, mask)
    limit = _norms.median(norms, mask, middle)
    factors = _norms.clip_factors(norms, mask, limit)
    weights = (reductions.shares(kept) * factors).astype(rows.dtype)
    y = reductions.combine(weights, rows)
    if feature != 'signs':
      previous = flat.row_layout(state.previous).unravel(y)
      state = SignGuardState(state.step + 1, previous)
    info = base.AggregationInfo(weights, mask, kept=kept, factors=factors)
    return y, state, info

  return calls.from_rows(
    name,
    aggregate,
    init=optax.init_empty_state if feature == 'signs' else init,
    takes_norms=True,
  )


def _window(name, fraction, rows, call):
  """The first coordinate and the number of those whose signs are counted."""
  size = call.extra.get('num_coordinates')
  if size is None:
    axis_name = call.axis_name
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    size = rows.shape[1] * devices
  width = max(math.floor(fraction * size), 1)
  if width == size:
    return 0, width
  if call.key is None:
    raise ValueError(
      f'{name} needs a key to draw {width} of {size} coordinates, got None'
    )
  return jax.random.randint(call.key, (), 0, size - width), width


def _sign_counts(rows, window, call):
  """How many coordinates are positive, zero and negative: int32[n, 3]."""
  start, width = window
  if call.axis_name is None:
    x = rows.columns(start, width).written()
    counted = jnp.ones(width, bool)
  else:
    x, numbers = rows.written(), call.extra.get('coordinates')
    if numbers is None:
      numbers = layouts.coordinates(x.shape[1], call.axis_name)
    counted = (numbers >= start) & (numbers < start + width)
  signs = [x > 0, x == 0, x < 0]
  counts = [jnp.sum(sign & counted[None], axis=1) for sign in signs]
  return reductions.psum(jnp.stack(counts, axis=1), call.axis_name)


def _similarity(feature, rows, squared, mask, previous, step, call):
  """The fourth feature: float[n]."""
  axis_name = call.axis_name
  previous = rules.flat_vector('sign_guard', previous, rows)
  early = step < _FIRST_ROUNDS[feature]
  if feature == 'cosine':
    gram = _clustering.gram_of_directions(rows, squared, mask, axis_name)
    cosines = 1 - _clustering.cosine_distances(gram)
    n = len(mask)
    cosines = jnp.where(jnp.eye(n, dtype=bool), 0, cosines)
    first = jax.vmap(lambda row: _norms.median(row, mask, 'lower'))(cosines)
    length = reductions.sqrt(
      reductions.squared_norms(previous[None], axis_name=axis_name)[0]
    )
    unit = previous / jnp.where(length > 0, length, 1)
    inner = reductions.products(rows, unit, axis_name=axis_name)
    norms = reductions.sqrt(jnp.where(mask, squared, 0))
    later = inner / jnp.where(norms > 0, norms, 1)
    s = jnp.where(mask, jnp.where(early, first, later), 0)
    middle = _norms.median(s, mask, 'lower')
    # A clamp whose upper end is below zero gives that end.
    clamped = jnp.minimum(jnp.maximum(s, 0), middle)
    return clamped / (5 * middle + _EPSILON)
  gram, _ = grams.gram_of(rows, axis_name=axis_name)
  distances = reductions.sqrt(grams.squared_distances(gram))
  apart = jnp.sort(jnp.where(mask[None], distances, jnp.inf), axis=1)
  count = mask.sum() // 2
  nearest = jnp.where(jnp.arange(len(mask)) < count, apart, 0).sum(axis=1)
  later = reductions.squared_norms(rows, center=previous, axis_name=axis_name)
  s = jnp.where(early, nearest, reductions.sqrt(later))
  s = jnp.where(mask, s, 0)
  far = s >= _FAR * _norms.median(s, mask, 'lower')
  return jnp.where(far & mask, 0.2, 0.0).astype(s.dtype)
