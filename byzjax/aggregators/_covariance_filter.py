"""The covariance filter: repeatedly downweights outliers of one direction."""

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
  """The weights c, in [0, 1], of the round with the smallest covariance.

  Args:
    inner: float[n, n], the Gram matrix around any point.
    mask: bool[n], the messages that start with weight 1.
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
  """The mean after filtering along directions of largest covariance (CAF).

  Start with weights `c_i = 1`. While `sum_i c_i > n - 2f`: let mu and Sigma be
  the c-weighted mean and covariance and (lambda, v) the top eigenpair of Sigma;
  set `t_i = ((x_i - mu) . v)^2` and `c_i <- c_i (1 - t_i / max_j t_j)`, where
  the maximum is over messages of weight above zero. The aggregate is the mu of
  the round with the smallest lambda (the first one, if there are several),
  taken before the weights of that round are changed. f = 0 gives the mean.

  Every round sets the weight of at least one message to zero, so there are at
  most 2f rounds. It stops at once if all t_i are zero.

  Implementations differ in the eigenvector: ByzFL takes one power step from a
  random start and ByzPy three from a fixed one; here it is converged. Both take
  the maximum over all messages, including those of weight zero, and do not
  terminate if an outlier is large.

  With L the top eigenvalue of the covariance of the honest messages, the
  aggregate is within `sqrt(R L) (1 + (1 + sqrt(2)) sqrt(K))` of their mean, for
  `R = f / (n - 2f)` and `K = 2 (n - f) / (n - 2f)`: this needs no known bound
  on L and does not depend on the dimension. In derivatives the weights count as
  constants.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n/2`.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports the weights, `1 - c_i` as scores, and as kept the messages with `c_i
    > 0`.

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
