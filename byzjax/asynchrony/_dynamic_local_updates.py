"""Dynamic numbers of local steps for workers of different speeds (DyLU)."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from byzjax._src import checks

Rounding = Literal['floor', 'ceil']


def dynamic_local_updates(
  seconds_per_step: ArrayLike,
  num_local_steps: int,
  *,
  rounding: Rounding = 'floor',
) -> NDArray[np.int32]:
  """Fewer local steps for slower workers, so that all take equally long (DyLU).

  `H_k = max(1, floor(v_k / v_max H))` with the speeds `v_k = 1 /
  seconds_per_step_k`: the fastest worker takes H steps, and the others as many
  as they complete in the same time, but at least one. A deployed variant uses
  `rounding='ceil'`.

  Args:
    seconds_per_step: float[K], each > 0 and finite.
    num_local_steps: H >= 1, a Python int.
    rounding: 'floor' or 'ceil'.

  Returns:
    int32[K], a NumPy array: H_k of every worker.

  Raises:
    ValueError: if an argument is out of range.

  References:
    Liu et al., 2024, arXiv:2401.09135.

  Example:
    >>> from byzjax import asynchrony
    >>> asynchrony.dynamic_local_updates([0.58, 0.75, 1.51, 3.33], 20)
    array([20, 15,  7,  3], dtype=int32)
  """
  name = 'dynamic_local_updates'
  checks.check_count(name, 'num_local_steps', num_local_steps, 1)
  if rounding not in get_args(Rounding):
    raise ValueError(
      f'{name} needs rounding to be one of {get_args(Rounding)}, got'
      f' {rounding!r}'
    )
  checks.check_reals(name, 'seconds_per_step', seconds_per_step)
  seconds = np.asarray(seconds_per_step, np.float64)
  if seconds.ndim != 1 or not seconds.size:
    raise ValueError(
      f'{name} needs seconds_per_step to be float[K] with K >= 1, got the shape'
      f' {list(seconds.shape)}'
    )
  if not np.all((seconds > 0) & np.isfinite(seconds)):
    raise ValueError(
      f'{name} needs finite seconds_per_step > 0, got {seconds_per_step!r}'
    )
  steps = seconds.min() / seconds * num_local_steps
  # Quotients such as 0.1 / 0.3 * 30 end beside the whole number that is meant.
  slack = 1e-9 * num_local_steps
  whole = np.floor(steps + slack)
  if rounding == 'ceil':
    whole = np.ceil(steps - slack)
  return np.maximum(whole, 1).astype(np.int32)
