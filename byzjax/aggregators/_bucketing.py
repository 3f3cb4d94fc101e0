"""Bucketing: the means of random groups of messages."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, pre_aggregators, recipes


@recipes.factory
def bucketing(*, bucket_size: int) -> base.PreAggregator:
  """Replaces the messages by the means of random buckets of s messages.

  A random permutation of the n messages is cut into `ceil(n / s)` consecutive
  buckets, the last of which may be smaller; every bucket is replaced by its
  mean. The permutation is redrawn in every call. One Byzantine message can
  change one bucket only, so f of them need a rule that tolerates f Byzantine
  inputs out of `ceil(n / s)`. Masked (non-finite) messages are left out of
  their bucket; a bucket with no other message is masked too.

  Args:
    bucket_size: s >= 1, a Python int. 1 only permutes; the paper uses 2.

  Returns:
    A linear `PreAggregator` without state, `[n, ...] -> [ceil(n/s), ...]`,
    which needs a `key`.

  Raises:
    ValueError: if s is not a positive int; at trace time if no key is given.

  References:
    Karimireddy, He, Jaggi, 2022, arXiv:2006.09365.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> rule = byzjax.pre_aggregate(
    ...   byzjax.bucketing(bucket_size=2), byzjax.coordinate_median()
    ... )
    >>> rule(jnp.ones([5, 3]), key=jax.random.key(0))
    Array([1., 1., 1.], dtype=float32)
  """
  checks.check_count('bucketing', 'bucket_size', bucket_size, 1)

  def matrix_fn(gram, key):
    if key is None:
      raise ValueError('bucketing needs a key to draw its buckets, got None')
    n = gram.mask.shape[0]
    buckets = jnp.arange(n) // bucket_size
    bucket_of = jax.random.permutation(key, buckets)
    num_buckets = -(-n // bucket_size)
    inside = bucket_of[None] == jnp.arange(num_buckets)[:, None]
    inside &= gram.mask[None]
    counts = jnp.maximum(inside.sum(axis=1, keepdims=True), 1)
    return (inside / counts).astype(gram.inner.dtype)

  return pre_aggregators.from_matrix('bucketing', matrix_fn)
