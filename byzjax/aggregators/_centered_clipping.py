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
  """What `centered_clipping` carries: v, the previous aggregate."""

  center: base.Aggregate


def clip_factors(
  squared_distances: jax.Array, radius: base.Scalar
) -> jax.Array:
  """`min(1, tau / |x_i - v|)`: [n]; 1 at distance zero, 0 where not usable."""
  distances = reductions.sqrt(squared_distances)
  tiny = jnp.finfo(distances.dtype).tiny
  factors = jnp.minimum(1, radius / jnp.maximum(distances, tiny))
  return jnp.where(nonfinite.usable_norms(squared_distances), factors, 0)


@recipes.factory
def centered_clipping(
  *, radius: base.Scalar, num_iterations: int = 1
) -> base.Aggregator:
  """The mean of messages clipped to a ball around the previous aggregate.

  From `v` = the previous aggregate (zeros at first), L times
  `v <- v + (1/n) sum_i (x_i - v) min(1, tau / |x_i - v|)`. The division is by n
  also where messages are clipped or masked, so one message moves the aggregate
  by at most `tau / n` per step. f is not an input. With `worker_weights` p,
  `p_i / sum_j p_j` stands for 1/n.

  `radius=jnp.inf` gives the mean (if no message is masked), 0 leaves v where it
  is. The official code uses tau = 100 with momentum in PyTorch's form, `M = m /
  (1 - beta)`, which is the radius `100 (1 - beta)` here; too large a radius is
  a plain mean.

  Args:
    radius: tau >= 0, a distance in the units of the messages; may be traced, so
      that a sweep is one vmap.
    num_iterations: L >= 1, a Python int. From 2 on the steps run on the Gram
      matrix and read the messages no more often. A traced int32[], which is
      what `optax.inject_hyperparams` makes of it, always takes that way: name
      it among the `static_args` for the faster single step.

  Returns:
    An `Aggregator` with a `CenteredClippingState`: leaves `[n, *shape] ->
    [*shape]`. Two calls differ, as v moves; start from `init` for a new run.

  Raises:
    ValueError: if L is not a positive int or the radius is negative or NaN.

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.centered_clipping(radius=1.0)
    >>> rule(jnp.array([0., 1., 2., 3., 100.]))
    Array(0.8, dtype=float32)
  """
  checks.check_iterations('centered_clipping', 'num_iterations', num_iterations)
  checks.check_range('centered_clipping', 'radius', radius, 0)

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

  def weights(gram, state, *, key=None):
    """Coefficients a of `v_L - v_0 = sum_i a_i (x_i - v_0)`."""
    del key
    norms = jnp.diagonal(gram.inner)
    share = shares(gram.worker_weights, norms.shape[0])

    def step_factors(a):
      projected = reductions.matmul(gram.inner, a)
      squared = norms - 2 * projected + reductions.matmul(a, projected)
      return jnp.where(gram.mask, clip_factors(squared, radius), 0)

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
    center = rules.flat_vector(state.center, rows.dtype)
    squared = reductions.squared_norms(
      rows, center=center, axis_name=call.axis_name
    )
    factors = clip_factors(squared, radius)
    share = shares(call.worker_weights, rows.shape[0])
    weights = (factors * share).astype(rows.dtype)
    y = reductions.combine(weights, rows, center)
    info = base.AggregationInfo(
      weights, nonfinite.usable_norms(squared), factors=factors
    )
    return y, remember(state, y), info

  if not isinstance(num_iterations, jax.Array) and num_iterations == 1:
    return calls.from_rows(
      'centered_clipping', one_step, init=init, gram_rule=rule, weighted=True
    )
  return rules.from_gram_rule(rule, 'centered_clipping')
