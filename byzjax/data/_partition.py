"""Partitions of examples among workers: index tables, computed on the host."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from byzjax._src import checks


class Partition(NamedTuple):
  """The examples of each of n workers.

  Row i of `indices` holds the examples of worker i in its first `sizes[i]`
  entries; these are repeated cyclically in the rest, so every entry is valid.
  """

  indices: np.ndarray | jax.Array  # int32 [n, m], m the largest size
  sizes: np.ndarray | jax.Array  # int32 [n], each at least 1


def iid(labels: np.ndarray, num_workers: int) -> Partition:
  r"""Every worker samples from all examples: the i.i.d. setting of the theory.

  .. math::
    S_i = \{0, \dots, N - 1\} \quad \text{for all } i

  With `sample_batch`, the batches of all workers are independent samples from
  one distribution. To divide a data set evenly instead, use `random_shards`.

  Args:
    labels: integers `[N]`; only their number matters.
    num_workers: number of workers n, from 1 to N.

  Returns:
    A `Partition` in which every worker holds every example: `indices` int32
    `[n, N]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, or the
      number of workers is below 1 or above N.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> data.iid(np.zeros(10, int), 4).sizes
    array([10, 10, 10, 10], dtype=int32)
  """
  labels = check('iid', labels, num_workers)
  everything = np.arange(labels.size, dtype=np.int32)
  return Partition(
    np.broadcast_to(everything, (num_workers, labels.size)),
    np.full(num_workers, labels.size, np.int32),
  )


def label_sorted(labels: np.ndarray, num_workers: int) -> Partition:
  """Contiguous shards of the examples sorted by label: extreme heterogeneity.

  `S_i` is the i-th of n consecutive pieces of a stable `argsort(labels)`. This
  is the most heterogeneous equal partition: if classes are large, each worker
  sees one or two. Sizes differ by at most one example, and the larger shards
  come first.

  Args:
    labels: non-negative integers `[N]`.
    num_workers: number of workers n, from 1 to N.

  Returns:
    A `Partition` that holds every example exactly once: `indices` int32 `[n,
    ceil(N / n)]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, or the
      number of workers is below 1 or above N.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> data.label_sorted(np.array([1, 0, 1, 0]), 2).indices
    array([[1, 3], [0, 2]], dtype=int32)
  """
  labels = check('label_sorted', labels, num_workers)
  order = np.argsort(labels, kind='stable')
  return from_shards('label_sorted', np.array_split(order, num_workers))


def random_shards(
  labels: np.ndarray, num_workers: int, *, seed: int = 0
) -> Partition:
  r"""Equal shards of the examples in random order.

  .. math::
    S_i = \{\pi(j) : c_i \le j < c_{i+1}\}, \qquad
    c_i = i \lfloor N / n \rfloor + \min(i, N \bmod n)

  for a uniform permutation pi. Sizes differ by at most one example, and the
  larger shards come first.

  Small shards are not i.i.d. data: the few examples of a worker give it a bias
  of its own, which is the same in all rounds, so momentum does not average it
  out.

  Args:
    labels: integers `[N]`; only their number matters.
    num_workers: number of workers n, from 1 to N.
    seed: the seed of the permutation.

  Returns:
    A `Partition` that holds every example exactly once: `indices` int32 `[n,
    ceil(N / n)]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, or the
      number of workers is below 1 or above N.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> data.random_shards(np.zeros(10, int), 4).sizes
    array([3, 3, 2, 2], dtype=int32)
  """
  labels = check('random_shards', labels, num_workers, seed)
  order = np.random.default_rng(seed).permutation(labels.size)
  return from_shards('random_shards', np.array_split(order, num_workers))


def dirichlet_by_class(
  labels: np.ndarray, num_workers: int, *, alpha: float, seed: int = 0
) -> Partition:
  r"""Divides each class among the workers in Dirichlet proportions.

  .. math::
    p_k \sim \mathrm{Dir}(\alpha 1_n), \qquad
    |S_i \cap C_k| \approx p_{k, i} |C_k|

  independently for each class k; the examples of a class are shuffled and cut
  at the cumulative proportions, rounded down. With a small alpha, few workers
  hold each class. Workers also differ in their numbers of examples.

  Args:
    labels: non-negative integers `[N]`.
    num_workers: number of workers n, from 1 to N.
    alpha: concentration, positive and finite; typically 0.1 to 1.
    seed: the seed of the proportions and the shuffling.

  Returns:
    A `Partition` that holds every example exactly once: `indices` int32 `[n,
    m]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, the number
      of workers is below 1 or above N, alpha is not positive and finite, or a
      worker gets no examples.

  References:
    Yurochkin, Agarwal, Ghosh, Greenewald, Hoang and Khazaeni, "Bayesian
    Nonparametric Federated Learning of Neural Networks", 2019, arXiv
    1905.12022.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> labels = np.repeat([0, 1], 50)
    >>> data.dirichlet_by_class(labels, 2, alpha=1.0).sizes.sum()
    np.int64(100)
  """
  labels = check('dirichlet_by_class', labels, num_workers, seed)
  _check_alpha('dirichlet_by_class', alpha)
  rng = np.random.default_rng(seed)
  pieces: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
  for k in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == k))
    shares = rng.dirichlet(np.full(num_workers, alpha))
    cuts = np.floor(np.cumsum(shares)[:-1] * members.size).astype(int)
    for piece, part in zip(pieces, np.split(members, cuts)):
      piece.append(part)
  return from_shards(
    'dirichlet_by_class', [np.concatenate(piece) for piece in pieces]
  )


def dirichlet_by_worker(
  labels: np.ndarray, num_workers: int, *, alpha: float, seed: int = 0
) -> Partition:
  r"""Each worker draws its own Dirichlet mix of classes; all sizes are equal.

  .. math::
    q_i \sim \mathrm{Dir}(\alpha 1_K), \qquad
    \Pr[\text{next example of worker } i \text{ has label } k] =
      \frac{q_{i, k} 1[k \text{ is left}]}{\sum_l q_{i, l} 1[l \text{ is left}]}

  without replacement, one worker after another, so the class mixes of the last
  workers may follow what is left rather than their own q_i. A worker whose
  classes are all used up draws from the remaining examples. Sizes differ by at
  most one example, and the larger shards come first.

  Args:
    labels: non-negative integers `[N]`; K is the number of distinct ones.
    num_workers: number of workers n, from 1 to N.
    alpha: concentration, positive and finite; typically 0.1 to 1.
    seed: the seed of the mixes and the draws.

  Returns:
    A `Partition` that holds every example exactly once: `indices` int32 `[n,
    ceil(N / n)]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, the number
      of workers is below 1 or above N, or alpha is not positive and finite.

  References:
    Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution
    for Federated Visual Classification", 2019, arXiv 1909.06335, with a uniform
    prior over classes.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> labels = np.repeat([0, 1], 50)
    >>> data.dirichlet_by_worker(labels, 3, alpha=0.1).sizes
    array([34, 33, 33], dtype=int32)
  """
  labels = check('dirichlet_by_worker', labels, num_workers, seed)
  _check_alpha('dirichlet_by_worker', alpha)
  rng = np.random.default_rng(seed)
  shards = shards_by_mix(
    rng,
    labels,
    num_workers,
    lambda left: rng.dirichlet(np.full(left.size, alpha)),
  )
  return from_shards('dirichlet_by_worker', shards)


def shards_by_mix(
  rng: np.random.Generator,
  labels: np.ndarray,
  num_workers: int,
  mix_of: Callable[[np.ndarray], np.ndarray],
) -> list[np.ndarray]:
  """Equal shards, each drawn by a mix of the classes that are left."""
  members = [
    rng.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)
  ]
  left = np.array([m.size for m in members])
  shards = []
  for part in np.array_split(np.arange(labels.size), num_workers):
    counts = draw_counts(rng, mix_of(left), left, part.size)
    shards.append(
      np.concatenate(
        [m[have - c : have] for m, have, c in zip(members, left, counts)]
      )
    )
    left = left - counts
  return shards


def draw_counts(
  rng: np.random.Generator, mix: np.ndarray, left: np.ndarray, size: int
) -> np.ndarray:
  """How many of `size` draws without replacement fall into each class."""
  # Draws beyond what a class has are rejected and drawn again from the classes
  # left: the same law as one draw at a time with the mass renormalised.
  counts = np.zeros_like(left)
  while (missing := size - counts.sum()) > 0:
    remaining = left - counts
    mass = np.where(remaining > 0, mix, 0.0)
    if mass.sum() < np.finfo(float).tiny:
      return counts + rng.multivariate_hypergeometric(remaining, missing)
    drawn = rng.multinomial(missing, mass / mass.sum())
    counts = counts + np.minimum(drawn, remaining)
  return counts


def restrict(partition: Partition, kept: np.ndarray) -> Partition:
  r"""Maps a partition of selected examples back to the full data set.

  .. math::
    S_i' = \{\mathrm{kept}_j : j \in S_i\}

  Args:
    partition: a `Partition` of the `N'` selected examples. It need not have all
      of them: some partitions leave a few out.
    kept: indices of the selected examples, integers `[N']`, as from
      `long_tail`.

  Returns:
    A `Partition` of the same shapes, whose entries are entries of `kept`.

  Raises:
    ValueError: if kept is not a vector of integers with an entry for each index
      of the partition.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> kept = np.array([10, 20, 30, 40])
    >>> data.restrict(data.label_sorted(np.zeros(4, int), 2), kept).indices
    array([[10, 20], [30, 40]], dtype=int32)
  """
  kept = np.asarray(kept)
  if not np.issubdtype(kept.dtype, np.integer):
    raise ValueError(
      'restrict: kept must be indices, such as np.flatnonzero(mask) for a mask,'
      f' got {kept.dtype}.'
    )
  kept = kept.astype(np.int32)
  largest = int(partition.indices.max())
  if kept.ndim != 1 or largest >= kept.size:
    raise ValueError(
      'restrict: kept must be a vector with an entry for each index of the '
      f'partition, got kept.shape={kept.shape} for indices up to {largest}.'
    )
  return Partition(kept[partition.indices], partition.sizes)


def check_labels(function: str, labels: np.ndarray) -> np.ndarray:
  """The labels as an array; ValueError, naming `function`, if they are not."""
  labels = np.asarray(labels)
  if (
    labels.ndim != 1
    or labels.size == 0
    or not np.issubdtype(labels.dtype, np.integer)
    or labels.min() < 0
  ):
    raise ValueError(
      f'{function}: labels must be a vector of integers of at least 0, and not '
      f'empty, got shape {labels.shape} and dtype {labels.dtype}'
      + (f' with smallest value {labels.min()}.' if labels.size else '.')
    )
  return labels


def check(
  function: str, labels: np.ndarray, num_workers: int, seed: int = 0
) -> np.ndarray:
  """The labels as an array, for a number of workers that they suffice for."""
  labels = check_labels(function, labels)
  checks.check_count(function, 'seed', seed)
  if not checks.is_whole(num_workers) or not 1 <= num_workers <= labels.size:
    raise ValueError(
      f'{function}: num_workers must be from 1 to the number of examples, got '
      f'num_workers={num_workers!r} for {labels.size} examples.'
    )
  return labels


def _check_alpha(function: str, alpha: float) -> None:
  checks.check_real(function, 'alpha', alpha)
  if not (alpha > 0.0 and math.isfinite(alpha)):
    raise ValueError(
      f'{function}: alpha must be positive and finite, got alpha={alpha!r}.'
    )


def check_concentration(function: str, concentration: float) -> None:
  """Raises ValueError unless the concentration is positive and finite."""
  checks.check_real(function, 'concentration', concentration)
  if not (concentration > 0.0 and math.isfinite(concentration)):
    raise ValueError(
      f'{function}: concentration must be positive and finite, got '
      f'concentration={concentration!r}.'
    )


def from_shards(function: str, shards: Sequence[np.ndarray]) -> Partition:
  """The partition of the shards; ValueError if one of them is empty."""
  sizes = np.array([shard.size for shard in shards], np.int32)
  if sizes.min() == 0:
    raise ValueError(
      f'{function}: every worker must have an example, got none for worker '
      f'{int(np.argmin(sizes))} of {sizes.size}. Raise alpha, lower '
      'num_workers, or change seed.'
    )
  indices = np.stack([np.resize(shard, sizes.max()) for shard in shards])
  return Partition(indices.astype(np.int32), sizes)
