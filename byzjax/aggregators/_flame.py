"""FLAME: the majority cluster by direction, clipped to the median norm."""

import jax
import jax.numpy as jnp

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
  """The mean of the majority cluster by cosine, clipped, plus noise (FLAME).

  Let `c_ij = 1 - cos(x_i, x_j)`, or 1 if one of the two is zero. Workers are
  linked where `c_ij <= t`; K is the first connected group (single linkage) with
  more than half of the messages as t grows. With S the median norm of all
  messages::

      aggregate = (1 / |K|) sum_{i in K} x_i min(1, S / |x_i|)
                  + N(0, (lambda S)^2) on every coordinate.

  So without the noise the norm of the aggregate is at most S. f is not an
  input. Between two equal angles, rounding decides. Even without an attack, up
  to half of the messages are left out. Short messages in the direction of the
  others are kept, and shrink the aggregate.

  FLAME defines K by HDBSCAN with a minimum cluster size of `floor(n / 2) + 1`.
  A cluster of that size never splits, so single linkage gives the same labels
  as scikit-learn's HDBSCAN.

  The messages are updates: gradients, momenta or changes of the model, as in
  FL-Byzantine-Library. The paper takes the cosines between whole models. Its
  lambda is 0.001 for images; (epsilon, delta)-privacy of one round needs
  `sqrt(2 ln(1.25 / delta)) / epsilon`. FLPoison and BackFed also scale the
  noise by the standard deviation of each tensor, which is not in the paper.

  Args:
    noise: lambda >= 0; may be traced. The Python number 0 needs no key.
    middle: 'mean' or 'lower': the median of an even number of norms ('lower' is
      `torch.median`, and FL-Byzantine-Library).

  Returns:
    An `Aggregator` without state that needs a `key` for its noise: leaves `[n,
    *shape] -> [*shape]`. `inspect` reports which messages were kept, the
    clipping factor of each, and as `scores` the t that links each message to
    the cluster. Its weights do not include the noise.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if lambda is
      not 0 and no key is given.

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

  # No function of the Gram matrix: angles would lose too many digits.
  return calls.from_rows(name, aggregate, takes_norms=True)
