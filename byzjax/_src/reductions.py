"""Sums over workers and over coordinates: the only file with psum and dots.

Everything here acts on a matrix `[n, d]` of one compute dtype, or on `Rows` of
one. With an `axis_name` the d axis is the local part of coordinates that are
split over the mesh, and sums over d are completed by one `psum`.

Two facts shape the code. XLA:CPU reduces floats over the leading axis 12 to 95
times slower than it reads them, so sums over workers are unrolled into one
elementwise kernel. And inner products of uncentred rows cancel, so every Gram
matrix is taken after a centre is subtracted, inside the loop over blocks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base
from byzjax._src.message_rows import Rows, as_rows

_HIGHEST = lax.Precision.HIGHEST
# Up to this many rows a sum over workers is one unrolled kernel.
MAX_UNROLLED = 128
# Numbers of one block of a Gram matrix: they fit a core's cache, and are enough
# for XLA:CPU to use all cores for their product. And its columns at least.
_BLOCK, _LEAST_COLUMNS = 1 << 17, 2048


def psum(x: jax.Array, axis_name: base.AxisName) -> jax.Array:
  """Completes a sum over coordinates: the identity if they are not split."""
  return x if axis_name is None else lax.psum(x, axis_name)


def squared_norms(
  x: jax.Array | Rows,
  *,
  center: jax.Array | None = None,
  axis_name: base.AxisName = None,
) -> jax.Array:
  """`|x_i - c|^2` for every row: `[n, d] -> [n]`; non-finite rows stay so."""
  rows = as_rows(x)
  scale, common = rows.scale, rows.common
  factors = None if scale is None or center is None else scale.factors

  def norms_of(y, factors):
    if center is not None:
      y = (y if factors is None else factors[:, None] * y) - center[None]
    return psum(jnp.einsum('nd,nd->n', y, y, precision=_HIGHEST), axis_name)

  # XLA:CPU would write out rows that are selected before they are squared.
  norms = rows.norms
  if norms is None or center is not None:
    norms = norms_of(rows.x, factors)
  if common is not None:
    row = common.row[None]
    if factors is not None:
      row = jnp.broadcast_to(row, rows.shape)
    norms = jnp.where(common.mask, norms_of(row, factors), norms)
  if scale is not None:
    if center is None:
      norms *= jnp.square(scale.factors)
    norms = jnp.where(scale.usable, norms, jnp.nan)
  return norms


def finite_rows(
  x: jax.Array | Rows,
  *,
  axis_name: base.AxisName = None,
  known: jax.Array | None = None,
) -> jax.Array:
  """Which rows have only finite entries: `[n, d] -> bool[n]`.

  Where `known`, bool[], is True nothing is read: all that is here is finite.
  """
  rows = as_rows(x)
  if rows.scale is not None:
    return rows.scale.usable & jnp.isfinite(rows.scale.factors)
  if known is not None:
    totals = jnp.zeros(rows.shape[0], rows.dtype)
    if axis_name is not None:
      totals = lax.pcast(totals, axis_name, to='varying')
    totals = lax.cond(known, lambda: totals, lambda: _zero_or_nan(rows))
    return jnp.isfinite(psum(totals, axis_name))
  return jnp.isfinite(psum(_zero_or_nan(rows), axis_name))


def _zero_or_nan(rows: Rows) -> jax.Array:
  # Zero times a finite number is zero, and NaN otherwise. A dot product runs at
  # the speed of memory, where `all(isfinite(x))` does not.
  return _products(rows, jnp.zeros(rows.shape[1], rows.dtype))


def products(
  x: jax.Array | Rows, vector: jax.Array, *, axis_name: base.AxisName = None
) -> jax.Array:
  """`x_i . v` for every row: `[n, d], [d] -> [n]`; non-finite rows stay so."""
  rows = as_rows(x)
  totals = psum(_products(rows, vector), axis_name)
  if rows.scale is not None:
    totals = jnp.where(rows.scale.usable, rows.scale.factors * totals, jnp.nan)
  return totals


def _products(rows: Rows, vector: jax.Array) -> jax.Array:
  # Of what is on this device, and before any scale.
  totals = matmul(rows.x, vector)
  if rows.common is not None:
    total = matmul(rows.common.row[None], vector)
    totals = jnp.where(rows.common.mask, total, totals)
  return totals


def finite_tree(tree: base.Params) -> jax.Array:
  """Whether all leaves have only finite entries: bool[]."""

  def total(x):
    # As above. By columns, for a dot over all of a leaf takes five times as
    # long as the product with a matrix.
    x = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(-1, 1)
    return jnp.sum(matmul(jnp.zeros(x.shape[0], x.dtype), x))

  return jnp.isfinite(sum(map(total, jax.tree.leaves(tree))))


def centered_gram(
  x: jax.Array | Rows,
  center: jax.Array,
  mask: jax.Array,
  *,
  beside: jax.Array | None = None,
  axis_name: base.AxisName = None,
) -> jax.Array:
  """`(x_i - c) . (x_j - c)`: `[n, d] -> [n, n]`, masked rows are zero.

  The rows of `beside` [k, d] come behind these as they are: `[n + k, n + k]`.
  """

  rows, (n, d) = as_rows(x), x.shape
  # Only a CPU's cache wants blocks; an accelerator wants one large kernel.
  size = d
  if jax.default_backend() == 'cpu':
    size = max(block_width(n, _BLOCK), _LEAST_COLUMNS)
    size = min(d, size, max(block_width(8, d), 1024))

  def block_gram(start, width):
    y = rows.columns(start, width).written()
    y -= lax.dynamic_slice_in_dim(center, start, width)[None]
    y = jnp.where(mask[:, None], y, 0)
    if beside is not None:
      more = lax.dynamic_slice_in_dim(beside, start, width, axis=1)
      y = jnp.concatenate([y, more])
    return lax.dot_general(y, y, (((1,), (1,)), ((), ())), precision=_HIGHEST)

  # The first block stands outside of the loop: under shard_map the carry then
  # has the varying type that the body gives it.
  total = block_gram(0, size)
  if d > size:
    total = lax.fori_loop(
      1, d // size, lambda i, total: total + block_gram(i * size, size), total
    )
    if d % size:
      total += block_gram(d - d % size, d % size)
  return psum(total, axis_name)


def block_width(n: int, numbers: int) -> int:
  """The columns of a block of about so many numbers in n rows."""
  # Rows of an odd length are several times slower.
  return max(numbers // n // 256 * 256, 256)


def weighted_sum(
  weights: jax.Array,
  x: jax.Array | Rows,
  of: Callable[[jax.Array], jax.Array] = lambda row: row,
) -> jax.Array:
  """`sum_i w_i of(x_i)`: `[n], [n, d] -> [d]`; rows of weight 0 are not read.

  A row of weight zero may hold NaN or inf: it is left out by `where`, never by
  multiplication, from the sum and from its derivatives.
  """
  rows, n = as_rows(x), x.shape[0]
  if rows.common is not None:
    # The same sum. But rows that another kernel selects in the same way, XLA
    # would write out, for both.
    mask = rows.common.mask & (weights != 0)
    rows = rows._replace(common=rows.common._replace(mask=mask))

  def term(i):
    counts = weights[i] != 0
    # Twice: derivatives must not meet a NaN, and the product stays rounded.
    row = jnp.where(counts, of(rows.row(i)), 0)
    return jnp.where(counts, weights[i] * row, 0)

  def chunk(start, stop):
    total = term(start)
    for i in range(start + 1, stop):
      total += term(i)
    return total

  if n <= MAX_UNROLLED:
    return chunk(0, n)
  return lax.fori_loop(1, n, lambda i, total: total + term(i), term(0))


def weighted_mean(
  shares: jax.Array, x: jax.Array | Rows, max_unrolled: int = MAX_UNROLLED
) -> jax.Array:
  """`sum_i w_i x_i` for w that sum to one: `[n], [n, d] -> [d]`.

  Equal values give that value, bit for bit, which the rounding of the products
  and of their sum does not. More rows than `max_unrolled` are added in a loop,
  which compiles faster and runs slower.
  """
  rows = as_rows(x)
  first = rows.row(jnp.argmax(shares != 0))

  def add(i, carry):
    total, moved = carry
    counts, row = shares[i] != 0, rows.row(i)
    term = jnp.where(counts, shares[i] * row, 0)
    return total + term, moved + shares[i] * jnp.where(counts, row - first, 0)

  n, carry = x.shape[0], (jnp.zeros_like(first), jnp.zeros_like(first))
  if n <= max_unrolled:
    for i in range(n):
      carry = add(i, carry)
  else:
    carry = lax.fori_loop(0, n, add, carry)
  total, moved = carry
  # The value of the first, with the derivative of the sum.
  slope = jnp.where(jnp.isfinite(total), total, 0)
  slope = slope - lax.stop_gradient(slope)
  mean = jnp.where(moved == 0, lax.stop_gradient(first) + slope, total)
  return jnp.where(shares.sum() > 0, mean, 0)


def combine(
  weights: jax.Array, x: jax.Array | Rows, center: jax.Array | None = None
) -> jax.Array:
  """`sum_i w_i x_i`, or `c + sum_i w_i (x_i - c)`: `[n], [n, d] -> [d]`.

  With weights that sum to one both are the same number; the centred form keeps
  the digits that a large common part would take.
  """
  if center is None:
    return weighted_sum(weights, x)
  return center + weighted_sum(weights, x, lambda row: row - center)


def select(weights: jax.Array, x: jax.Array | Rows) -> jax.Array:
  """The one row whose weight is not zero, bit for bit; zero for none."""
  row = as_rows(x).row(jnp.argmax(weights))
  return jnp.where(jnp.any(weights > 0), row, 0)


class Mixture(NamedTuple):
  """`c + M (x - c)` to be read like `Rows`, of mixed rows not yet written.

  Attributes:
    matrix: float[m, n].
    rows: the n messages.
    center: int32[], the index of the message c, which costs no row of memory.
    mask: bool[n], False for messages that are not read.
    exists: bool[m], False for mixed rows of nothing, which are NaN.
  """

  matrix: jax.Array
  rows: Rows
  center: jax.Array
  mask: jax.Array
  exists: jax.Array

  @property
  def shape(self) -> tuple[int, int]:
    return self.matrix.shape[0], self.rows.shape[1]

  @property
  def dtype(self) -> jnp.dtype:
    return self.rows.dtype

  def max_in_kernel(self) -> int:
    """How many of these rows one kernel may take apart: none."""
    # Mixing inside the kernel of a sorting network takes half as long for few
    # rows, but its derivative takes minutes to compile.
    return 0

  def blank(self) -> jax.Array:
    """A row `[d]` to be overwritten, that varies over a mesh as the rows do."""
    # Of the matrix: while that is not known, nothing has to be kept.
    return self.rows.blank() + self.matrix[0, 0]

  def columns(self, start: int | jax.Array, width: int) -> 'Mixture':
    """A block of columns, `[m, width]`."""
    return self._replace(rows=self.rows.columns(start, width))

  def written(self) -> jax.Array:
    """The whole matrix, `[m, d]`."""
    center = self.rows.row(self.center)
    return _mixed(self.matrix, self.rows, center, self.mask, self.exists)


def mix(
  matrix: jax.Array, x: jax.Array | Rows, center: jax.Array, mask: jax.Array
) -> jax.Array:
  """`c + M (x - c)`: `[m, n], [n, d] -> [m, d]`; empty rows of M give NaN."""
  exists = jnp.any(matrix != 0, axis=1)
  return _mixed(matrix, as_rows(x), center, mask, exists)


def _mixed(matrix, rows, center, mask, exists):
  y = jnp.where(mask[:, None], rows.written() - center[None], 0)
  mixed = center[None] + matmul(matrix, y)
  return jnp.where(exists[:, None], mixed, jnp.nan)


def always(x: jax.Array) -> jax.Array:
  """True, which the compiler cannot know: from the first number of x."""
  first = x[(0,) * x.ndim]
  return (first <= jnp.inf) | jnp.isnan(first)


def shares(mask: jax.Array, weights: jax.Array | None = None) -> jax.Array:
  """Weights that sum to one over the mask, and are equal if None are given."""
  weights = mask if weights is None else jnp.where(mask, weights, 0)
  total = weights.sum()
  return weights / jnp.where(total > 0, total, 1)


def rows_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of the rows where `mask`: `[n, d] -> [d]`; zeros if there are none."""
  # Divided before the sum, which may be too large for the dtype.
  return weighted_sum(shares(mask).astype(x.dtype), x)


def rows_std(
  x: jax.Array, mask: jax.Array, mean: jax.Array, *, ddof: int
) -> jax.Array:
  """Standard deviation around `mean` of the rows where `mask`: `[d]`.

  Its derivative is zero where all entries are equal.
  """
  count = jnp.maximum(mask.sum() - ddof, 1).astype(x.dtype)
  squares = weighted_sum(
    mask.astype(x.dtype), x, lambda row: jnp.square(row - mean)
  )
  return sqrt(squares / count)


def materialized(y: Any, always: jax.Array) -> Any:
  """The same arrays, written out before anything reads them.

  XLA:CPU fuses through everything else, `optimization_barrier` too. `always`,
  bool[], must be True, and depend on data, so that no compiler knows it.
  """
  return lax.cond(
    always, lambda y: y, lambda y: jax.tree.map(jnp.zeros_like, y), y
  )


def sqrt(x: jax.Array) -> jax.Array:
  """The root of max(x, 0), with derivative zero if x <= 0."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def hypot(x: jax.Array, y: jax.Array) -> jax.Array:
  """`sqrt(x**2 + y**2)` without overflow; the derivative is zero at zero."""
  zero = (x == 0) & (y == 0)
  return jnp.where(zero, 0, jnp.hypot(jnp.where(zero, 1, x), y))


def distance(
  x: jax.Array, y: jax.Array, *, axis_name: base.AxisName = None
) -> jax.Array:
  """`|x - y|` of two vectors, NaN where one has a NaN: `[d], [d] -> []`."""
  squared = psum(jnp.sum(jnp.square(x - y)), axis_name)
  return jnp.where(jnp.isnan(squared), squared, sqrt(squared))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """`a @ b` in full precision on every backend."""
  return jnp.matmul(a, b, precision=_HIGHEST)
