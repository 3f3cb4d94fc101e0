"""Defences that compare workers with each other: one row each."""

import jax.numpy as jnp

import byzjax
from tests import claims, filter_rows, reference_defences


def _sign_guard(name, feature='signs', method='dbscan', **options):
  later = feature != 'signs'

  def start(state, v0):
    return byzjax.SignGuardState(jnp.int32(3), v0) if later else state

  return claims.Rule(
    f'sign_guard_{name}',
    lambda f, unit: byzjax.sign_guard(
      feature=feature, method=method, fraction=1.0, **options
    ),
    lambda x, v0, f, key: reference_defences.sign_guard(
      x, method, feature, v0 if later else None, **options
    ),
    5,
    filter_rows.longest_honest_ball,
    start=start,
    translation=False,
    rotation=False,
  )


RULES = [
  claims.Rule(
    'fools_gold',
    # The history knows how many workers there are: `fools_gold_test`.
    lambda f, unit: byzjax.fools_gold(num_workers=None),
    lambda x, v0, f, key: reference_defences.fools_gold(x),
    5,
    # One message alone is never found.
    None,
    translation=False,
  ),
  claims.Rule(
    'flame',
    lambda f, unit: byzjax.flame(noise=0),
    lambda x, v0, f, key: reference_defences.flame(x),
    5,
    filter_rows.longest_honest_ball,
    translation=False,
  ),
  _sign_guard('mean_shift', method='mean_shift'),
  _sign_guard('dbscan', radius=0.15),
  _sign_guard('cosine', 'cosine', radius=0.15),
  _sign_guard('distance', 'distance', radius=0.15),
]
