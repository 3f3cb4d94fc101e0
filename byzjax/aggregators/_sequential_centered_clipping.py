"""Sequential centered clipping: buckets in turn around a moving centre."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import (
  base,
  calls,
  checks,
  draws,
  flat,
  grams,
  parameters,
  recipes,
  reductions,
  rules,
)
from byzjax.aggregators import _centered_clipping

_NAME = 'sequential_centered_clipping'
State = _centered_clipping.CenteredClippingState


def draw_buckets(
  key: jax.Array, n: int, bucket_size: int
) -> tuple[jax.Array, jax.Array]:
  """Two random divisions of n into buckets: int[n], int[n].

  The first, of floor(n / L) buckets, is by worker. The second, of ceil(n / L),
  is by rank: each of L stretches of neighbouring ranks gives every bucket at
  most one.
  """

  def starts(count):
    parts = np.array_split(np.arange(n), count)
    return np.repeat(range(count), [len(p) for p in parts]), parts

  first, _ = starts(n // bucket_size)
  stretch, parts = starts(bucket_size)
  within = np.concatenate([np.arange(len(part)) for part in parts])
  order = jnp.lexsort((jax.random.uniform(key, (n,)), jnp.asarray(stretch)))
  by_rank = jnp.zeros(n, int).at[order].set(within)
  return jax.random.permutation(key, jnp.asarray(first)), by_rank


def clip_in_turn(
  gram: base.Gram,
  bucket_of: jax.Array,
  num_buckets: int,
  radius: base.Scalar,
  clip_means: bool,
) -> tuple[jax.Array, jax.Array]:
  """Coefficients a of `v - c = sum_i a_i (x_i - c)`, and the clip factors.

  The Gram matrix is around c, where v begins.
  """
  inner, norms = gram.inner, jnp.diagonal(gram.inner)

  def one_bucket(b, carry):
    a, factors = carry
    inside = bucket_of == b
    share = jnp.where(inside & gram.mask, 1, 0).astype(a.dtype)
    share /= jnp.maximum(inside.sum(), 1)
    if clip_means:
      toward = share - share.sum() * a
      squared = reductions.matmul(toward, reductions.matmul(inner, toward))
      clipped = _centered_clipping.clip_factors(squared, radius)
      toward *= clipped
    else:
      projected = reductions.matmul(inner, a)
      squared = norms - 2 * projected + reductions.matmul(a, projected)
      clipped = _centered_clipping.clip_factors(squared, radius)
      clipped = jnp.where(gram.mask, clipped, 0)
      steps = share * clipped
      toward = steps - steps.sum() * a
    factors = jnp.where(inside & gram.mask, clipped, factors)
    return (a + toward).astype(a.dtype), factors.astype(a.dtype)

  start = jnp.zeros_like(norms), jnp.zeros_like(norms)
  return jax.lax.fori_loop(0, num_buckets, one_bucket, start)


@recipes.factory
def sequential_centered_clipping(
  *, radius: base.Scalar, bucket_size: int = 3, clip_means: bool = False
) -> base.Aggregator:
  """Centered clipping in small random buckets, one after the other (SCC).

  From v = the previous aggregate (zeros at first), for one bucket B after
  another:

  `v <- v + (1 / |B|) sum_{i in B} (x_i - v) min(1, tau / |x_i - v|)`

  In the first call the buckets are a random division into `floor(n / L)`. Later
  the messages are sorted by their cosine to v and cut into L groups of
  neighbours, and each of `ceil(n / L)` buckets draws at most one message from
  each group: every bucket spans the whole range of directions.

  One call moves v by at most tau times the number of buckets. If the radius
  clips no message, v ends at the mean of the *last* bucket, not of all
  messages. All steps run on the Gram matrix. A masked message counts in the
  size of its bucket but does not move v. f is not an input.

  FL-Byzantine-Library calls this `Clipping_seq`, with L = 3 and tau = 1, and
  `clip_means` is its `buck_avg`. Its `mult_ref`, which also clips around the
  old v, and its variants with two passes (ECC) are not implemented. After a
  call whose aggregate is zero the buckets are drawn as in the first call.

  Args:
    radius: tau >= 0, in the units of the messages; may be traced.
    bucket_size: L >= 1, a Python int. 1 takes one message after the other.
    clip_means: a bool, whether the mean of a bucket is clipped, `v <- v +
      clip(mean_B - v)`, instead of each of its messages.

  Returns:
    An `Aggregator` with a `CenteredClippingState`, which needs a `key`: leaves
    `[n, *shape] -> [*shape]`. `inspect` reports the weight of every message in
    the step from the old v, and its clipping factor. `worker_weights` are not
    supported.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if there is
      no key, or if `n < L`.

  References:
    Ozfatura, Ozfatura, Kupcu, Gunduz, 2022, arXiv:2208.09894.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> rule = byzjax.sequential_centered_clipping(radius=1.0, bucket_size=2)
    >>> x = jnp.array([0.1, 0.2, 0.3, 90.])
    >>> bool(rule(x, key=jax.random.key(0)) < 2)  # two buckets
    True
  """
  checks.check_range(_NAME, 'radius', radius, 0)
  checks.check_count(_NAME, 'bucket_size', bucket_size, 1)
  checks.check_flag(_NAME, 'clip_means', clip_means)

  def init(params):
    return State(parameters.zeros_like(params))

  def aggregate(rows, state, call):
    n, axes = rows.shape[0], call.axis_name
    if n < bucket_size:
      raise ValueError(
        f'{_NAME} needs num_workers >= bucket_size, got {n} and {bucket_size}'
      )
    key = draws.require_key(_NAME, call.key)
    center = rules.flat_vector(_NAME, state.center, rows)
    gram, center = grams.gram_of(rows, center, axis_name=axes)
    first, by_rank = draw_buckets(key, n, bucket_size)
    # The length of v, which all cosines are divided by, does not matter.
    norms = reductions.sqrt(gram.squared_norms)
    along = reductions.products(rows, center, axis_name=axes)
    along = jnp.where(norms > 0, along / jnp.where(norms > 0, norms, 1), 0)
    ranked = jnp.zeros(n, int).at[jnp.argsort(along, stable=True)].set(by_rank)
    own = reductions.squared_norms(center[None], axis_name=axes)[0]
    weights, factors = clip_in_turn(
      gram,
      jnp.where(own > 0, ranked, first),
      -(-n // bucket_size),
      radius,
      bool(clip_means),
    )
    weights = weights.astype(rows.dtype)
    y = reductions.combine(weights, rows, center)
    state = State(flat.row_layout(state.center).unravel(y))
    return y, state, base.AggregationInfo(weights, gram.mask, factors=factors)

  return calls.from_rows(_NAME, aggregate, init=init, takes_norms=True)
