"""The top eigenpair of small symmetric matrices, without LAPACK.

On a CPU `jnp.linalg.eigh` calls LAPACK outside of the compiled program.
Repeated squaring of a matrix needs only matrix products: they batch, run
everywhere, and always converge to the same digits.
"""

import jax
import jax.numpy as jnp

from byzjax._src import reductions


def top_eigenpair(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The largest eigenvalue and a unit eigenvector of a PSD matrix.

  `A^(2^k) / trace` tends to the projection on the top eigenvectors; a column of
  it, polished by two power steps, is the vector v, and `v.A v` the value. If
  the top eigenvalue is not simple, or not to rounding, v is some vector of
  their common space. The zero matrix has the value 0 and the first unit vector.

  Rows and columns of zeros (masked ones) get the entry zero, if another is not
  zero. The eigenvalue has the derivative `v v^T`; the derivative of v is not
  followed.

  Args:
    matrix: float[m, m], symmetric and positive semidefinite (up to rounding),
      finite. `jax.vmap` it for a batch.

  Returns:
    The eigenvalue float[] and the eigenvector float[m].
  """
  vector = _top_eigenvector(jax.lax.stop_gradient(matrix))
  return reductions.matmul(vector, reductions.matmul(matrix, vector)), vector


def _top_eigenvector(matrix):
  m, info = matrix.shape[0], jnp.finfo(matrix.dtype)
  scale = jnp.max(jnp.abs(matrix))
  a = matrix / jnp.where(scale >= info.tiny, scale, 1)

  # The digits of the dtype, and the width of the matrix, in powers of two:
  # what a larger power would still separate is below rounding.
  steps = -info.machep + m.bit_length()

  def is_mixed(carry):
    step, power = carry
    # The trace of the square of the shares is 1 when there is but one.
    purity = jnp.sum(jnp.square(power))
    return (step < steps) & (purity < 1 - m * info.eps)

  def square(carry):
    step, power = carry
    return step + 1, _squared(power)

  _, power = jax.lax.while_loop(is_mixed, square, (0, _squared(a)))
  heaviest = jnp.argmax(jnp.diagonal(power))
  unit = jnp.zeros(m, matrix.dtype).at[heaviest].set(1)
  vector = _normalized(reductions.matmul(power, unit), unit)
  for _ in range(2):
    vector = _normalized(reductions.matmul(a, vector), vector)
  return vector


def _squared(a):
  """`A^2` over its trace, which rounding does not make negative."""
  square = reductions.matmul(a, a.T)
  trace = jnp.trace(square)
  return square / jnp.where(trace > 0, trace, 1)


def _normalized(vector, otherwise):
  norm = reductions.sqrt(jnp.sum(jnp.square(vector)))
  return jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), otherwise)
