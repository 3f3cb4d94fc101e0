"""Coordinate-wise clipping: the largest coordinates are reduced to a bound."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, flat, selection, sorting


def clip_coordinates(
  *,
  fraction: base.Scalar | None = None,
  threshold: base.Scalar | None = None,
) -> optax.GradientTransformation:
  """Clips the largest coordinates of an update to a common magnitude.

  `u_j <- sign(u_j) min(|u_j|, tau)`, where tau is the entry at index `floor(p
  D)`, counted from 0, of all D magnitudes `|u_j|` in decreasing order: the
  `floor(p D)` largest coordinates are clipped (fewer if some are equal). One
  tau is used for the whole model, not one per leaf. If `floor(p D) = 0` nothing
  is clipped; at p = 1 the update is zero.

  A few coordinates often hold most of a gradient, and the loss curves most
  along them: clipping them allows a larger step size (see
  `analysis.directional_sharpness`). The position in the chain determines the
  method:

  ================= =========================================================
  method            chain
  ================= =========================================================
  SGD with momentum `clip_coordinates`, `worker_momentum`, `optax.sgd`
  Adam              `scale_by_clipped_adam`: second moment of the full gradient
  clipped updates   any optimizer, `clip_coordinates`
  ================= =========================================================

  In `robust_round(worker=...)` and under `per_worker` every worker has its own
  tau, from its own update; the server must not compute one tau from all
  messages, because Byzantine workers could move it.

  tau is found by bisection over its bits, in about 32 passes over the update
  for any p. A NaN counts as inf and is not changed, nor is an inf if tau is
  inf: the other coordinates are clipped as usual, and the server masks the
  message.

  Args:
    fraction: p in [0, 1]; may be traced. (A product `p D` that is rounded in a
      traced float32 can differ by one from that in double precision.)
    threshold: tau >= 0 itself, instead of the fraction; may be traced. This is
      `optax.clip`.

  Returns:
    An optax transform without state; leaves keep shape and dtype.

  Raises:
    ValueError: unless exactly one of the two is given, and is in its range.

  References:
    Pan, Li, 2023, arXiv:2306.00204.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.clip_coordinates(fraction=0.25)
    >>> updates = jnp.array([-9., 2., 0.5, -3.])
    >>> print(tx.update(updates, tx.init(updates))[0])
    [-3.   2.   0.5 -3. ]
  """
  name = 'clip_coordinates'
  if (fraction is None) == (threshold is None):
    raise ValueError(
      f'{name} needs either fraction or threshold, got fraction={fraction} and'
      f' threshold={threshold}'
    )
  if fraction is not None:
    checks.check_range(name, 'fraction', fraction, 0, 1)
  if threshold is not None:
    checks.check_range(name, 'threshold', threshold, 0)

  def update_fn(updates, state, params=None):
    del params
    if not jax.tree.leaves(updates):
      return updates, state
    tau = threshold if fraction is None else _threshold(updates, fraction)

    def clip(u):
      bound = jnp.asarray(tau, flat.compute_dtype(u))
      wide = jnp.asarray(u, bound.dtype)
      return jnp.clip(wide, -bound, bound).astype(u.dtype)

    return jax.tree.map(clip, updates), state

  return optax.GradientTransformation(optax.init_empty_state, update_fn)


def _threshold(updates: base.Params, fraction: base.Scalar) -> jax.Array:
  """The size that `floor(fraction D)` coordinates are above, ties aside."""
  sizes = jnp.abs(lax.stop_gradient(flat.row_layout(updates).ravel(updates)))
  # With NaN as threshold every coordinate would be NaN.
  sizes = jnp.where(jnp.isnan(sizes), jnp.inf, sizes)
  keys = sorting.key(sizes)
  count = _count(fraction, sizes.size)
  key = selection.least_key(
    lambda key: jnp.sum(keys > key, dtype=jnp.int32) <= count,
    jnp.zeros([], sizes.dtype),
  )
  # Of sizes no key is below that of zero: there the test holds for all D.
  return lax.bitcast_convert_type(jnp.maximum(key, 0), sizes.dtype)


def _count(fraction: Any, size: int) -> int | jax.Array:
  if isinstance(fraction, int | float):
    return math.floor(fraction * size)
  return jnp.floor(fraction * size).astype(jnp.int32)
