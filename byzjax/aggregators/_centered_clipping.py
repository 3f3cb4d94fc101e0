"""Centered clipping: a mean of messages clipped around the last aggregate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import (
  base,
  calls,
  checks,
  flat,
  nonfinite,
  parameters,
  recipes,
  reductions,
  rules,
)


class CenteredClippingState(NamedTuple):
  """The state of `centered_clipping`: v, the previous aggregate."""

  center: base.Aggregate


def clip_factors(
  squared_distances: jax.Array, radius: base.Scalar
) -> jax.Array:
  """`min(1, tau / |x_i - v|)`: [n]; 1 at distance zero, 0 where not usable."""
  distances = reductions.sqrt(squared_distances)
  tiny = jnp.finfo(distances.dtype).tiny
  factors = jnp.minimum(1, radius / jnp.maximum(distances, tiny))
  return jnp.where(nonfinite.usable_norms(squared_distances), factors, 0)


def distance_quantile(
  squared_distances: jax.Array,
  usable: jax.Array,
  quantile: base.Scalar,
  worker_weights: jax.Array | None = None,
) -> jax.Array:
  """The smallest distance D with a share q of the workers within D: float[].

  Messages that are not usable count as farther than all others. If the quantile
  falls on one of them, the result is the largest usable distance.
  """
  squared = jnp.where(usable, squared_distances, jnp.inf)
  counts = jnp.ones_like(squared)  # So that equal shares are exact.
  if worker_weights is not None:
    counts = reductions.shares(jnp.ones(len(usable), bool), worker_weights)
  order = jnp.argsort(squared)
  reached = jnp.cumsum(counts[order])
  # A rounding error of q n does not ask for one worker more.
  first = jnp.argmax(reached >= quantile * (1 - 1e-6) * reached[-1])
  largest = jnp.where(usable, squared_distances, 0).max()
  return reductions.sqrt(jnp.minimum(squared[order][first], largest))


@recipes.factory
def centered_clipping(
  *,
  radius: base.Scalar,
  num_iterations: int = 1,
  quantile: base.Scalar | None = None,
) -> base.Aggregator:
  """The mean of messages clipped to a ball around the previous aggregate.

  From `v` = the previous aggregate (zeros at first), L times `v <- v + (1/n)
  sum_i (x_i - v) min(1, tau / |x_i - v|)`. The sum is always divided by n, also
  if messages are clipped or masked, so one message moves the aggregate by at
  most `tau / n` per step. f is not an input. With `worker_weights` p, the
  factor 1/n becomes `p_i / sum_j p_j`.

  `radius=jnp.inf` gives the mean (if no message is masked); 0 leaves v
  unchanged. Too large a radius clips nothing and gives no robustness. The
  official code uses tau = 100 with momentum in PyTorch's form, `M = m / (1 -
  beta)`, which corresponds to the radius `100 (1 - beta)` here.

  A fixed radius has to be tuned for each momentum, model and stage of training.
  With `quantile=q` the radius is computed from the messages in every step: `tau
  = radius * D`, where D is the smallest distance with `#{i : |x_i - v| <= D} >=
  q n`. It shrinks with the noise of the honest messages, for example under
  momentum. With `f < q n <= n - f`, f Byzantine workers cannot control it: D
  lies between the distances of two honest messages.
  `theory.quantile_clipping_error` bounds the distance to the honest mean.

  Args:
    radius: tau >= 0, the clipping radius, a distance in the units of the
      messages; with a quantile, a factor on D (1 clips at the quantile itself).
      May be traced, so a sweep is one vmap.
    num_iterations: L >= 1, a Python int. For L >= 2 the steps run on the Gram
      matrix, so a larger L reads the messages no more often. A traced int32[],
      which `optax.inject_hyperparams` produces, always uses the Gram matrix;
      list it in `static_args` to get the faster single step for L = 1.
    quantile: q in [0, 1], such as 0.5 for the median distance, or None for a
      fixed radius. May be traced. With `worker_weights`, q is a share of their
      sum.

  Returns:
    An `Aggregator` with a `CenteredClippingState`: leaves `[n, *shape] ->
    [*shape]`. Successive calls differ because v moves; call `init` for a new
    run.

  Raises:
    ValueError: if L is not a positive int, the radius is negative or NaN, or
      the quantile is not in [0, 1].

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333. The quantile option is
    specific to this library.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.centered_clipping(radius=1.0)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(0.8, dtype=float32)
    >>> rule = byzjax.centered_clipping(radius=1.0, quantile=0.5)  # tau = 2
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.4, dtype=float32)
  """
  checks.check_iterations('centered_clipping', 'num_iterations', num_iterations)
  checks.check_range('centered_clipping', 'radius', radius, 0)
  if quantile is not None:
    checks.check_range('centered_clipping', 'quantile', quantile, 0, 1)

  def init(params):
    return CenteredClippingState(parameters.zeros_like(params))

  def remember(state, aggregate):
    # In the dtypes of the state, which messages of another dtype do not change.
    return CenteredClippingState(
      flat.row_layout(state.center).unravel(aggregate)
    )

  def shares(weights, n):
    # Of all workers: what a masked one would have weighed stays at the centre.
    return reductions.shares(jnp.ones(n, bool), weights)

  def factors_of(squared, usable, weights):
    if quantile is None:
      return clip_factors(squared, radius)
    unit = distance_quantile(squared, usable, quantile, weights)
    # An infinite radius times a distance of zero is no number.
    length = jnp.where(unit > 0, radius * unit, 0)
    return clip_factors(squared, length)

  def weights(gram, state, *, key=None):
    """Coefficients a of `v_L - v_0 = sum_i a_i (x_i - v_0)`."""
    del key
    norms = jnp.diagonal(gram.inner)
    share = shares(gram.worker_weights, norms.shape[0])

    def step_factors(a):
      projected = reductions.matmul(gram.inner, a)
      squared = norms - 2 * projected + reductions.matmul(a, projected)
      factors = factors_of(squared, gram.mask, gram.worker_weights)
      return jnp.where(gram.mask, factors, 0)

    def clipping_step(_, a):
      steps = step_factors(a) * share
      return (a * (1 - steps.sum()) + steps).astype(a.dtype)

    a = jax.lax.fori_loop(
      0, num_iterations - 1, clipping_step, jnp.zeros_like(norms)
    )
    info = base.AggregationInfo(clipping_step(0, a), factors=step_factors(a))
    return info, state

  rule = base.GramRule(
    init,
    weights,
    center=lambda state: state.center,
    remember=remember,
    weighted=True,
  )

  def one_step(rows, state, call):
    # One step needs n distances and no Gram matrix.
    center = rules.flat_vector('centered_clipping', state.center, rows)
    squared = reductions.squared_norms(
      rows, center=center, axis_name=call.axis_name
    )
    usable = nonfinite.usable_norms(squared)
    factors = factors_of(squared, usable, call.worker_weights)
    share = shares(call.worker_weights, rows.shape[0])
    weights = (factors * share).astype(rows.dtype)
    y = reductions.combine(weights, rows, center)
    info = base.AggregationInfo(weights, usable, factors=factors)
    return y, remember(state, y), info

  if not isinstance(num_iterations, jax.Array) and num_iterations == 1:
    return calls.from_rows(
      'centered_clipping', one_step, init=init, gram_rule=rule, weighted=True
    )
  return rules.from_gram_rule(rule, 'centered_clipping')
