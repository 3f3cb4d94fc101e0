"""Rules and pre-aggregators."""

from byzjax.aggregators._bucketing import bucketing
from byzjax.aggregators._centered_clipping import (
  CenteredClippingState,
  centered_clipping,
)
from byzjax.aggregators._coordinate_median import coordinate_median
from byzjax.aggregators._geometric_median import geometric_median
from byzjax.aggregators._krum import krum, multi_krum
from byzjax.aggregators._mean import mean
from byzjax.aggregators._nearest_neighbor_mixing import nearest_neighbor_mixing
from byzjax.aggregators._pre_aggregate import pre_aggregate
from byzjax.aggregators._trimmed_mean import trimmed_mean

__all__ = [
  'CenteredClippingState',
  'bucketing',
  'centered_clipping',
  'coordinate_median',
  'geometric_median',
  'krum',
  'mean',
  'multi_krum',
  'nearest_neighbor_mixing',
  'pre_aggregate',
  'trimmed_mean',
]
