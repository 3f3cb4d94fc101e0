"""The convex program of a two-layer ReLU network, without its large matrices.

Everywhere `blocks` is float[2, P, d]: `blocks[0]` are the v_i, `blocks[1]` the
w_i. The matrices F = [D_1 X, ..., -D_1 X, ...] and G = diag((2 D_i - I) X) of
the papers are never built. With `R = D^T (v - w)`, the slope of the output at
each example, F is `rows of X . R`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, checks, flat, reductions
from byzjax.convex import _losses


def arrays(
  name: str, x: jax.Array, y: jax.Array | None, arrangements: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """X, y and the arrangements, checked, in the dtype of computations."""
  n, d = jnp.shape(x) if jnp.ndim(x) == 2 else (-1, -1)
  shapes = {
    'x': jnp.shape(x),
    'y': (n,) if y is None else jnp.shape(y),
    'arrangements': jnp.shape(arrangements),
  }
  if d < 1 or shapes['y'] != (n,) or shapes['arrangements'][1:] != (n,):
    raise ValueError(
      f'{name} needs x [n, d], y [n] and arrangements [P, n], got the shapes'
      f' {shapes}'
    )
  dtype = flat.compute_dtype(jnp.result_type(x))
  x = jnp.asarray(x, dtype)
  y = jnp.zeros(n, dtype) if y is None else jnp.asarray(y, dtype)
  return x, y, jnp.asarray(arrangements, dtype)


def slopes(masks: jax.Array, blocks: jax.Array) -> jax.Array:
  """`r_k = sum_i D_i[k] (v_i - w_i)`, float[n, d]."""
  return reductions.matmul(masks.T, blocks[0] - blocks[1])


def slopes_transpose(masks: jax.Array, r: jax.Array) -> jax.Array:
  """The transpose of `slopes`, float[n, d] -> float[2, P, d]."""
  g = reductions.matmul(masks, r)
  return jnp.stack([g, -g])


def fit(x: jax.Array, masks: jax.Array, blocks: jax.Array) -> jax.Array:
  """F applied to the blocks, float[n]."""
  return jnp.sum(x * slopes(masks, blocks), axis=1)


def fit_transpose(x: jax.Array, masks: jax.Array, z: jax.Array) -> jax.Array:
  """`F^T z`, float[2, P, d]."""
  return slopes_transpose(masks, z[:, None] * x)


def slack(x: jax.Array, masks: jax.Array, blocks: jax.Array) -> jax.Array:
  """G applied to the blocks, float[2, P, n]: not negative where feasible."""
  return (2 * masks - 1)[None] * reductions.matmul(blocks, x.T)


def slack_transpose(x: jax.Array, masks: jax.Array, s: jax.Array) -> jax.Array:
  """`G^T s`, float[2, P, d]."""
  return reductions.matmul((2 * masks - 1)[None] * s, x)


def sizes(epsilon: base.Scalar | jax.Array, x: jax.Array) -> jax.Array:
  """Epsilon as float[d]: how far each input may be perturbed."""
  if jnp.shape(epsilon) not in ((), x.shape[1:]):
    raise ValueError(
      f'epsilon must be a number or float[{x.shape[1]}], one for every input,'
      f' got the shape {list(jnp.shape(epsilon))}'
    )
  return jnp.broadcast_to(jnp.asarray(epsilon, x.dtype), x.shape[1:])


def spread(epsilon: jax.Array, r: jax.Array) -> jax.Array:
  """`sum_j epsilon_j |r_j|` over the last axis."""
  return jnp.sum(jnp.abs(r) * jnp.expand_dims(epsilon, range(r.ndim - 1)), -1)


def predict(
  x: jax.Array, arrangements: jax.Array, blocks: jax.Array
) -> jax.Array:
  """The outputs of the convex model on its training examples.

  `sum_i D_i X (v_i - w_i)`. For new inputs, use `recover_network`.

  Args:
    x: X, float[n, d].
    arrangements: bool[P, n].
    blocks: float[2, P, d].

  Returns:
    float[n].

  Raises:
    ValueError: if the shapes are inconsistent.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.predict(
    ...   jnp.array([[1.], [2.]]), jnp.array([[True, False]]),
    ...   jnp.array([[[3.]], [[0.]]]))
    Array([3., 0.], dtype=float32)
  """
  x, _, masks = arrays('predict', x, None, arrangements)
  return fit(x, masks, jnp.asarray(blocks, x.dtype))


def objective(
  blocks: jax.Array,
  x: jax.Array,
  y: jax.Array,
  arrangements: jax.Array,
  *,
  beta: base.Scalar,
  loss: str = 'squared',
  epsilon: base.Scalar | jax.Array = 0.0,
) -> jax.Array:
  """The objective of the convex program, standard or robust.

  `l(sum_i D_i X (v_i - w_i), y) + beta sum_i (|v_i| + |w_i|)`, where l is::

      squared   (1/2) sum_k (|f_k - y_k| + e_k)^2
      hinge     (1/n) sum_k (1 - y_k f_k + e_k)_+
      logistic  sum_k log(1 + exp(-y_k f_k + e_k))

  with `e_k = sum_j epsilon_j |r_kj|`, `r_k = sum_i D_i[k] (v_i - w_i)`: the
  largest loss over inputs in a box around x_k, and the usual loss for epsilon =
  0. Feasible blocks satisfy `(2 D_i - I) X v_i >= sum_j epsilon_j |v_ij|`, and
  likewise for w_i: see `violation`.

  Some implementations use `log(1 + exp(-2 y f))` as the logistic loss: this is
  the same problem with all blocks and beta halved.

  Args:
    blocks: float[2, P, d], the v_i and the w_i.
    x: X, float[n, d].
    y: float[n]; -1 or 1 unless the loss is squared.
    arrangements: bool[P, n].
    beta: `>= 0`; may be traced.
    loss: 'squared', 'hinge' or 'logistic'.
    epsilon: half the side of the box, `>= 0`, a number or float[d] (zero in a
      column of ones); may be traced.

  Returns:
    float[].

  Raises:
    ValueError: if shapes are inconsistent or an argument is out of its range.

  References:
    Pilanci, Ergen, 2020, arXiv:2002.10553; Bai, Gautam, Sojoudi, 2022,
    arXiv:2201.01965.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.objective(
    ...   jnp.array([[[3., 4.]], [[0., 0.]]]), jnp.eye(2), jnp.ones(2),
    ...   jnp.array([[True, True]]), beta=0.1)
    Array(7., dtype=float32)
  """
  _losses.check_loss('objective', loss, y)
  checks.check_range('objective', 'beta', beta, 0)
  checks.check_range('objective', 'epsilon', epsilon, 0, array=True)
  x, y, masks = arrays('objective', x, y, arrangements)
  return value(blocks, x, y, masks, beta, loss, sizes(epsilon, x))


def value(blocks, x, y, masks, beta, loss, epsilon=None) -> jax.Array:
  """`objective` of checked arrays; epsilon is float[d] or None."""
  r = slopes(masks, jnp.asarray(blocks, x.dtype))
  moved = 0.0 if epsilon is None else spread(epsilon, r)
  fitted = _losses.total(loss, jnp.sum(x * r, axis=1), y, moved)
  return fitted + beta * jnp.sum(jnp.linalg.norm(blocks, axis=-1))


def violation(
  blocks: jax.Array,
  x: jax.Array,
  arrangements: jax.Array,
  *,
  epsilon: base.Scalar | jax.Array = 0.0,
) -> jax.Array:
  """The largest violation of a constraint: zero for feasible blocks.

  `max (sum_j epsilon_j |v_ij| - (2 D_i - I) X v_i)_+` over examples, i, and v
  and w. Only if it is zero is the network of `recover_network` the same model.

  Args:
    blocks: float[2, P, d].
    x: X, float[n, d].
    arrangements: bool[P, n].
    epsilon: `>= 0`, a number or float[d]; may be traced.

  Returns:
    float[].

  Raises:
    ValueError: if shapes are inconsistent or epsilon is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.violation(
    ...   jnp.array([[[3.]], [[0.]]]), jnp.array([[1.], [-2.]]),
    ...   jnp.array([[True, True]]))
    Array(6., dtype=float32)
  """
  checks.check_range('violation', 'epsilon', epsilon, 0, array=True)
  x, _, masks = arrays('violation', x, None, arrangements)
  return broken(jnp.asarray(blocks, x.dtype), x, masks, sizes(epsilon, x))


def broken(blocks, x, masks, epsilon=None) -> jax.Array:
  """`violation` of checked arrays; epsilon is float[d] or None."""
  margins = slack(x, masks, blocks)
  if epsilon is not None:
    margins -= spread(epsilon, blocks)[..., None]
  return jnp.maximum(-jnp.min(margins), 0)


def zero_threshold(
  x: jax.Array,
  y: jax.Array,
  arrangements: jax.Array,
  *,
  loss: str = 'squared',
  num_iterations: int = 1000,
) -> jax.Array:
  """The smallest beta for which the optimum has all blocks zero.

  `max_i |P_i(+-X^T D_i g)|`, where -g is the gradient of the loss at outputs of
  zero and P_i projects onto the cone `(2 D_i - I) X v >= 0`. The projections
  are computed by accelerated gradient descent on the multipliers, so the result
  converges from above and is never too small.

  Args:
    x: X, float[n, d].
    y: float[n]; -1 or 1 unless the loss is squared.
    arrangements: bool[P, n].
    loss: 'squared', 'hinge' or 'logistic'.
    num_iterations: a Python int >= 0.

  Returns:
    float[].

  Raises:
    ValueError: if shapes are inconsistent or an argument is out of its range.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import convex
    >>> convex.zero_threshold(
    ...   jnp.array([[2.]]), jnp.array([3.]), jnp.array([[True], [False]]))
    Array(6., dtype=float32)
  """
  _losses.check_loss('zero_threshold', loss, y)
  checks.check_count('zero_threshold', 'num_iterations', num_iterations)
  x, y, masks = arrays('zero_threshold', x, y, arrangements)
  gradient = _losses.gradient_at_zero(loss, y)
  return _largest_projection(x, masks, gradient, num_iterations)


@functools.partial(jax.jit, static_argnames='num_iterations')
def _largest_projection(x, masks, gradient, num_iterations):
  g = -fit_transpose(x, masks, gradient)
  step = 1 / jnp.linalg.norm(x, 2) ** 2

  def descend(k, carry):
    multipliers, ahead = carry
    moved = g + slack_transpose(x, masks, ahead)
    new = jnp.maximum(ahead - step * slack(x, masks, moved), 0)
    return new, new + k / (k + 3) * (new - multipliers)

  start = jnp.zeros((2, *masks.shape), x.dtype)
  multipliers, _ = lax.fori_loop(0, num_iterations, descend, (start, start))
  projected = g + slack_transpose(x, masks, multipliers)
  return jnp.max(jnp.linalg.norm(projected, axis=-1))
