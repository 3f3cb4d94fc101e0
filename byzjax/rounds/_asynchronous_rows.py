"""Rows of all workers of an asynchronous round, on one device or on several."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, reductions


def take(rows: Any, i: jax.Array) -> Any:
  """Row i of all leaves."""
  return jax.tree.map(
    lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows
  )


def put(rows: Any, new: Any, i: jax.Array) -> Any:
  """The leaves with a new row i."""
  return jax.tree.map(
    lambda x, y: lax.dynamic_update_index_in_dim(x, y, i, 0), rows, new
  )


def place_of(
  i: jax.Array, num_local: int, axis_name: base.AxisName
) -> tuple[jax.Array, jax.Array]:
  """Whether row i is among the `num_local` rows here, and where, if it is."""
  if axis_name is None:
    return jnp.ones([], bool), i
  return lax.axis_index(axis_name) == i // num_local, i % num_local


def from_device(tree: Any, here: jax.Array, axis_name: base.AxisName) -> Any:
  """What one device has, on all of them; `here` says whether this is it."""
  if axis_name is None:
    return tree
  return jax.tree.map(
    lambda x: reductions.psum(jnp.where(here, x, jnp.zeros_like(x)), axis_name),
    tree,
  )


def take_anywhere(rows: Any, i: jax.Array, axis_name: base.AxisName) -> Any:
  """Row i of leaves that are split by row, on all devices."""
  here, place = place_of(i, _num_local(rows), axis_name)
  return from_device(take(rows, place), here, axis_name)


def put_anywhere(
  rows: Any, new: Any, i: jax.Array, axis_name: base.AxisName
) -> Any:
  """Leaves that are split by row, with a new row i, which all devices have."""
  if axis_name is None:
    return put(rows, new, i)
  here, place = place_of(i, _num_local(rows), axis_name)
  old = take(rows, place)
  return put(
    rows, jax.tree.map(lambda x, y: jnp.where(here, x, y), new, old), place
  )


def _num_local(rows: Any) -> int:
  return jax.tree.leaves(rows)[0].shape[0]
