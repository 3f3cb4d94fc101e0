"""The linear system of all iterations, factorised once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import linalg

from byzjax._src import base, reductions
from byzjax.convex import _problem


class Factors(NamedTuple):
  """Cholesky factors of `A = I + G^T G + w F^T F (+ M^T M)`.

  `G^T G` is the same `X^T X` in every block, and `F^T F` has rank n and acts on
  v - w alone. So A is `B = I + X^T X` in every block, plus a correction of n or
  P d dimensions, whichever is less, instead of 2 P d.

  Attributes:
    block: float[d, d], of B.
    examples: float[n, n], of `I / w + F B^-1 F^T`, or None.
    differences: float[P d, P d], of A on `v - w`, or None.
  """

  block: jax.Array
  examples: jax.Array | None
  differences: jax.Array | None


def factorize(
  x: jax.Array,
  masks: jax.Array,
  weight: base.Scalar,
  *,
  slope_terms: bool = False,
) -> Factors:
  """The factors; `slope_terms` adds `M^T M`, M the map to `slopes`."""
  (p, n), d = masks.shape, x.shape[1]
  dense = jnp.eye(d, dtype=x.dtype) + reductions.matmul(x.T, x)
  block = jnp.linalg.cholesky(dense)
  if n <= p * d and not slope_terms:
    kernel = reductions.matmul(x, linalg.cho_solve((block, True), x.T))
    shared = reductions.matmul(masks.T, masks)
    matrix = jnp.eye(n, dtype=x.dtype) / weight + 2 * kernel * shared
    return Factors(block, jnp.linalg.cholesky(matrix), None)
  columns = (masks.T[:, :, None] * x[:, None, :]).reshape(n, p * d)
  matrix = jnp.kron(jnp.eye(p, dtype=x.dtype), dense)
  matrix += 2 * weight * reductions.matmul(columns.T, columns)
  if slope_terms:
    overlap = reductions.matmul(masks, masks.T)
    matrix += 2 * jnp.kron(overlap, jnp.eye(d, dtype=x.dtype))
  return Factors(block, None, jnp.linalg.cholesky(matrix))


def solve(
  factors: Factors, x: jax.Array, masks: jax.Array, rhs: jax.Array
) -> jax.Array:
  """`A^-1 rhs`, float[2, P, d]."""

  def by_block(g):
    flat = g.reshape(-1, g.shape[-1])
    return linalg.cho_solve((factors.block, True), flat.T).T.reshape(g.shape)

  if factors.examples is not None:
    u = by_block(rhs)
    z = _problem.fit(x, masks, u)
    z = linalg.cho_solve((factors.examples, True), z)
    return u - by_block(_problem.fit_transpose(x, masks, z))
  assert factors.differences is not None
  sums = by_block(rhs[0] + rhs[1])
  differences = (rhs[0] - rhs[1]).reshape(-1)
  differences = linalg.cho_solve((factors.differences, True), differences)
  differences = differences.reshape(sums.shape)
  return jnp.stack([sums + differences, sums - differences]) / 2
