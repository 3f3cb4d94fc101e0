"""Poisson sampling: each example is in a batch with a fixed probability."""

import math

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax.data import _examples
from byzjax.data._partition import Partition

_NAME = 'poisson_batch'
_TAIL = 1e-18  # Of a batch that does not fit, in one round.


def poisson_batch(
  images: jax.Array,
  labels: jax.Array,
  partition: Partition,
  key: jax.Array,
  batch_size: int,
  *,
  max_size: int | None = None,
  scale: float = 1.0,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
  r"""One Poisson-sampled batch per worker, for differential privacy.

  .. math::
    P(j \in \text{batch}_i) = \min\big(1, B / |S_i|\big)
    \quad \text{independently for all } j \in S_i

  `theory.privacy_epsilon` assumes this sampling. The number of examples differs
  from batch to batch, with mean B, while shapes are static: a batch has
  `max_size` rows, and `present` marks those that hold an example. Worker i
  draws with `fold_in(key, i)`.

  Args:
    images: all examples, uint8 `[N, H, W, C]`.
    labels: int32 `[N]`.
    partition: the examples of each worker.
    key: a key of `jax.random.key`; do not use it again.
    batch_size: B >= 1, a Python int: mean number of examples per worker.
    max_size: m, rows of a batch, a Python int of at least B; further draws are
      dropped. None for the smallest number that is exceeded with probability at
      most 1e-18, or the number of a worker's examples if that is smaller.
    scale: largest pixel value s, a positive Python number.

  Returns:
    `((images, labels), present)`: float32 `[n, m, H, W, C]`, int32 `[n, m]` and
    bool `[n, m]`, the batch of `differentially_private_gradient(batch_size=B)`.

  Raises:
    ValueError: if a count is out of its range, the scale is not positive, or
      images and labels have different lengths.

  References:
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, 2016,
    arXiv:1607.00133.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from byzjax import data
    >>> images, labels = np.zeros([60, 2, 2, 1], np.uint8), np.arange(60)
    >>> (x, y), present = data.poisson_batch(
    ...   images, labels, data.random_shards(labels, 3), jax.random.key(0), 4)
    >>> x.shape, y.shape, present.shape
    ((3, 20, 2, 2, 1), (3, 20), (3, 20))
  """
  _examples.check(_NAME, images, labels)
  _examples.check_batch(_NAME, batch_size, scale)
  checks.check_pair(_NAME, 'partition', partition)
  checks.check_key(_NAME, 'key', key)
  if max_size is not None:
    checks.check_count(_NAME, 'max_size', max_size, batch_size)
  indices, sizes = map(jnp.asarray, partition)
  width = indices.shape[1]
  rows = min(width, _most(batch_size) if max_size is None else max_size)

  def of_worker(worker, indices, size):
    drawn = jax.random.uniform(jax.random.fold_in(key, worker), (width,))
    place = jnp.arange(width)
    chosen = (drawn * size < batch_size) & (place < size)
    (first,) = jnp.nonzero(chosen, size=rows, fill_value=0)
    return indices[first], jnp.arange(rows) < jnp.sum(chosen)

  chosen, present = jax.vmap(of_worker)(
    jnp.arange(sizes.shape[0]), indices, sizes
  )
  examples = _examples.take(
    jnp.asarray(images), jnp.asarray(labels), chosen, scale
  )
  return examples, present


def _most(mean: int) -> int:
  """What a sum of coins of this mean exceeds with probability 1e-18 at most.

  By Chernoff: `P(X >= c) <= exp(c - mean) (mean / c)^c` for c > mean.
  """
  c = mean + 1
  while c - mean + c * math.log(mean / c) > math.log(_TAIL):
    c += 1
  return c
