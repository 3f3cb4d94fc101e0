"""FABA: repeatedly removes the message farthest from the mean."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, recipes, reductions, rules


@recipes.factory
def faba(*, num_byzantine: int) -> base.Aggregator:
  """Removes the message farthest from the mean, f times; then averages (FABA).

  Start with `K = {1, ..., n}`. Repeat f times: `m = mean of x_i, i in K`, and
  remove from K the i of largest `|x_i - m|`. Then `aggregate = mean of x_i, i
  in K`. Ties go to the lowest index. Exactly f messages are removed, also
  if no worker is Byzantine. All steps run on the Gram matrix: the messages are
  read twice for any f.

  With `f <= n / 3` the aggregate is within `(3 + q) / (1 - q)` honest radii of
  the honest mean, where `q = f / (n - 2f + 1)` and the radius is the largest
  distance of an honest message to that mean. With more, f colluding messages
  can move the mean so far that honest messages are removed first.

  Masked (non-finite) messages are removed first, and count among the f. With
  fewer than n - f usable messages, the mean is over those that remain.

  The code of the study of label poisoning (LPA) does the same; its
  `byzantine_size` is f.

  Args:
    num_byzantine: f, a Python int with `0 <= f < n`: how many messages are
      removed. 0 gives the mean.

  Returns:
    An `Aggregator` without state: leaves `[n, *shape] -> [*shape]`. `inspect`
    reports which messages were kept, and their squared distances to the
    aggregate as scores. `worker_weights` are not supported.

  Raises:
    ValueError: if f is not a non-negative int; at trace time if `n <= f`.

  References:
    Xia, Tao, Hao, Li, 2019, IJCAI, doi:10.24963/ijcai.2019/670.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> byzjax.faba(num_byzantine=1)(jnp.array([0., 1., 2., 3., 100.]))
    Array(1.5, dtype=float32)
  """
  checks.check_count('faba', 'num_byzantine', num_byzantine)

  def weights_fn(gram):
    n = gram.mask.shape[0]
    if n <= num_byzantine:
      raise ValueError(
        f'faba needs num_workers > num_byzantine, got {n} and {num_byzantine}'
      )
    inner = jax.lax.stop_gradient(gram.inner)

    def distances(kept):
      """`|x_i - m|^2` to the mean of what is kept."""
      shares = reductions.shares(kept).astype(inner.dtype)
      projected = reductions.matmul(inner, shares)
      squared = jnp.diagonal(inner) - 2 * projected
      return jnp.maximum(squared + reductions.matmul(shares, projected), 0)

    def leave_out(_, kept):
      farthest = jnp.argmax(jnp.where(kept, distances(kept), -1))
      too_many = kept.sum() > n - num_byzantine
      return jnp.where(too_many, kept.at[farthest].set(False), kept)

    kept = jax.lax.fori_loop(0, num_byzantine, leave_out, gram.mask)
    scores = jnp.where(gram.mask, distances(kept), jnp.inf)
    return base.AggregationInfo(reductions.shares(kept), scores=scores)

  return rules.from_gram_rule(
    rules.gram_rule_of(weights_fn, selects=True), 'faba'
  )
