"""Label skew with one main class per worker."""

import numpy as np

from byzjax._src import checks
from byzjax.data import _partition


def main_class(
  labels: np.ndarray, num_workers: int, *, share: float, seed: int = 0
) -> _partition.Partition:
  r"""Each worker has a given share of examples from its main class.

  .. math::
    |S_i \cap C_{i \bmod K}| = \lfloor s |S_i| + 1/2 \rfloor

  The main class of worker i is class `i mod K` of the K distinct labels in
  ascending order; the rest of its examples are drawn only from the other
  classes, as uniformly as the class sizes allow. Sizes differ by at most one
  example, and the larger shards come first.

  Args:
    labels: non-negative integers `[N]`.
    num_workers: number of workers n, from 1 to N.
    share: s in [0, 1]; 0.3, 0.5 and 0.7 are usual.
    seed: the seed of the choices.

  Returns:
    A `Partition` that holds every example exactly once: `indices` int32 `[n,
    ceil(N / n)]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, the number
      of workers is below 1 or above N, the share is not in [0, 1], or the class
      sizes do not allow it: they differ too much, or the number of workers is
      not a multiple of the number of classes.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> labels = np.repeat([0, 1], 50)
    >>> partition = data.main_class(labels, 2, share=0.7)
    >>> (labels[partition.indices] == np.array([[0], [1]])).sum(axis=1)
    array([35, 35])
  """
  name = 'main_class'
  labels = _partition.check(name, labels, num_workers, seed)
  checks.check_range(name, 'share', share, 0, 1)
  rng = np.random.default_rng(seed)
  classes = np.unique(labels)
  parts = np.array_split(np.arange(labels.size), num_workers)
  sizes = np.array([part.size for part in parts])
  main = classes[np.arange(num_workers) % classes.size]
  own = np.floor(share * sizes + 0.5).astype(int)
  shards: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
  leftover = []
  for k in classes:
    members = rng.permutation(np.flatnonzero(labels == k))
    workers = np.flatnonzero(main == k)
    *pieces, rest = np.split(members, np.cumsum(own[workers]))
    if own[workers].sum() > members.size:
      raise ValueError(
        f'{name}: class {k} has {members.size} examples, and as the main class'
        f' of {workers.size} workers it needs {own[workers].sum()}. Lower'
        f' share={share!r}, or change num_workers={num_workers}.'
      )
    for worker, piece in zip(workers, pieces):
      shards[worker].append(piece)
    leftover.append(rest)
  rest = rng.permutation(np.concatenate(leftover))
  holder = np.repeat(np.arange(num_workers), sizes - own)
  _swap_main_class_out(name, rng, labels, rest, main[holder], share)
  for i, shard in enumerate(shards):
    shard.append(rest[holder == i])
  return _partition.from_shards(name, [np.concatenate(s) for s in shards])


def _swap_main_class_out(
  name: str,
  rng: np.random.Generator,
  labels: np.ndarray,
  rest: np.ndarray,
  main: np.ndarray,
  share: float,
) -> None:
  # In place: rest[j] goes to a worker whose main class is main[j]. A swap never
  # makes a new conflict, and if none is possible no assignment is.
  for place in np.flatnonzero(labels[rest] == main):
    k = main[place]
    if labels[rest[place]] != k:
      continue
    other = int(rng.integers(rest.size))
    if main[other] == k or labels[rest[other]] == k:
      choices = np.flatnonzero((main != k) & (labels[rest] != k))
      if choices.size == 0:
        raise ValueError(
          f'{name}: class {k} has more examples than can be placed at workers'
          f' whose main class is another. Raise share={share!r}, or change the'
          ' number of workers.'
        )
      other = int(rng.choice(choices))
    rest[place], rest[other] = rest[other], rest[place]
