"""Pytrees as flat rows: messages become one matrix `[n, d]`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base, checks


class RowLayout(NamedTuple):
  """How to go back from flat rows to the pytree they came from.

  Attributes:
    size: d, the number of coordinates without padding.
    dtype: float32, or float64 if a leaf is float64.
    ravel: `tree with leaves [*shape] -> [d]`.
    unravel: `[d or more] -> tree with leaves [*shape]`, each in its own dtype.
    ravel_rows: `tree with leaves [n, *shape] -> [n, d]`.
    unravel_rows: `[n, d or more] -> tree with leaves [n, *shape]`.
  """

  size: int
  dtype: jnp.dtype
  ravel: Callable[[base.Params], jax.Array]
  unravel: Callable[[jax.Array], base.Params]
  ravel_rows: Callable[[base.Messages], jax.Array]
  unravel_rows: Callable[[jax.Array], base.Messages]


def compute_dtype(*dtypes) -> jnp.dtype:
  """Float64 for float64, float32 for everything else."""
  return jnp.result_type(jnp.float32, *dtypes)


def row_layout(params: base.Params, multiple: int = 1) -> RowLayout:
  """The layout of rows shaped like `params`, zero-padded to a multiple."""
  leaves, treedef = jax.tree.flatten(params)
  _check_real(params)
  shapes = [jnp.shape(leaf) for leaf in leaves]
  dtypes = [jnp.result_type(leaf) for leaf in leaves]
  out_dtypes = [
    t if jnp.issubdtype(t, jnp.floating) else jnp.dtype(jnp.float32)
    for t in dtypes
  ]
  sizes = [math.prod(shape) for shape in shapes]
  size, dtype = sum(sizes), compute_dtype(*dtypes)
  padding = -size % multiple

  def ravel_rows(rows):
    parts = [jnp.asarray(x, dtype) for x in jax.tree.leaves(rows)]
    parts = [x.reshape(x.shape[0], -1) for x in parts]
    if padding:
      parts.append(jnp.zeros((parts[0].shape[0], padding), dtype))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

  def unravel_rows(matrix):
    parts, start = [], 0
    for shape, part_size, out_dtype in zip(shapes, sizes, out_dtypes):
      part = matrix[:, start : start + part_size].astype(out_dtype)
      parts.append(part.reshape(matrix.shape[0], *shape))
      start += part_size
    return jax.tree.unflatten(treedef, parts)

  def ravel(tree):
    return ravel_rows(jax.tree.map(lambda x: jnp.asarray(x)[None], tree))[0]

  def unravel(vector):
    return jax.tree.map(lambda x: x[0], unravel_rows(vector[None]))

  return RowLayout(size, dtype, ravel, unravel, ravel_rows, unravel_rows)


def _check_real(params: base.Params) -> None:
  for path, leaf in jax.tree.leaves_with_path(params):
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
      raise ValueError(
        'byzjax needs real numbers, got the leaf'
        f' {jax.tree_util.keystr(path)!r} of dtype {dtype}: give its real and'
        ' its imaginary part as two leaves'
      )


def ravel_rows(
  name: str, messages: base.Messages
) -> tuple[jax.Array, RowLayout]:
  """Stacked messages as one matrix `[n, d]`, and the way back."""
  checks.num_workers(f'{name}: messages', messages)
  row = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)),
    messages,
  )
  layout = row_layout(row)
  return layout.ravel_rows(messages), layout
