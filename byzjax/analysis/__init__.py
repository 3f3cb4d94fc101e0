"""Analysis: robustness of rules, measured and certified."""

from byzjax.analysis._attack_success_rate import attack_success_rate
from byzjax.analysis._breakdown import BreakdownPoint, breakdown_point
from byzjax.analysis._certificate import Certificate, certificate
from byzjax.analysis._directional_sharpness import (
  directional_sharpness,
  loss_along_direction,
)
from byzjax.analysis._dropout_path import dropout_path
from byzjax.analysis._dropout_stability import (
  DropoutStability,
  dropout_stability,
)
from byzjax.analysis._kappa import EmpiricalKappa, empirical_kappa
from byzjax.analysis._path_loss import (
  linear_path,
  loss_along_path,
  path_barrier,
)
from byzjax.analysis._permutation import match_permutation
from byzjax.analysis._units import (
  draw_units,
  drop_units,
  permute_units,
)

__all__ = [
  'BreakdownPoint',
  'Certificate',
  'DropoutStability',
  'EmpiricalKappa',
  'attack_success_rate',
  'breakdown_point',
  'certificate',
  'directional_sharpness',
  'draw_units',
  'drop_units',
  'dropout_path',
  'dropout_stability',
  'empirical_kappa',
  'linear_path',
  'loss_along_direction',
  'loss_along_path',
  'match_permutation',
  'path_barrier',
  'permute_units',
]
