"""Aggregation rules and pre-aggregators."""

from byzjax.aggregators._aksel import aksel
from byzjax.aggregators._bucketing import bucketing
from byzjax.aggregators._bulyan import bulyan
from byzjax.aggregators._centered_clipping import (
  CenteredClippingState,
  centered_clipping,
)
from byzjax.aggregators._clipping import adaptive_clipping, clip_messages
from byzjax.aggregators._clustering import (
  ClippedClusteringState,
  clipped_clustering,
  clustering,
)
from byzjax.aggregators._comparative_gradient_elimination import (
  comparative_gradient_elimination,
)
from byzjax.aggregators._coordinate_median import coordinate_median
from byzjax.aggregators._covariance_filter import covariance_filter
from byzjax.aggregators._delayed_momentum import (
  DelayedMomentumState,
  delayed_momentum,
)
from byzjax.aggregators._detox import detox
from byzjax.aggregators._diagnose import diagnose
from byzjax.aggregators._divide_and_conquer import divide_and_conquer
from byzjax.aggregators._faba import faba
from byzjax.aggregators._fl_trust import fl_trust
from byzjax.aggregators._flame import flame
from byzjax.aggregators._fools_gold import FoolsGoldState, fools_gold
from byzjax.aggregators._gas import gas
from byzjax.aggregators._geometric_median import geometric_median
from byzjax.aggregators._group_vote import group_vote
from byzjax.aggregators._hierarchical import hierarchical
from byzjax.aggregators._krum import krum, multi_krum
from byzjax.aggregators._lasa import lasa
from byzjax.aggregators._majority_vote import majority_vote
from byzjax.aggregators._mean import mean
from byzjax.aggregators._mean_around_median import mean_around_median, phocas
from byzjax.aggregators._minimum_diameter_averaging import (
  minimum_diameter_averaging,
)
from byzjax.aggregators._monna import monna
from byzjax.aggregators._nearest_neighbor_mixing import nearest_neighbor_mixing
from byzjax.aggregators._pre_aggregate import pre_aggregate
from byzjax.aggregators._resampling import resampling
from byzjax.aggregators._sequential_centered_clipping import (
  sequential_centered_clipping,
)
from byzjax.aggregators._sign_guard import SignGuardState, sign_guard
from byzjax.aggregators._smallest_max_eigenvalue_averaging import (
  smallest_max_eigenvalue_averaging,
)
from byzjax.aggregators._trimmed_mean import trimmed_mean
from byzjax.aggregators._worker_weights import cap_weights

__all__ = [
  'CenteredClippingState',
  'ClippedClusteringState',
  'DelayedMomentumState',
  'FoolsGoldState',
  'SignGuardState',
  'adaptive_clipping',
  'aksel',
  'bucketing',
  'bulyan',
  'cap_weights',
  'centered_clipping',
  'clip_messages',
  'clipped_clustering',
  'clustering',
  'comparative_gradient_elimination',
  'coordinate_median',
  'covariance_filter',
  'delayed_momentum',
  'detox',
  'diagnose',
  'divide_and_conquer',
  'faba',
  'fl_trust',
  'flame',
  'fools_gold',
  'gas',
  'geometric_median',
  'group_vote',
  'hierarchical',
  'krum',
  'lasa',
  'majority_vote',
  'mean',
  'mean_around_median',
  'minimum_diameter_averaging',
  'monna',
  'multi_krum',
  'nearest_neighbor_mixing',
  'phocas',
  'pre_aggregate',
  'resampling',
  'sign_guard',
  'sequential_centered_clipping',
  'smallest_max_eigenvalue_averaging',
  'trimmed_mean',
]
