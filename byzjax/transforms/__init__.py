"""Optax transforms and named chains."""

from byzjax.transforms._byz_sgd import byz_sgdm, byz_sgdnm
from byzjax.transforms._normalize_by_global_norm import (
  normalize_by_global_norm,
)
from byzjax.transforms._per_worker import per_worker
from byzjax.transforms._signum_majority_vote import signum_majority_vote
from byzjax.transforms._worker_momentum import (
  WorkerMomentumState,
  worker_momentum,
)

__all__ = [
  'WorkerMomentumState',
  'byz_sgdm',
  'byz_sgdnm',
  'normalize_by_global_norm',
  'per_worker',
  'signum_majority_vote',
  'worker_momentum',
]
