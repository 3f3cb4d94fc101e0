"""Resampling: means of s messages each, with every message used s times."""

import jax
import jax.numpy as jnp

from byzjax._src import base, checks, pre_aggregators, recipes


@recipes.factory
def resampling(*, num_samples: int) -> base.PreAggregator:
  """Replaces the n messages by n means of s messages, each used s times.

  Every message is copied s times; the n s copies are permuted at random and cut
  into n groups of s: `y_i = (1/s) sum_k x_{p(i s + k)}`. Like `bucketing` this
  reduces the heterogeneity of the messages, but it keeps n of them. One
  Byzantine message enters up to s means, so f of them need a rule that
  tolerates f s Byzantine inputs out of n. The permutation is redrawn in every
  call.

  A group may contain the same message twice. Masked (non-finite) messages are
  left out of their groups; a group with no other message is masked too.

  Args:
    num_samples: s >= 1, a Python int. 1 only permutes; the paper uses 2.

  Returns:
    A linear `PreAggregator` without state, `[n, ...] -> [n, ...]`, which needs
    a `key`.

  Raises:
    ValueError: if s is not a positive int; at trace time if no key is given.

  References:
    He, Karimireddy, Jaggi, 2020, arXiv:2006.09365v1 (later versions: see
    `bucketing`).

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> rule = byzjax.pre_aggregate(
    ...   byzjax.resampling(num_samples=2), byzjax.mean())
    >>> rule(jnp.array([0., 1., 2., 9.]), key=jax.random.key(0))
    Array(3., dtype=float32)
  """
  checks.check_count('resampling', 'num_samples', num_samples, 1)

  def matrix_fn(gram, key):
    if key is None:
      raise ValueError('resampling needs a key to draw its groups, got None')
    n = gram.mask.shape[0]
    copies = jnp.repeat(jnp.arange(n), num_samples)
    groups = jax.random.permutation(key, copies).reshape(n, num_samples)
    times = jax.nn.one_hot(groups, n, dtype=gram.inner.dtype).sum(axis=1)
    times = jnp.where(gram.mask[None], times, 0)
    return times / jnp.maximum(times.sum(axis=1, keepdims=True), 1)

  return pre_aggregators.from_matrix('resampling', matrix_fn)
