"""Static and adaptive clipping of messages, in front of a rule."""

import jax.numpy as jnp

from byzjax._src import base, checks, pre_aggregators, recipes, reductions


@recipes.factory
def clip_messages(*, max_norm: base.Scalar) -> base.PreAggregator:
  """Scales every message down to a norm of at most c.

  `y_i = x_i min(1, c / |x_i|)`.

  The clipping is around zero, so it does not commute with a translation of the
  messages; it commutes with scaling only if c is scaled too. For clipping
  around the previous aggregate see `centered_clipping`.

  Args:
    max_norm: c >= 0, in the units of the messages; may be traced. ByzFL's
      default is 2.

  Returns:
    A `PreAggregator` without state, `[n, ...] -> [n, ...]`; `inspect` of the
    rule that follows reports the clipping factors.

  Raises:
    ValueError: if max_norm is negative or NaN.

  References:
    Karimireddy, He, Jaggi, 2021, arXiv:2012.10333, for clipping as a defence.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.pre_aggregate(
    ...   byzjax.clip_messages(max_norm=5.0), byzjax.mean())
    >>> rule(jnp.array([[3., 4.], [30., 40.]]))
    Array([3., 4.], dtype=float32)
  """
  checks.check_range('clip_messages', 'max_norm', max_norm, 0)

  def factors_fn(squared_norms, mask):
    del mask
    return _factors(squared_norms, max_norm)

  return pre_aggregators.from_factors('clip_messages', factors_fn)


@recipes.factory
def adaptive_clipping(*, num_byzantine: int) -> base.PreAggregator:
  """Clips the k largest messages to the (k+1)-th largest norm (ARC).

  Adaptive robust clipping: with `k = floor(2 f (n - f) / n)`, the k messages of
  largest norm are scaled down to the (k+1)-th largest norm. The threshold is
  computed from the messages, so no bound on their norm has to be known, and the
  (f, kappa)-robustness of the rule that follows is preserved.

  Messages with NaN or inf count among the largest, and stay masked.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`. 0 clips nothing.

  Returns:
    A `PreAggregator` without state, `[n, ...] -> [n, ...]`.

  Raises:
    ValueError: if f is not a non-negative int; at trace time if `n <= 2f`.

  References:
    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, 2025, arXiv:2405.14432.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> clip = byzjax.adaptive_clipping(num_byzantine=1)
    >>> clip.apply(jnp.array([0., 1., 2., 3., 100.])[:, None], ())[0].ravel()
    Array([0., 1., 2., 3., 3.], dtype=float32)
  """
  checks.check_count('adaptive_clipping', 'num_byzantine', num_byzantine)

  def factors_fn(squared_norms, mask):
    n = mask.shape[0]
    checks.check_majority('adaptive_clipping', n, num_byzantine)
    num_clipped = 2 * num_byzantine * (n - num_byzantine) // n
    ordered = jnp.sort(jnp.where(mask, squared_norms, jnp.inf))
    threshold = ordered[n - 1 - num_clipped]
    return _factors(squared_norms, reductions.sqrt(threshold))

  return pre_aggregators.from_factors('adaptive_clipping', factors_fn)


def _factors(squared_norms, max_norm):
  norms = reductions.sqrt(squared_norms)
  return jnp.where(norms <= max_norm, 1, max_norm / jnp.maximum(norms, 1e-37))
