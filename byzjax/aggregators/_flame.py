"""FLAME: the majority by direction, clipped to the median norm, and noise."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import (
  base,
  calls,
  checks,
  draws,
  nonfinite,
  recipes,
  reductions,
)
from byzjax.aggregators import _clustering, _groups, _norms


@recipes.factory
def flame(
  *, noise: base.Scalar = 1e-3, middle: str = 'mean'
) -> base.Aggregator:
  """The mean of the majority by direction, clipped, with noise on it.

  With `c_ij = 1 - cos(x_i, x_j)`, and 1 to a message of zeros, K is the first
  cluster of more than half of the messages that single linkage makes: workers
  are linked where `c_ij <= t`, and t grows until so many hang together. With S
  the median norm of all messages::

      aggregate = (1 / |K|) sum_{i in K} x_i min(1, S / |x_i|)
                  + N(0, (lambda S)^2) on every coordinate.

  So it is no longer than S, but for the noise. f is not an input. Which of two
  equal angles comes first, rounding decides. Some messages, up to half of them,
  are left out even without any attack. Short messages in the direction of the
  others are kept, and shrink the aggregate.

  This is HDBSCAN as FLAME calls it, without HDBSCAN: with a least size of
  `floor(n / 2) + 1` no cluster ever splits, and the labels of scikit-learn are
  the same.

  The messages are updates: gradients, momentum or changes of the model, as in
  FL-Byzantine-Library. The paper takes the cosines between whole models. Its
  lambda is 0.001 for images; `sqrt(2 ln(1.25 / delta)) / epsilon` for (epsilon,
  delta)-privacy of one round. FLPoison and BackFed scale the noise by the
  standard deviation of each tensor as well, which is not in the paper.

  Args:
    noise: lambda >= 0; may be traced. The number 0 needs no key.
    middle: of two middle norms, 'mean' or 'lower' (as `torch.median`, and
      FL-Byzantine-Library).

  Returns:
    An `Aggregator` without state that needs a `key` for its noise: leaves `[n,
    *shape] -> [*shape]`. `inspect` tells which messages were kept, by which
    factors all were clipped, and as `scores` the t that links each to the
    cluster. Its weights do not include the noise.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if there is
      no key although there is noise.

  References:
    Nguyen, Rieger, et al., 2022, USENIX Security, arXiv:2101.02281.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> x = jnp.array([[1., 0.], [3., 1.], [2., -1.], [-9., 0.]])
    >>> byzjax.flame(noise=0).inspect(x, ())[2].kept
    Array([ True,  True,  True, False], dtype=bool)
  """
  name = 'flame'
  checks.check_range(name, 'noise', noise, 0)
  _norms.check_middle(name, middle)
  silent = isinstance(noise, (int, float)) and noise == 0

  def info_of(gram, norms):
    """The info, and S."""
    mask = gram.mask
    distances = _clustering.cosine_distances(jax.lax.stop_gradient(gram))
    distances = jnp.where(jnp.eye(len(mask), dtype=bool), 0, distances)
    kept, steps = _groups.majority_component(distances, mask)
    limit = _norms.median(norms, mask, middle)
    factors = _norms.clip_factors(norms, mask, limit)
    weights = reductions.shares(kept) * factors
    info = base.AggregationInfo(
      weights, mask, kept=kept, scores=steps, factors=factors
    )
    return info, limit

  def aggregate(rows, state, call):
    squared = reductions.squared_norms(rows, axis_name=call.axis_name)
    mask = nonfinite.usable_norms(squared)
    gram = _clustering.gram_of_directions(rows, squared, mask, call.axis_name)
    norms = reductions.sqrt(jnp.where(mask, squared, 0))
    info, limit = info_of(gram, norms)
    info = info._replace(weights=info.weights.astype(rows.dtype))
    y = reductions.combine(info.weights, rows)
    if not silent:
      key = draws.require_key(name, call.key)
      coordinates = call.extra.get('coordinates')
      drawn = draws.draw(jax.random.normal, key, y, call.axis_name, coordinates)
      y += (noise * limit).astype(y.dtype) * drawn
    return y, state, info

  if not silent:
    return calls.from_rows(name, aggregate, takes_norms=True)

  def weights(gram, state, *, key=None):
    del key
    norms = reductions.sqrt(gram.squared_norms)
    return info_of(gram, norms)[0], state

  rule = base.GramRule(optax.init_empty_state, weights, selects=True)
  return calls.from_rows(name, aggregate, gram_rule=rule, takes_norms=True)
