"""Messages of which not every row has been written into the matrix.

All Byzantine workers mostly send one common row. A rule that reads row by row
or block by block puts it in on the way, where writing it into the matrix would
read and write everything once more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base


class Rows(NamedTuple):
  """A matrix `[n, d]`, to be read by rows or by blocks of columns.

  Attributes:
    x: float[n, d], as it is in memory.
    common: what stands in place of some rows, with a row float[d], or None.
    norms: float[n], `|x_i|^2` of what is in memory, over all devices, or None
      if they are not known yet.
  """

  x: jax.Array
  common: base.CommonRow | None = None
  norms: jax.Array | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    return self.x.shape

  @property
  def dtype(self) -> jnp.dtype:
    return self.x.dtype

  def row(self, i: int | jax.Array) -> jax.Array:
    """Row i, `[d]`; i may be traced."""
    row = _index(self.x, i)
    if self.common is None:
      return row
    return jnp.where(_index(self.common.mask, i), self.common.row, row)

  def columns(self, start: int | jax.Array, width: int) -> 'Rows':
    """A block of columns, `[n, width]`."""
    x = lax.dynamic_slice_in_dim(self.x, start, width, axis=1)
    if self.common is None:
      return Rows(x)
    row = lax.dynamic_slice_in_dim(self.common.row, start, width)
    return Rows(x, self.common._replace(row=row))

  def take(self, index: jax.Array) -> 'Rows':
    """The columns at these places, `[n, len(index)]`."""
    x = self.x[:, index]
    if self.common is None:
      return Rows(x)
    return Rows(x, self.common._replace(row=self.common.row[index]))

  def written(self) -> jax.Array:
    """The whole matrix, `[n, d]`."""
    return self.x if self.common is None else put(self.x, self.common)


def as_rows(x: jax.Array | Rows) -> Rows:
  """A matrix as rows to be read."""
  return x if isinstance(x, Rows) else Rows(x)


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


def _index(x, i):
  return (
    x[i] if isinstance(i, int) else lax.dynamic_index_in_dim(x, i, 0, False)
  )
