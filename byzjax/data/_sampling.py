"""Batches for all workers, sampled on the device."""

import jax
import jax.numpy as jnp

from byzjax._src import checks
from byzjax.data import _examples, _passes
from byzjax.data._partition import Partition


def sample_batch(
  images: jax.Array,
  labels: jax.Array,
  partition: Partition,
  key: jax.Array,
  batch_size: int,
  *,
  scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  r"""One batch per worker, uniform with replacement from its examples.

  .. math::
    j_{i, b} \sim \mathrm{Uniform}(S_i), \qquad
    \mathrm{images}_{i, b} = x_{j_{i, b}} / s, \qquad
    \mathrm{labels}_{i, b} = y_{j_{i, b}}

  The function is pure, so it works in jit, scan and vmap over keys. Worker i
  draws with `fold_in(key, i)`: its batch depends neither on the number of
  workers nor on the number of devices.

  Args:
    images: all examples, uint8 `[N, H, W, C]`, on every device.
    labels: int32 `[N]`.
    partition: the examples of each worker; its arrays may be sharded over the
      worker axis.
    key: a key of `jax.random.key`; do not use it again.
    batch_size: B >= 1, examples per worker.
    scale: largest pixel value s, a positive Python number.

  Returns:
    `(images, labels)`: float32 `[n, B, H, W, C]` and int32 `[n, B]`.

  Raises:
    ValueError: if the batch size is below 1, the scale is not positive, or
      images and labels have different lengths.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from byzjax import data
    >>> images = np.full([12, 2, 2, 1], 255, np.uint8)
    >>> labels = np.arange(12) // 4
    >>> partition = data.label_sorted(labels, 3)
    >>> x, y = data.sample_batch(
    ...   images, labels, partition, jax.random.key(0), 5, scale=255.0)
    >>> x.shape, float(x.max())
    ((3, 5, 2, 2, 1), 1.0)
    >>> print(y)
    [[0 0 0 0 0]
     [1 1 1 1 1]
     [2 2 2 2 2]]
  """
  _examples.check('sample_batch', images, labels)
  _examples.check_batch('sample_batch', batch_size, scale)
  checks.check_pair('sample_batch', 'partition', partition)
  checks.check_key('sample_batch', 'key', key)

  def of_worker(worker, indices, size):
    worker_key = jax.random.fold_in(key, worker)
    return indices[jax.random.randint(worker_key, (batch_size,), 0, size)]

  return _of_workers(images, labels, partition, of_worker, scale)


def shuffled_batch(
  images: jax.Array,
  labels: jax.Array,
  partition: Partition,
  key: jax.Array,
  batch_size: int,
  *,
  step: int | jax.Array,
  batches_per_pass: int | None = None,
  scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  r"""One batch per worker, from passes without replacement.

  .. math::
    e = \lfloor t / K_i \rfloor, \qquad
    j_{i, b} = \pi_{i, e}\big((t \bmod K_i) B + b\big), \qquad
    K_i = \lceil |S_i| / B \rceil

  `pi_{i,e}` is the permutation of the examples of worker i in its pass e. A
  pass continues over the steps without any state: batches are a function of the
  key and the step alone, so a run resumed at step t sees the same batches. Pass
  the *same* key in every step.

  If B does not divide the number of examples, the last batch of a pass is
  padded with the first examples of that pass, as in `local_sampler`.

  Args:
    images: all examples, uint8 `[N, H, W, C]`, on every device.
    labels: int32 `[N]`.
    partition: the examples of each worker.
    key: a key of `jax.random.key`, the same one for the whole run.
    batch_size: B >= 1, examples per worker.
    step: t, the index of the step, an integer >= 0; may be traced.
    batches_per_pass: start a new pass after this many batches, even if some
      examples have not been used; None for whole passes. At least 1.
    scale: largest pixel value s, a positive Python number.

  Returns:
    `(images / s, labels)`: float32 `[n, B, H, W, C]` and int32 `[n, B]`.

  Raises:
    ValueError: if a count is below 1, the scale is not positive, the step is
      not an integer, or images and labels have different lengths.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from byzjax import data
    >>> images, labels = np.zeros([6, 2, 2, 1], np.uint8), np.arange(6)
    >>> partition = data.label_sorted(labels, 2)  # 0, 1, 2 and 3, 4, 5.
    >>> pass_of_three = [
    ...   data.shuffled_batch(
    ...     images, labels, partition, jax.random.key(0), 1, step=t)[1][0, 0]
    ...   for t in range(3)]
    >>> sorted(map(int, pass_of_three))
    [0, 1, 2]
  """
  name = 'shuffled_batch'
  _examples.check(name, images, labels)
  _examples.check_batch(name, batch_size, scale)
  checks.check_pair(name, 'partition', partition)
  checks.check_key(name, 'key', key)
  checks.check_integer(name, 'step', step)
  if batches_per_pass is not None:
    checks.check_count(name, 'batches_per_pass', batches_per_pass, 1)

  def of_worker(worker, indices, size):
    worker_key = jax.random.fold_in(key, worker)
    width = indices.shape[0]
    return indices[
      _passes.places(
        worker_key, step, width, size, batch_size, batches_per_pass
      )
    ]

  return _of_workers(images, labels, partition, of_worker, scale)


def _of_workers(images, labels, partition, of_worker, scale):
  """The examples `of_worker(i, indices, size)` of every worker."""
  indices, sizes = map(jnp.asarray, partition)

  def draw(images, labels, indices, sizes):
    workers = jnp.arange(sizes.shape[0])
    chosen = jax.vmap(of_worker)(workers, indices, sizes)
    return _examples.take(images, labels, chosen, scale)

  sharding = jax.typeof(sizes).sharding
  if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
    # Workers' numbers and choices go where their examples are.
    draw = jax.sharding.auto_axes(draw, out_sharding=sharding)
  return draw(jnp.asarray(images), jnp.asarray(labels), indices, sizes)
