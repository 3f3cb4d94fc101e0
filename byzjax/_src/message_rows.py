"""Messages of which not every row has been written into the matrix.

Often all Byzantine workers send one common row, and some pre-aggregators scale
messages. A rule that reads row by row or block by block applies both while it
reads; to write them into the matrix first would cost another pass.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base

# With two more operations to each row, a sorting network of more is larger than
# what XLA compiles well.
_MAX_SCALED = 100


class Scale(NamedTuple):
  """Factors of the rows.

  Attributes:
    factors: float[n].
    usable: bool[n], False for rows that are NaN instead. All entries of the
      others are finite.
  """

  factors: jax.Array
  usable: jax.Array


class Rows(NamedTuple):
  """A matrix `[n, d]`, to be read by rows or by blocks of columns.

  Attributes:
    x: float[n, d], as it is in memory.
    common: what stands in place of some rows, with a row float[d], or None.
    norms: float[n], `|x_i|^2` of what is in memory, over all devices, or None
      if they are not known yet.
    scale: factors of all rows, also of the common one, or None.
  """

  x: jax.Array
  common: base.CommonRow | None = None
  norms: jax.Array | None = None
  scale: Scale | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    return self.x.shape

  @property
  def dtype(self) -> jnp.dtype:
    return self.x.dtype

  def max_in_kernel(self) -> int:
    """How many of these rows one kernel may take apart."""
    return 1 << 30 if self.scale is None else _MAX_SCALED

  def row(self, i: int | jax.Array) -> jax.Array:
    """Row i, `[d]`; i may be traced."""
    row = _index(self.x, i)
    if self.common is not None:
      row = jnp.where(_index(self.common.mask, i), self.common.row, row)
    if self.scale is not None:
      scaled = _index(self.scale.factors, i) * row
      row = jnp.where(_index(self.scale.usable, i), scaled, jnp.nan)
    return row

  def blank(self) -> jax.Array:
    """A row `[d]` to be overwritten, that varies over a mesh as the rows do."""
    return jnp.zeros_like(self.x[0])

  def columns(self, start: int | jax.Array, width: int) -> 'Rows':
    """A block of columns, `[n, width]`."""
    return self._of_columns(
      lambda x: lax.dynamic_slice_in_dim(x, start, width, axis=-1)
    )

  def take(self, index: jax.Array) -> 'Rows':
    """The columns at these places, `[n, len(index)]`."""
    return self._of_columns(lambda x: x[..., index])

  def written(self) -> jax.Array:
    """The whole matrix, `[n, d]`."""
    x = self.x if self.common is None else put(self.x, self.common)
    if self.scale is None:
      return x
    scaled = self.scale.factors[:, None] * x
    return jnp.where(self.scale.usable[:, None], scaled, jnp.nan)

  def scaled(self, factors: jax.Array, usable: jax.Array) -> 'Rows':
    """The rows times factors, NaN where they are not usable."""
    factors = factors.astype(self.dtype)
    if self.scale is not None:
      factors, usable = self.scale.factors * factors, self.scale.usable & usable
    return self._replace(scale=Scale(factors, usable))

  def _of_columns(self, part):
    common = self.common and self.common._replace(row=part(self.common.row))
    return Rows(part(self.x), common, scale=self.scale)


def put(messages: base.Messages, common: base.CommonRow) -> base.Messages:
  """The messages with the common row written in; leaves keep their dtype."""

  def write(leaf, row):
    mask = common.mask.reshape((-1,) + (1,) * (jnp.ndim(leaf) - 1))
    return jnp.where(mask, row[None], leaf)

  return jax.tree.map(write, messages, in_dtypes_of(messages, common.row))


def in_dtypes_of(messages: base.Messages, row: base.Aggregate) -> Any:
  """A row as it is once it has been written into the messages."""

  def cast(leaf, row):
    dtype = jnp.result_type(leaf)
    return row.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else row

  return jax.tree.map(cast, messages, row)


def as_rows(x: Any) -> Rows:
  """A matrix, or a mixture, which is then written out, as rows to be read."""
  if isinstance(x, Rows):
    return x
  return Rows(x.written() if hasattr(x, 'written') else x)


def _index(x, i):
  if isinstance(i, int):
    return x[i]
  return lax.dynamic_index_in_dim(x, i, keepdims=False)
