"""Held-out examples, and held-out workers."""

import numpy as np

from byzjax._src import checks
from byzjax.data import _partition
from byzjax.data._partition import Partition


def hold_out(
  partition: Partition, *, share: float, seed: int = 0
) -> tuple[Partition, Partition]:
  r"""Holds out a share of the examples of every worker.

  .. math::
    |H_i| = \min(\max(\lfloor s |S_i| + 1/2 \rfloor, 1), |S_i| - 1)

  chosen uniformly, so that worker i can be tested on its own distribution. The
  held-out examples of worker i depend neither on the other workers nor on their
  number. If workers share examples, as in `iid`, one may train on what another
  holds out.

  Args:
    partition: any `Partition` with at least two examples per worker.
    share: s, strictly between 0 and 1.
    seed: the seed of the choice.

  Returns:
    `(training, held_out)`, two partitions of all n workers, in the original
    order of the examples.

  Raises:
    ValueError: if the share is not between 0 and 1, or a worker has only one
      example.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> partition = data.random_shards(np.zeros(20, int), 2)
    >>> training, held_out = data.hold_out(partition, share=0.2)
    >>> training.sizes, held_out.sizes
    (array([8, 8], dtype=int32), array([2, 2], dtype=int32))
  """
  name = 'hold_out'
  checks.check_kind(name, 'partition', partition, Partition)
  checks.check_count(name, 'seed', seed)
  checks.check_real(name, 'share', share)
  if not 0 < share < 1:
    raise ValueError(
      f'{name}: share must be strictly between 0 and 1, got share={share!r}.'
    )
  training, held_out = [], []
  for worker, shard in enumerate(_shards(partition)):
    if shard.size < 2:
      raise ValueError(
        f'{name}: every worker must have two examples, got {shard.size} for'
        f' worker {worker}.'
      )
    count = min(max(int(share * shard.size + 0.5), 1), shard.size - 1)
    rng = np.random.default_rng([seed, worker])
    out = np.zeros(shard.size, bool)
    out[rng.permutation(shard.size)[:count]] = True
    training.append(shard[~out])
    held_out.append(shard[out])
  return (
    _partition.from_shards(name, training),
    _partition.from_shards(name, held_out),
  )


def held_out_workers(
  partition: Partition, num_held_out: int, *, seed: int = 0
) -> tuple[Partition, Partition]:
  """Holds out whole workers, as clients that do not take part in training.

  Args:
    partition: a `Partition` of n workers.
    num_held_out: k, a Python int with `1 <= k < n`.
    seed: the seed of the choice, which is uniform.

  Returns:
    `(training, unseen)`, partitions of n - k and of k workers, in their
    original order.

  Raises:
    ValueError: if k is not an int from 1 to n - 1.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> partition = data.random_shards(np.zeros(20, int), 5)
    >>> training, unseen = data.held_out_workers(partition, 2)
    >>> training.indices.shape, unseen.indices.shape
    ((3, 4), (2, 4))
  """
  name = 'held_out_workers'
  checks.check_kind(name, 'partition', partition, Partition)
  checks.check_count(name, 'seed', seed)
  checks.check_count(name, 'num_held_out', num_held_out, 1)
  shards = _shards(partition)
  if num_held_out >= len(shards):
    raise ValueError(
      f'{name} needs num_held_out < num_workers, got {num_held_out} and'
      f' {len(shards)}'
    )
  out = np.zeros(len(shards), bool)
  out[np.random.default_rng(seed).permutation(len(shards))[:num_held_out]] = (
    True
  )
  return (
    _partition.from_shards(name, [s for s, o in zip(shards, out) if not o]),
    _partition.from_shards(name, [s for s, o in zip(shards, out) if o]),
  )


def _shards(partition: Partition) -> list[np.ndarray]:
  indices, sizes = np.asarray(partition.indices), np.asarray(partition.sizes)
  return [row[:size] for row, size in zip(indices, sizes)]
