"""The covariance filter: less weight for what sticks out, round by round."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions, rules, spectral


def recentered(inner: jax.Array, shares: jax.Array) -> jax.Array:
  """`(x_i - mu) . (x_j - mu)`, mu the mean by shares: float[n, n]."""
  row = reductions.matmul(inner, shares)
  mean = reductions.matmul(shares, row)
  return inner - row[:, None] - row[None] + mean


def filter_weights(
  inner: jax.Array, mask: jax.Array, num_byzantine: int
) -> jax.Array:
  """The weights c, in [0, 1], of the round of least covariance.

  Args:
    inner: float[n, n], the Gram matrix around any point.
    mask: bool[n], what has weight 1 at the start.
    num_byzantine: f, a Python int.

  Returns:
    float[n].
  """
  n = mask.shape[0]
  # A round starts with more than n - 2f rows alive, and ends the most extreme
  # one of them: there are at most 2f.
  max_rounds = 2 * num_byzantine

  def is_heavy(carry):
    step, c, _, _ = carry
    return (step < max_rounds) & (c.sum() > n - 2 * num_byzantine)

  def filter_round(carry):
    step, c, best, least = carry
    shares = c / c.sum()
    roots = reductions.sqrt(shares)
    centered = recentered(inner, shares)
    value, vector = spectral.top_eigenpair(
      roots[:, None] * centered * roots[None]
    )
    best = jnp.where(value < least, c, best)
    # Up to a factor, the coordinates along the top eigenvector.
    along = jnp.abs(reductions.matmul(centered, roots * vector))
    # Of rows without weight none must set the scale: the others would keep
    # theirs for ever.
    largest = jnp.max(jnp.where(c > 0, along, 0))
    ratios = along / jnp.where(largest > 0, largest, 1)
    # Not by 1 - ratio^2 alone: a quotient of equals may be less than 1, and a
    # trace of weight would set the scale in every round to come. Where nothing
    # varies there is nothing to filter any more, and all weights go.
    c = jnp.where(along < largest, c * (1 - ratios**2), 0)
    return step + 1, c, best, jnp.minimum(value, least)

  start = mask.astype(inner.dtype)
  least = jnp.full([], jnp.inf, inner.dtype)
  return jax.lax.while_loop(is_heavy, filter_round, (0, start, start, least))[2]


@recipes.factory
def covariance_filter(*, num_byzantine: int) -> base.Aggregator:
  """The mean after filtering along the directions of largest variance (CAF).

  From weights `c_i = 1`, while `sum_i c_i > n - 2f`: with mu and Sigma the
  c-weighted mean and covariance and (lambda, v) the top eigenpair of Sigma,
  `t_i = ((x_i - mu) . v)^2` and `c_i <- c_i (1 - t_i / max_j t_j)`, the maximum
  over the messages of weight above zero. The aggregate is the mu of the round
  with the smallest lambda, as it was before that round's filtering; the first
  of them, if there are several. f = 0 gives the mean.

  Every round takes all weight from one message at least, so that there are at
  most 2f. Where all t are zero it stops at once.

  Libraries differ in the eigenvector: ByzFL takes one power step from a random
  start and ByzPy three from a fixed one; here it has converged. Both take the
  maximum over all messages, also those without weight, and do not end when an
  outlier is large.

  With L the top eigenvalue of the covariance of the honest messages, the
  aggregate is within `sqrt(R L) (1 + (1 + sqrt(2)) sqrt(K))` of their mean, for
  `R = f / (n - 2f)` and `K = 2 (n - f) / (n - 2f)`: no bound on L has to be
  known, and the dimension does not enter. Derivatives take the weights for
  constants.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    has the weights, `scores` of `1 - c_i`, and as kept what has any weight.

  Raises:
    ValueError: if f is not a non-negative int; at trace time if `n <= 2f`.

  References:
    Allouah, Guerraoui, Stephan, 2025, arXiv:2505.01874.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> rule = byzjax.covariance_filter(num_byzantine=1)
    >>> rule(jnp.array([0., 2., 3., 4., 1000.])).round(2)
    Array(2.25, dtype=float32)
  """
  checks.check_count('covariance_filter', 'num_byzantine', num_byzantine)

  def weights_fn(gram):
    n = gram.mask.shape[0]
    checks.check_majority('covariance_filter', n, num_byzantine)
    inner = jax.lax.stop_gradient(gram.inner)
    c = filter_weights(inner, gram.mask, num_byzantine)
    return base.AggregationInfo(
      reductions.shares(gram.mask, c),
      kept=gram.mask & (c > 0),
      scores=jnp.where(gram.mask, 1 - c, jnp.inf),
    )

  return rules.from_weights(weights_fn, name='covariance_filter')
