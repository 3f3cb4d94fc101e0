"""Analysis: what a rule stands, measured and on record."""

from byzjax.analysis._breakdown import BreakdownPoint, breakdown_point
from byzjax.analysis._certificate import Certificate, certificate
from byzjax.analysis._kappa import EmpiricalKappa, empirical_kappa

__all__ = [
  'BreakdownPoint',
  'Certificate',
  'EmpiricalKappa',
  'breakdown_point',
  'certificate',
  'empirical_kappa',
]
