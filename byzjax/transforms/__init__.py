"""Optax transforms and named chains."""

from byzjax.transforms._average_iterates import (
  AverageIteratesState,
  average_iterates,
)
from byzjax.transforms._by_sender import by_sender
from byzjax.transforms._byz_sgd import byz_sgdm, byz_sgdnm
from byzjax.transforms._clip_coordinates import clip_coordinates
from byzjax.transforms._delayed_nesterov import (
  DelayedNesterovState,
  delayed_nesterov,
)
from byzjax.transforms._guard import GuardState, guard
from byzjax.transforms._lipschitz_filter import (
  LipschitzFilterState,
  lipschitz_filter,
)
from byzjax.transforms._normalize_by_global_norm import (
  normalize_by_global_norm,
)
from byzjax.transforms._ordered_momentum import (
  OrderedMomentumState,
  ordered_momentum,
)
from byzjax.transforms._per_worker import per_worker
from byzjax.transforms._scale_by_clipped_adam import scale_by_clipped_adam
from byzjax.transforms._scale_by_delta_sgd import (
  ScaleByDeltaSgdState,
  scale_by_delta_sgd,
)
from byzjax.transforms._scale_by_preconditioner import (
  Preconditioner,
  ScaleByPreconditionerState,
  scale_by_preconditioner,
)
from byzjax.transforms._scale_by_progress import (
  scale_by_progress,
  scale_by_round,
)
from byzjax.transforms._signum_majority_vote import signum_majority_vote
from byzjax.transforms._smega2 import Smega2, Smega2State, smega2
from byzjax.transforms._staleness import (
  compensate_delay,
  delay_adaptive,
  discount_staleness,
  drop_stale,
)
from byzjax.transforms._worker_momentum import (
  WorkerMomentumState,
  worker_momentum,
)
from byzjax.transforms._zeno_plus_plus import (
  ZenoPlusPlusState,
  zeno_plus_plus,
)

__all__ = [
  'AverageIteratesState',
  'DelayedNesterovState',
  'GuardState',
  'LipschitzFilterState',
  'OrderedMomentumState',
  'Preconditioner',
  'ScaleByDeltaSgdState',
  'ScaleByPreconditionerState',
  'Smega2',
  'Smega2State',
  'WorkerMomentumState',
  'ZenoPlusPlusState',
  'average_iterates',
  'by_sender',
  'byz_sgdm',
  'byz_sgdnm',
  'clip_coordinates',
  'compensate_delay',
  'delay_adaptive',
  'delayed_nesterov',
  'discount_staleness',
  'drop_stale',
  'guard',
  'lipschitz_filter',
  'normalize_by_global_norm',
  'ordered_momentum',
  'per_worker',
  'scale_by_clipped_adam',
  'scale_by_delta_sgd',
  'scale_by_preconditioner',
  'scale_by_progress',
  'scale_by_round',
  'signum_majority_vote',
  'smega2',
  'worker_momentum',
  'zeno_plus_plus',
]
