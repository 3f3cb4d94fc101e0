"""Pseudo-data: averaged examples that all workers may share."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import checks


def random_sample_means(
  images: jax.Array | np.ndarray,
  partition: tuple[jax.Array | np.ndarray, jax.Array | np.ndarray],
  key: jax.Array,
  *,
  num_pseudo: int = 32,
  num_averaged: int = 10,
  scale: float = 1.0,
) -> jax.Array:
  """Pseudo-inputs: means of random examples of one random worker each.

  `x_p = (1 / m) sum_j x_j / s`: for each p a worker is drawn uniformly and then
  m of its examples, with replacement. Draw them once, before the first round,
  and give the same array to all workers: `fedbr(pseudo_inputs=...)`. A
  pseudo-input has the mean of the worker's examples and 1 / m of their
  variance.

  For the variant with mixtures (`fedbr(num_mixed=...)`) draw from a public data
  set, held by one worker: `data.iid(labels, 1)`.

  The training of all workers depends on this array, and no aggregation rule
  protects it: leave untrusted workers out of the partition.

  Args:
    images: all examples, uint8 or float `[N, H, W, C]`.
    partition: `(indices int[n, m'], sizes int[n])`, the examples of each
      worker; a `data.Partition`.
    key: a key of `jax.random.key`; do not use it again.
    num_pseudo: number of pseudo-inputs, a Python int >= 1: the batch size.
    num_averaged: m >= 1, examples per pseudo-input, a Python int.
    scale: largest pixel value s, a positive Python number.

  Returns:
    float32 `[num_pseudo, H, W, C]`.

  Raises:
    ValueError: if an argument is out of its range, or a worker has no examples.

  References:
    Guo, Tang, Lin, 2023, arXiv:2205.13462.

  Example:
    >>> import byzjax, jax, numpy as np
    >>> images = np.arange(12).reshape(12, 1, 1, 1)
    >>> by_worker = np.arange(12).reshape(2, 6), np.array([6, 6])
    >>> byzjax.objectives.random_sample_means(
    ...   images, by_worker, jax.random.key(0), num_pseudo=4).shape
    (4, 1, 1, 1)
  """
  checks.check_count('random_sample_means', 'num_pseudo', num_pseudo, 1)
  checks.check_count('random_sample_means', 'num_averaged', num_averaged, 1)
  checks.check_range('random_sample_means', 'scale', scale, 0, exclusive=True)
  checks.check_key('random_sample_means', 'key', key)
  checks.check_pair('random_sample_means', 'partition', partition)
  name = 'random_sample_means'
  checks.check_whole(name, 'the sizes of partition', partition[1], 1)
  indices, sizes = map(jnp.asarray, partition)
  worker_key, example_key = jax.random.split(key)
  workers = jax.random.randint(worker_key, (num_pseudo,), 0, sizes.shape[0])
  places = jax.random.randint(
    example_key, (num_pseudo, num_averaged), 0, sizes[workers][:, None]
  )
  chosen = indices[workers[:, None], places]
  drawn = jnp.asarray(images)[chosen].astype(jnp.float32)
  return drawn.mean(axis=1) / scale
