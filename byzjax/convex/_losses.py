"""The three convex losses of scalar outputs, and their proximal maps."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax._src import base, checks

LOSSES = ('squared', 'hinge', 'logistic')
# Newton's method moves by one a step where a weight is large, to about its log.
_NEWTON_STEPS = 24


def check_loss(name: str, loss: str, y: jax.Array) -> None:
  """Raises ValueError for an unknown loss, or labels that it does not allow."""
  checks.check_choice(name, 'loss', loss, LOSSES)
  if loss == 'squared' or isinstance(y, jax.core.Tracer):
    return
  if not np.isin(np.asarray(y), (-1, 1)).all():
    raise ValueError(
      f'{name} needs y to be -1 or 1 for the {loss} loss, got the values'
      f' {np.unique(np.asarray(y))[:5]}'
    )


def scale(loss: str, num_examples: int) -> float:
  """The factor of the sum over examples: 1 / n for the hinge loss, a mean."""
  return 1 / num_examples if loss == 'hinge' else 1.0


def total(
  loss: str, outputs: jax.Array, y: jax.Array, spread: base.Scalar = 0.0
) -> jax.Array:
  """The largest loss when each output may change by its spread: `[]`."""
  if loss == 'squared':
    each = jnp.square(jnp.abs(outputs - y) + spread) / 2
  elif loss == 'hinge':
    each = jnp.maximum(1 - y * outputs + spread, 0)
  else:
    each = jax.nn.softplus(spread - y * outputs)
  return scale(loss, y.size) * jnp.sum(each)


def gradient_at_zero(loss: str, y: jax.Array) -> jax.Array:
  """The derivative with respect to the outputs, at outputs zero: `[n]`."""
  slope = {'squared': 1.0, 'hinge': 1.0, 'logistic': 0.5}[loss]
  return -slope * scale(loss, y.size) * y


def proximal(
  loss: str, a: jax.Array, y: jax.Array, weight: base.Scalar
) -> jax.Array:
  """`argmin_z weight * l(z, y) + (z - a)^2 / 2`, output by output."""
  if loss == 'squared':
    return (a + weight * y) / (1 + weight)
  margin = y * a
  if loss == 'hinge':
    return y * jnp.clip(1.0, margin, margin + weight)
  return y * _logistic_margin(margin, weight)


def _logistic_margin(a: jax.Array, weight: base.Scalar) -> jax.Array:
  """The root of `m - a - weight * sigmoid(-m)`."""
  # The function increases, concave above zero and convex below. So Newton's
  # method goes to the root in one direction, from zero or a bound beyond it.
  start = jnp.where(
    a >= -weight / 2, jnp.maximum(a, 0), jnp.minimum(a + weight, 0)
  )

  def newton(_, m):
    s = jax.nn.sigmoid(-m)
    return m - (m - a - weight * s) / (1 + weight * s * (1 - s))

  return lax.fori_loop(0, _NEWTON_STEPS, newton, start)


def soft_threshold(a: jax.Array, threshold: jax.Array) -> jax.Array:
  """`sign(a) (|a| - threshold)_+`."""
  return jnp.sign(a) * jnp.maximum(jnp.abs(a) - threshold, 0)


def group_threshold(blocks: jax.Array, threshold: base.Scalar) -> jax.Array:
  """`(1 - threshold / |b|)_+ b` of every vector b on the last axis."""
  norms = jnp.linalg.norm(blocks, axis=-1, keepdims=True)
  kept = norms > threshold
  return jnp.where(kept, 1 - threshold / jnp.where(kept, norms, 1), 0) * blocks
