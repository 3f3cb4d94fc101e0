"""Worker weights that no single worker can dominate."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, nonfinite


def cap_weights(weights: jax.Array, *, max_share: base.Scalar) -> jax.Array:
  """Normalised weights, none of them above a cap.

  `p_i = min(s w_i, c)` with the s for which `sum_i p_i = 1`: the weight cut
  from heavy workers goes to the others in proportion to their weights. Sample
  counts are reported by the workers and may be false; with a cap, f Byzantine
  workers have at most the total weight `f c`, which must be below one half for
  any robust rule.

  If fewer than 1/c workers have a positive weight, these get equal shares. If
  no worker has one, all shares are zero, which no rule accepts as weights
  (traced zeros are not checked). What is below the smallest normal number of
  the dtype, 1.2e-38 in float32, counts as zero.

  Args:
    weights: w float[n], finite and non-negative, such as sample counts or trust
      scores. Traced weights are not checked: a negative weight, NaN or inf
      counts as zero.
    max_share: c with `1/n <= c <= 1`; may be traced.

  Returns:
    p float[n], which sums to one unless all weights are zero: the
    `worker_weights` of a rule.

  Raises:
    ValueError: if the weights are not float[n], finite and >= 0, or c is out of
      its range.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.cap_weights(jnp.array([1., 1., 2., 96.]), max_share=0.4)
    Array([0.15, 0.15, 0.3 , 0.4 ], dtype=float32)
  """
  n = checks.num_workers('cap_weights: weights', weights)
  checks.check_worker_weights('cap_weights', weights, n, may_be_zero=True)
  # Rounding: 1/n of float32 may be below that of float64.
  checks.check_range('cap_weights', 'max_share', max_share, (1 - 1e-6) / n, 1)
  weights = jnp.asarray(weights, jnp.result_type(weights, jnp.float32))
  # Their sum is finite. In units of the largest the small ones could
  # underflow, and the largest would have everything, whatever the cap.
  weights = nonfinite.usable_weights(weights)
  order = jnp.argsort(-weights, stable=True)
  ordered = weights[order]
  # With the k heaviest at the cap, the rest shares what is left.
  rest = jnp.cumsum(ordered[::-1])[::-1]
  left = 1 - jnp.arange(n) * max_share
  scale = left / jnp.where(rest > 0, rest, 1)
  fits = (scale * ordered <= max_share) | (rest <= 0)
  first = jnp.argmax(fits)
  shares = jnp.where(jnp.arange(n) < first, max_share, scale[first] * ordered)
  shares = jnp.maximum(shares, 0)
  shares /= jnp.where(shares.sum() > 0, shares.sum(), 1)
  return jnp.zeros_like(shares).at[order].set(shares)
