"""The Gram matrix of messages, and the message that it is taken about.

Inner products of uncentred rows cancel. So a message is subtracted first, one
that no minority can choose, and distances keep their digits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, nonfinite, reductions
from byzjax._src.message_rows import Rows, as_rows

# A centre this much farther, squared, from the middle of the messages than they
# are from each other is replaced: it takes 1e-5 of squared distances.
_FAR = 100.0


def gram_of(
  x: jax.Array | Rows,
  center: jax.Array | None = None,
  *,
  weights: jax.Array | None = None,
  axis_name: base.AxisName = None,
) -> tuple[base.Gram, jax.Array]:
  """The Gram matrix of the rows of `[n, d]`, and the centre [d] it is about.

  `weights` float[n] are those of the workers, a majority of which decides the
  centre; a worker without weight is never it.
  """
  if center is None:
    gram, index = indexed_gram(x, weights=weights, axis_name=axis_name)
    return gram, center_row(x, index, mass_of(gram.mask, weights))
  norms = reductions.squared_norms(x, axis_name=axis_name)
  mask = nonfinite.usable_norms(norms)
  inner = reductions.centered_gram(x, center, mask, axis_name=axis_name)
  gram = base.Gram(inner, jnp.where(mask, norms, 0), mask)
  return weighted_gram(gram, weights), center


def indexed_gram(
  x: jax.Array | Rows,
  *,
  weights: jax.Array | None = None,
  axis_name: base.AxisName = None,
) -> tuple[base.Gram, jax.Array]:
  """The Gram matrix about one of the rows, and the index of this row."""
  norms = reductions.squared_norms(x, axis_name=axis_name)
  mask = nonfinite.usable_norms(norms)
  mass = mass_of(mask, weights)
  index, inner = gram_about_message(
    lambda i: reductions.centered_gram(
      x, center_row(x, i, mass), mask, axis_name=axis_name
    ),
    lower_median_index(norms, mass),
    mass,
  )
  gram = base.Gram(inner, jnp.where(mask, norms, 0), mask)
  return weighted_gram(gram, weights), index


def gram_about_message(
  gram_about: Callable[[jax.Array], jax.Array],
  index: jax.Array,
  mass: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """A Gram matrix around a message that a minority cannot choose.

  A minority can send a message of just the median norm, in another direction.
  Around it squared distances lose about 1e-7 of its squared length, but still
  tell roughly which messages are near a majority. So the matrix is taken again
  around the nearest one. Its distances are better, and may show one that is
  nearer still, for a third matrix. Both are taken only if the one before is too
  far from the middle, but always under `vmap`.

  Args:
    gram_about: `int[] -> float[n, n]`, the matrix around message i.
    index: int[], the message to try first: that of median norm.
    mass: bool[n] or float[n], the votes of the workers; whoever has none is no
      centre.

  Returns:
    The index of the message, int[], and the matrix around it.
  """

  def look(index):
    inner = gram_about(index)
    return index, inner, nearer_index(inner, index, mass)

  def step(_, looked):
    index, _, better = looked
    return lax.cond(better != index, lambda: look(better), lambda: looked)

  first = look(index)
  # The loop is in a branch: it would read the messages even if it did nothing.
  index, inner, _ = lax.cond(
    first[2] != index, lambda: lax.fori_loop(0, 2, step, first), lambda: first
  )
  return index, inner


def nearer_index(
  inner: jax.Array, index: jax.Array, mass: jax.Array
) -> jax.Array:
  """The message of least median distance, if `index` is far from it: int[]."""
  inner = lax.stop_gradient(inner)
  usable = mass > 0
  squared = squared_distances(base.Gram(inner, usable, usable))
  middle = jax.vmap(lambda row: row[lower_median_index(row, mass)])(squared)
  nearest = jnp.argmin(jnp.where(usable, middle, jnp.inf))
  far = inner[nearest, nearest] > _FAR * middle[nearest]
  return jnp.where(far, nearest, index)


def lower_median_index(values: jax.Array, mass: jax.Array) -> jax.Array:
  """Where the (lower) median of those with a mass is: `[n], [n] -> int32[]`.

  The first, in order, up to which half of the mass lies. Of norms, a minority
  cannot choose its length, but it can choose its direction.
  """
  order = jnp.argsort(jnp.where(mass > 0, values, jnp.inf))
  up_to = jnp.cumsum(mass[order].astype(values.dtype))
  return order[jnp.argmax(up_to >= up_to[-1] / 2)]


def center_row(
  x: jax.Array | Rows, index: jax.Array, mass: jax.Array
) -> jax.Array:
  """The message at that index, or zero if nobody has a mass: float[d]."""
  return jnp.where(jnp.any(mass > 0), as_rows(x).row(index), 0)


def mass_of(mask: jax.Array, weights: jax.Array | None) -> jax.Array:
  """The weights of the usable messages, or the mask if all are equal: [n]."""
  return mask if weights is None else jnp.where(mask, weights, 0)


def weighted_gram(gram: base.Gram, weights: jax.Array | None) -> base.Gram:
  """The Gram matrix with the workers' weights, if there are any."""
  if weights is None:
    return gram
  weights = jnp.where(gram.mask, weights, 0).astype(gram.inner.dtype)
  return gram._replace(worker_weights=weights)


def squared_distances(gram: base.Gram) -> jax.Array:
  """The squared distances between messages, from their Gram matrix.

  `D_ij = |x_i - x_j|^2 = K_ii + K_jj - 2 K_ij`, at least zero, and exactly zero
  on the diagonal. The distance to a masked message is a finite number larger
  than any sum of others, with room for a sum over n: so the scores of messages
  with too few usable neighbours can still be compared.

  Args:
    gram: of n messages, as passed to the function of `from_weights`.

  Returns:
    float[n, n].

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> def nearest_to_first(gram):
    ...   distances = byzjax.squared_distances(gram)[0]
    ...   return jnp.zeros(3).at[jnp.argmin(distances[1:]) + 1].set(1)
    >>> rule = byzjax.from_weights(nearest_to_first, selects=True)
    >>> rule(jnp.array([[0.], [5.], [2.]]))
    Array([2.], dtype=float32)
  """
  n = gram.mask.shape[0]
  norms = jnp.diagonal(gram.inner)
  squared = jnp.maximum(norms[:, None] + norms[None] - 2 * gram.inner, 0)
  usable = gram.mask[:, None] & gram.mask[None]
  far = jnp.finfo(squared.dtype).max / (2 * n)
  squared = jnp.where(usable, squared, far)
  return jnp.where(jnp.eye(n, dtype=bool), 0, squared)


def mix_gram(gram: base.Gram, matrix: jax.Array) -> base.Gram:
  """The Gram matrix of `M x` around the same centre: `M K M^T`.

  Args:
    gram: of n messages.
    matrix: float[m, n], rows that sum to one, or to zero for messages that do
      not exist; masked columns are zero.

  Returns:
    The Gram matrix of the m mixed messages.
  """
  inner = reductions.matmul(reductions.matmul(matrix, gram.inner), matrix.T)
  # |c + M y|^2 from |c + y|^2: only the parts linear in M y and c mix.
  norms = reductions.matmul(
    matrix, gram.squared_norms - jnp.diagonal(gram.inner)
  ) + jnp.diagonal(inner)
  mask = jnp.any(matrix != 0, axis=1)
  norms = jnp.where(mask, jnp.maximum(norms, 0), 0)
  return base.Gram(inner, norms, mask, gram.worker_weights)
