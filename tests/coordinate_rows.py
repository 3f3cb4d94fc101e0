"""Rules that take the middle of every coordinate: one row each."""

import numpy as np

import byzjax
from tests import claims, reference_rules


def range_ball(honest, v0, f):
  """Three times the honest box, around the honest mean.

  Each rule averages the values (of `aksel`: the messages) closest to a centre,
  no more of them than are honest, and the centre is within the honest values of
  every coordinate. So whatever is averaged is no farther from the centre than
  an honest one: in a coordinate at most the honest range, which is twice the
  largest deviation R_j from the honest mean, so at most 3 R_j from that mean.
  """
  del v0, f
  center = honest.mean(axis=0)
  return center, 3 * np.linalg.norm(np.abs(honest - center).max(axis=0))


RULES = [
  claims.Rule(
    'mean_around_median',
    lambda f, unit: byzjax.mean_around_median(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.mean_around_median(x, f),
    5,
    range_ball,
    rotation=False,
    weighs=False,
  ),
  claims.Rule(
    'phocas',
    lambda f, unit: byzjax.phocas(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.phocas(x, f),
    5,
    range_ball,
    rotation=False,
    weighs=False,
  ),
  claims.Rule(
    'bulyan',
    lambda f, unit: byzjax.bulyan(num_byzantine=f),
    lambda x, v0, f, key: reference_rules.bulyan(x, f),
    2,
    range_ball,
    rotation=False,
    weighs=False,
  ),
  claims.Rule(
    'aksel',
    # So few that a rotation changes who is among them.
    lambda f, unit: byzjax.aksel(num_byzantine=f, num_selected=4),
    lambda x, v0, f, key: reference_rules.aksel(x, f, 4),
    5,
    range_ball,
    rotation=False,
  ),
]
