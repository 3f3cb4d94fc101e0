"""Clients that hold a few labels each, and unequal numbers of examples."""

import numpy as np

from byzjax import data

# Of the logarithm of what a client takes of one of its labels.
_SPREAD = 1.0


def few_labels(
  labels: np.ndarray, num_workers: int, seed: int, *, each: int
) -> data.Partition:
  """Client i holds the classes i, ..., i + each - 1, modulo their number.

  The examples of a class are divided among its clients in proportion to
  log-normal numbers; every client gets at least one of each of its classes.

  Raises:
    ValueError: if a class has no client, or a client no classes to hold.
  """
  classes = np.unique(labels)
  rng = np.random.default_rng(seed)
  holders = [
    np.flatnonzero((k - np.arange(num_workers)) % len(classes) < each)
    for k in range(len(classes))
  ]
  if not 1 <= each <= len(classes) or min(map(len, holders)) == 0:
    raise ValueError(
      f'{num_workers} clients with {each} labels each do not hold all of'
      f' {len(classes)} classes'
    )
  shards: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
  for k, own in zip(classes, holders):
    members = rng.permutation(np.flatnonzero(labels == k))
    # One for each, and the rest in proportion.
    mass = np.cumsum(rng.lognormal(sigma=_SPREAD, size=len(own)))
    ends = np.floor(mass / mass[-1] * (len(members) - len(own))).astype(int)
    ends += np.arange(1, len(own) + 1)
    for client, piece in zip(own, np.split(members, ends[:-1])):
      shards[client].append(piece)
  whole = [np.concatenate(shard) for shard in shards]
  sizes = np.array([shard.size for shard in whole], np.int32)
  indices = [np.resize(shard, sizes.max()) for shard in whole]
  return data.Partition(np.stack(indices).astype(np.int32), sizes)
