"""The first rules and pre-aggregators: one row each."""

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from tests import claims, reference


def _clipping_ball(radius, num_iterations):
  return lambda honest, v0, f: (v0, radius * num_iterations)


def _quantile_ball(num_iterations):
  def ball(honest, v0, f):
    center = honest.mean(axis=0)
    bound = byzjax.theory.quantile_clipping_error(
      float(np.linalg.norm(v0 - center)),
      float(np.linalg.norm(honest - center, axis=1).max()),
      len(honest) + f,
      f,
      num_iterations=num_iterations,
    )
    return center, bound

  return ball


def _bucketed_median_ball(honest, v0, f):
  # f of the m buckets are anywhere, the others inside the honest ball.
  del v0
  center, m = honest.mean(axis=0), -(-(len(honest) + f) // 2)
  farthest = np.linalg.norm(honest - center, axis=1).max()
  return center, 2 * (m - f) / (m - 2 * f) * farthest


def bucket_matrix(key: jax.Array, num_workers: int) -> np.ndarray:
  """The mixing matrix that `bucketing(bucket_size=2)` draws from a key."""
  mixer = byzjax.bucketing(bucket_size=2)
  return np.asarray(mixer.apply(jnp.eye(num_workers), (), key=key)[0])


def _bucketed_median(x, v0, f, key):
  del v0, f
  # Each stage of `pre_aggregate` has its own key.
  mixed = bucket_matrix(jax.random.split(key)[0], len(x)) @ x
  return reference.geometric_median(mixed)


def _nnm(f):
  return byzjax.nearest_neighbor_mixing(num_byzantine=f)


RULES = [
  claims.Rule(
    'mean',
    lambda f, unit: byzjax.mean(),
    lambda x, v0, f, key: reference.mean(x),
    0,
    None,
  ),
  claims.Rule(
    'coordinate_median',
    lambda f, unit: byzjax.coordinate_median(),
    lambda x, v0, f, key: reference.coordinate_median(x),
    5,
    claims.robust_ball(claims.kappa_median),
    rotation=False,
    weighs=False,
  ),
  claims.Rule(
    'trimmed_mean',
    lambda f, unit: byzjax.trimmed_mean(num_byzantine=f),
    lambda x, v0, f, key: reference.trimmed_mean(x, f),
    5,
    claims.robust_ball(claims.kappa_trimmed_mean),
    rotation=False,
    weighs=False,
  ),
  claims.Rule(
    'krum',
    lambda f, unit: byzjax.krum(num_byzantine=f),
    lambda x, v0, f, key: reference.krum(x, f),
    4,
    claims.robust_ball(claims.kappa_krum),
  ),
  claims.Rule(
    'multi_krum',
    lambda f, unit: byzjax.multi_krum(num_byzantine=f),
    lambda x, v0, f, key: reference.multi_krum(x, f),
    4,
    claims.robust_ball(claims.kappa_krum),
  ),
  claims.Rule(
    'geometric_median',
    lambda f, unit: byzjax.geometric_median(smoothing=1e-6 * unit),
    lambda x, v0, f, key: reference.geometric_median(x),
    5,
    claims.robust_ball(claims.kappa_median),
  ),
  claims.Rule(
    'centered_clipping',
    lambda f, unit: byzjax.centered_clipping(radius=2.0 * unit),
    lambda x, v0, f, key: reference.centered_clipping(x, v0, 2.0, 1),
    5,
    _clipping_ball(2.0, 1),
    start=lambda state, v0: byzjax.CenteredClippingState(v0),
    remembers=True,
  ),
  claims.Rule(
    'centered_clipping_3_steps',
    lambda f, unit: byzjax.centered_clipping(
      radius=2.0 * unit, num_iterations=3
    ),
    lambda x, v0, f, key: reference.centered_clipping(x, v0, 2.0, 3),
    5,
    _clipping_ball(2.0, 3),
    start=lambda state, v0: byzjax.CenteredClippingState(v0),
    remembers=True,
  ),
  *(
    claims.Rule(
      f'centered_clipping_quantile_{steps}_steps',
      lambda f, unit, steps=steps: byzjax.centered_clipping(
        radius=1.0, quantile=0.5, num_iterations=steps
      ),
      lambda x, v0, f, key, steps=steps: reference.quantile_clipping(
        x, v0, 1.0, 0.5, steps
      ),
      5,
      _quantile_ball(steps),
      start=lambda state, v0: byzjax.CenteredClippingState(v0),
      remembers=True,
    )
    for steps in (1, 3)
  ),
  claims.Rule(
    'nnm_krum',
    lambda f, unit: byzjax.pre_aggregate(_nnm(f), byzjax.krum(num_byzantine=f)),
    lambda x, v0, f, key: reference.krum(
      reference.nearest_neighbor_mixing(x, f), f
    ),
    4,
    claims.robust_ball(claims.kappa_mixed(claims.kappa_krum)),
  ),
  claims.Rule(
    'nnm_coordinate_median',
    lambda f, unit: byzjax.pre_aggregate(_nnm(f), byzjax.coordinate_median()),
    lambda x, v0, f, key: reference.coordinate_median(
      reference.nearest_neighbor_mixing(x, f)
    ),
    5,
    claims.robust_ball(claims.kappa_mixed(claims.kappa_median)),
    rotation=False,
    weighs=False,
  ),
  claims.Rule(
    'nnm_centered_clipping',
    lambda f, unit: byzjax.pre_aggregate(
      _nnm(f), byzjax.centered_clipping(radius=2.0 * unit)
    ),
    lambda x, v0, f, key: reference.centered_clipping(
      reference.nearest_neighbor_mixing(x, f), v0, 2.0, 1
    ),
    5,
    _clipping_ball(2.0, 1),
    start=lambda state, v0: (state[0], byzjax.CenteredClippingState(v0)),
    remembers=True,
  ),
  claims.Rule(
    'bucketing_geometric_median',
    lambda f, unit: byzjax.pre_aggregate(
      byzjax.bucketing(bucket_size=2),
      byzjax.geometric_median(
        # To the float64 digits that the oracle has.
        num_iterations=64,
        smoothing=1e-6 * unit,
      ),
    ),
    _bucketed_median,
    2,
    _bucketed_median_ball,
    permutation=False,  # in distribution only
  ),
]
