"""Long-tailed data: classes of geometrically decreasing size."""

import math

import numpy as np

from byzjax._src import checks
from byzjax.data._partition import check_labels


def long_tail(
  labels: np.ndarray, *, ratio: float, seed: int | None = None
) -> np.ndarray:
  r"""Selects examples so that class sizes decrease geometrically.

  .. math::
    |C_k'| = \max(1, \lfloor r^k |C_k| \rfloor)

  To use it, partition the selected labels, and map the partition back to the
  full data: `restrict(random_shards(labels[kept], n), kept)`.

  Args:
    labels: non-negative integers `[N]`; class 0 keeps all its examples.
    ratio: r in (0, 1]; 1 keeps everything.
    seed: the seed of the choice within a class; None keeps the first ones.

  Returns:
    The indices of the kept examples, int32 `[N']`, in ascending order.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, or the ratio
      is not in (0, 1].

  References:
    Cui, Jia, Lin, Song and Belongie, "Class-Balanced Loss Based on Effective
    Number of Samples", 2019, arXiv 1901.05555, section 5.1.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> kept = data.long_tail(labels, ratio=0.5)
    >>> kept
    array([0, 1, 2, 3, 4, 5], dtype=int32)
    >>> data.restrict(data.label_sorted(labels[kept], 2), kept).indices
    array([[0, 1, 2], [3, 4, 5]], dtype=int32)
  """
  labels = check_labels('long_tail', labels)
  checks.check_real('long_tail', 'ratio', ratio)
  if seed is not None:
    checks.check_count('long_tail', 'seed', seed)
  if not 0.0 < ratio <= 1.0:
    raise ValueError(
      f'long_tail: ratio must be in (0, 1], got ratio={ratio!r}.'
    )
  rng = None if seed is None else np.random.default_rng(seed)
  kept = []
  for k in np.unique(labels):
    members = np.flatnonzero(labels == k)
    # 0.29 * 100 is a little under 29 in floating point.
    size = max(1, math.floor(ratio ** int(k) * members.size + 1e-9))
    if rng is not None:
      members = rng.permutation(members)
    kept.append(members[:size])
  return np.sort(np.concatenate(kept)).astype(np.int32)
