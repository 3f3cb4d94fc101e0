"""Label skew with a total concentration over all classes."""

import numpy as np

from byzjax.data import _partition


def dirichlet_total(
  labels: np.ndarray,
  num_workers: int,
  *,
  concentration: float,
  seed: int = 0,
) -> _partition.Partition:
  r"""Each worker draws a Dirichlet mix of the remaining data; sizes are equal.

  .. math::
    q_i \sim \mathrm{Dir}(\alpha r_i), \qquad
    r_{i, k} = \frac{|C_k \text{ that is left}|}{\sum_l |C_l
      \text{ that is left}|}

  and worker i draws from `q_i` without replacement, one worker after another,
  as in `dirichlet_by_worker`. There alpha is the concentration per class; here
  it is the sum over classes, so that `alpha = 0.1` with ten balanced classes
  starts like 0.01 there, and most workers see one or two classes. Sizes differ
  by at most one example, and the larger shards come first.

  Args:
    labels: non-negative integers `[N]`.
    num_workers: number of workers n, from 1 to N.
    concentration: alpha, in total over all classes, positive and finite.
    seed: the seed of the mixes and the draws.

  Returns:
    A `Partition` that holds every example exactly once: `indices` int32 `[n,
    ceil(N / n)]`, `sizes` int32 `[n]`.

  Raises:
    ValueError: if labels is not a vector of non-negative integers, the number
      of workers is below 1 or above N, or the concentration is not positive and
      finite.

  References:
    Guo, Tang, Lin, 2023, arXiv:2205.13462.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> labels = np.repeat([0, 1], 50)
    >>> partition = data.dirichlet_total(labels, 2, concentration=1e-9)
    >>> labels[partition.indices].mean(axis=1).tolist() in ([0, 1], [1, 0])
    True
  """
  name = 'dirichlet_total'
  labels = _partition.check(name, labels, num_workers, seed)
  _partition.check_concentration(name, concentration)
  rng = np.random.default_rng(seed)

  def mix_of(left):
    remains = left > 0
    mix = np.zeros(left.size)
    prior = concentration * left[remains] / left.sum()
    mix[remains] = rng.dirichlet(np.maximum(prior, np.finfo(float).tiny))
    return mix

  shards = _partition.shards_by_mix(rng, labels, num_workers, mix_of)
  return _partition.from_shards(name, shards)
