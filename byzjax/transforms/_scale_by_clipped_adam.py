"""Adam with coordinate-wise clipping of the first moment."""

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat
from byzjax.transforms._clip_coordinates import clip_coordinates


def scale_by_clipped_adam(
  *,
  fraction: base.Scalar = 0.5,
  b1: base.Scalar = 0.9,
  b2: base.Scalar = 0.999,
  eps: base.Scalar = 1e-8,
) -> optax.GradientTransformation:
  """Adam whose first moment averages gradients with clipped coordinates.

  `m_t = b1 m_{t-1} + (1 - b1) clip(g_t)`, `v_t = b2 v_{t-1} + (1 - b2) g_t^2`,
  and the update is `(m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)`, with
  `clip` that of `clip_coordinates(fraction=p)`. The second moment uses the
  gradient before clipping: after clipping it would be small in the clipped
  coordinates, and the division would undo the clipping. With p = 0 this is
  `optax.scale_by_adam`.

  A whole optimizer is `optax.chain(scale_by_clipped_adam(),
  optax.scale_by_learning_rate(eta))`. A NaN of the gradient stays in the
  moments of its coordinate, and an inf in the second one, as in Adam.

  All arguments may be traced.

  Args:
    fraction: p in [0, 1], the share of coordinates that are clipped.
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the root, >= 0.

  Returns:
    An optax transform with an `optax.ScaleByAdamState`; updates keep shape and
    dtype, and the moments are kept in float32 at least.

  Raises:
    ValueError: if an argument is out of range.

  References:
    Pan, Li, 2023, arXiv:2306.00204; Kingma, Ba, 2015, arXiv:1412.6980.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> tx = byzjax.scale_by_clipped_adam(fraction=0.25, b2=0.75, eps=0.0)
    >>> g = jnp.array([8., -2., 1., 0.5])
    >>> print(tx.update(g, tx.init(g))[0].round(2))
    [ 0.25 -1.    1.    1.  ]
  """
  name = 'scale_by_clipped_adam'
  checks.check_range(name, 'fraction', fraction, 0, 1)
  checks.check_momentum(name, 'b1', b1)
  checks.check_momentum(name, 'b2', b2)
  checks.check_range(name, 'eps', eps, 0)
  clip = clip_coordinates(fraction=fraction)

  def init_fn(params):
    def zeros(p):
      return jnp.zeros(jnp.shape(p), flat.compute_dtype(p))

    return optax.ScaleByAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=jax.tree.map(zeros, params),
      nu=jax.tree.map(zeros, params),
    )

  def update_fn(updates, state, params=None):
    del params
    gradient = optax.tree.cast_like(updates, state.mu)
    clipped, _ = clip.update(gradient, optax.EmptyState())
    mu = optax.tree.update_moment(clipped, state.mu, b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(gradient, state.nu, b2, 2)
    count = optax.safe_increment(state.count)
    scaled = jax.tree.map(
      lambda m, v: m / (jnp.sqrt(v) + eps),
      optax.tree.bias_correction(mu, b1, count),
      optax.tree.bias_correction(nu, b2, count),
    )
    return optax.tree.cast_like(scaled, updates), optax.ScaleByAdamState(
      count=count,
      mu=optax.tree.cast_like(mu, state.mu),
      nu=optax.tree.cast_like(nu, state.nu),
    )

  return optax.GradientTransformation(init_fn, update_fn)
