"""Optax transforms and named chains."""

from byzjax.transforms._byz_sgd import byz_sgdm, byz_sgdnm
from byzjax.transforms._normalize_by_global_norm import (
  normalize_by_global_norm,
)
from byzjax.transforms._per_worker import per_worker
from byzjax.transforms._scale_by_delta_sgd import (
  ScaleByDeltaSgdState,
  scale_by_delta_sgd,
)
from byzjax.transforms._scale_by_preconditioner import (
  Preconditioner,
  ScaleByPreconditionerState,
  scale_by_preconditioner,
)
from byzjax.transforms._signum_majority_vote import signum_majority_vote
from byzjax.transforms._worker_momentum import (
  WorkerMomentumState,
  worker_momentum,
)

__all__ = [
  'Preconditioner',
  'ScaleByDeltaSgdState',
  'ScaleByPreconditionerState',
  'WorkerMomentumState',
  'byz_sgdm',
  'byz_sgdnm',
  'normalize_by_global_norm',
  'per_worker',
  'scale_by_delta_sgd',
  'scale_by_preconditioner',
  'signum_majority_vote',
  'worker_momentum',
]
