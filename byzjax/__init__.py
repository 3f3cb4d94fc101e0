"""byzjax: training that survives workers which lie, drift, lag or disagree.

Everything public is here, flat. `byzjax.data` and `byzjax.models`, which need
data sets and flax, are imported on their own. Names under `byzjax._src` and
files that start with an underscore are private.
"""

from byzjax._src.base import (
  Aggregate,
  AggregationInfo,
  Aggregator,
  Attack,
  DataAttack,
  Gram,
  Messages,
  PreAggregator,
  Round,
  RoundInfo,
  RoundState,
)
from byzjax._src.layouts import WorkerShardedState, worker_sharded
from byzjax._src.nonfinite import sanitize
from byzjax._src.rules import from_column, from_weights, squared_distances
from byzjax.aggregators import (
  CenteredClippingState,
  bucketing,
  centered_clipping,
  coordinate_median,
  geometric_median,
  krum,
  mean,
  multi_krum,
  nearest_neighbor_mixing,
  pre_aggregate,
  trimmed_mean,
)
from byzjax.attacks import (
  alie,
  alie_factor,
  constant,
  gaussian,
  inner_product_manipulation,
  label_flip,
  sign_flip,
)
from byzjax.rounds import random_byzantine, robust_round
from byzjax.transforms import (
  WorkerMomentumState,
  byz_sgdm,
  byz_sgdnm,
  normalize_by_global_norm,
  per_worker,
  worker_momentum,
)

__version__ = '0.1.0.dev0'

__all__ = [
  'Aggregate',
  'AggregationInfo',
  'Aggregator',
  'Attack',
  'CenteredClippingState',
  'DataAttack',
  'Gram',
  'Messages',
  'PreAggregator',
  'Round',
  'RoundInfo',
  'RoundState',
  'WorkerMomentumState',
  'WorkerShardedState',
  'alie',
  'alie_factor',
  'bucketing',
  'byz_sgdm',
  'byz_sgdnm',
  'centered_clipping',
  'constant',
  'coordinate_median',
  'from_column',
  'from_weights',
  'gaussian',
  'geometric_median',
  'inner_product_manipulation',
  'krum',
  'label_flip',
  'mean',
  'multi_krum',
  'nearest_neighbor_mixing',
  'normalize_by_global_norm',
  'per_worker',
  'pre_aggregate',
  'random_byzantine',
  'robust_round',
  'sanitize',
  'sign_flip',
  'squared_distances',
  'trimmed_mean',
  'worker_momentum',
  'worker_sharded',
]
