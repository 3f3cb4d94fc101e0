"""Directional sharpness: the curvature of a loss along a direction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, flat, loss_forms
from byzjax.transforms import normalize_by_global_norm

LossFn = Callable[[base.Params, base.Batch], jax.Array]


def directional_sharpness(
  loss_fn: LossFn,
) -> Callable[[base.Params, base.Batch, base.Params], jax.Array]:
  """The curvature of a loss along a direction, by a Hessian-vector product.

  `S(v) = <v, H v> / |v|^2` with `H = nabla^2 f(x)`, the second derivative at x
  along `v / |v|`. It does not depend on the length or the sign of v, and lies
  between the smallest and the largest eigenvalue of H. With `g = nabla f(x)`
  the loss near x is `f(x + s v / |v|) = f(x) + s <g, v> / |v| + s^2 S(v) / 2`.
  If S is positive, no step along v decreases this quadratic model by more than
  `<g, v>^2 / (2 S(v) |v|^2)`: of two directions equally aligned with the
  gradient, the one with the smaller S allows the longer step. For an unbiased
  estimate use another batch than the one from which v was computed.

  It costs about two gradients, and forms no matrix. For several directions,
  `jax.vmap(..., (None, None, 0))` over a tree with leaves `[k, *shape]` shares
  the gradient. Everything is computed in float32 at least, with matrix products
  at full precision. The loss must be deterministic: turn off dropout and other
  random draws.

  Args:
    loss_fn: `(params, batch) -> scalar`, twice differentiable in params.

  Returns:
    `(params, batch, direction) -> S`, float[]; the direction is a tree shaped
    like params, and its length does not matter. NaN for v = 0. It raises a
    ValueError at trace time for a direction of another shape.

  References:
    Pan, Li, 2023, arXiv:2306.00204; the product: Pearlmutter, 1994,
    doi:10.1162/neco.1994.6.1.147.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> sharpness = byzjax.analysis.directional_sharpness(
    ...   lambda x, scales: jnp.sum(scales * x ** 2) / 2)
    >>> scales = jnp.array([1., 100.])
    >>> for v in ([5., 0.], [0., -5.], [3., 4.]):
    ...   print(f'{sharpness(jnp.ones(2), scales, jnp.array(v)):.2f}')
    1.00
    100.00
    64.36
  """

  loss_forms.check_signature('directional_sharpness', loss_fn, needs_key=False)

  def sharpness(params, batch, direction):
    gradient = jax.grad(lambda x: loss_fn(x, batch))
    v = _unit('directional_sharpness', direction, params)
    with jax.default_matmul_precision('highest'):
      _, product = jax.jvp(gradient, (_widened(params),), (v,))
    squared_norm = optax.tree.vdot(v, v)
    # Not 1, but for rounding errors; and zero for no direction.
    return optax.tree.vdot(v, product) / squared_norm

  return sharpness


def loss_along_direction(
  loss_fn: LossFn,
) -> Callable[[base.Params, base.Batch, base.Params, jax.Array], jax.Array]:
  """The loss at given distances from the parameters along a direction.

  `f(x + s_i v / |v|)` for every s_i: a section of the loss landscape. Its
  minimum on a fine grid is what the best step along v could achieve, without
  the quadratic model of `directional_sharpness`.

  Args:
    loss_fn: `(params, batch) -> scalar`.

  Returns:
    `(params, batch, direction, distances float[k]) -> float[k]`; the direction
    is a tree shaped like params. Losses are computed one after another, in the
    memory of one, and in float32 at least. With v = 0 all are the loss at x. It
    raises a ValueError at trace time for a direction of another shape.

  References:
    Pan, Li, 2023, arXiv:2306.00204.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> losses = byzjax.analysis.loss_along_direction(
    ...   lambda x, batch: jnp.sum(x ** 2))
    >>> x = jnp.array([5., 0.])
    >>> print(losses(x, None, -x, jnp.array([0., 5., 10.])))
    [25.  0. 25.]
  """

  loss_forms.check_signature('loss_along_direction', loss_fn, needs_key=False)

  def losses(params, batch, direction, distances):
    x = _widened(params)
    v = _unit('loss_along_direction', direction, params)

    def at(distance):
      return loss_fn(
        jax.tree.map(lambda p, d: p + distance.astype(p.dtype) * d, x, v),
        batch,
      )

    return lax.map(at, distances)

  return losses


def _widened(tree: base.Params) -> base.Params:
  return jax.tree.map(lambda x: jnp.asarray(x, flat.compute_dtype(x)), tree)


def _unit(
  name: str, direction: base.Params, params: base.Params
) -> base.Params:
  """The direction with length one, in the types of `_widened(params)`."""
  found, wanted = checks.signature(direction), checks.signature(params)
  if found != wanted:
    raise ValueError(
      f'{name} needs direction to be like params, with leaves of the shapes'
      f' {wanted[1]} in {wanted[0]}, got {found[1]} in {found[0]}'
    )
  wide = optax.tree.cast_like(direction, _widened(params))
  return normalize_by_global_norm().update(wide, optax.EmptyState())[0]
