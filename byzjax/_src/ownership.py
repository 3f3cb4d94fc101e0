"""Who owns which coordinates of messages that are split over a mesh.

Each coordinate of the model has one owner, a device that holds this coordinate
of all workers' messages. Leaves that are copied over an axis are cut there, so
that every coordinate counts once.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from byzjax._src import base, checks, flat, layouts

Axes = tuple[str, ...]


class Group(NamedTuple):
  """The leaves of one dtype that are copied over the same axes of the mesh.

  Attributes:
    copied: those axes; over the other coordinate axes the leaves are split.
    dtype: in which messages travel.
    leaves: their numbers in the tree.
    size: what a device has of one message.
    width: what a device owns of it, after its slice of the copies and its chunk
      for the worker axes; padded.
  """

  copied: Axes
  dtype: jnp.dtype
  leaves: tuple[int, ...]
  size: int
  width: int


class Split(NamedTuple):
  """How messages lie on the mesh.

  Attributes:
    workers, coordinates: the axes of the mesh, by what they split.
    groups: of leaves.
    num_coordinates: d, of the whole model.
  """

  workers: Axes
  coordinates: Axes
  groups: tuple[Group, ...]
  num_coordinates: int


def varying_axes(x: jax.Array) -> frozenset[str]:
  """The axes of the mesh over which a value inside `shard_map` varies."""
  kind = jax.typeof(x)
  kind = getattr(kind, 'manual_axis_type', kind)
  return frozenset(kind.varying if hasattr(kind, 'varying') else kind.vma)


def split_of(rows: base.Params, workers: Axes, cut: Axes) -> Split:
  """How one message, with local leaves `[*shape]`, lies on the mesh."""
  for axis in workers + cut:
    if axis not in jax.sharding.get_abstract_mesh().manual_axes:
      raise ValueError(
        'worker_sharded needs axis_name and coordinate_axes to be axes of the'
        f' shard_map around it, got {axis!r}'
      )
  kinds: list[tuple[Axes, str]] = []
  num_coordinates = 0
  for path, leaf in jax.tree.leaves_with_path(rows):
    varying = varying_axes(leaf)
    unsaid = varying.difference(workers, cut)
    if unsaid:
      raise ValueError(
        f'worker_sharded: messages vary over the mesh axis'
        f' {", ".join(sorted(unsaid))!r} too ({checks.name_of(path)}), which is'
        ' not among the worker axes'
        f' {workers} and the coordinate axes {cut}. Are they split over it?'
        ' Give coordinate_axes=. Do they differ between shards of the data?'
        ' Average them first, by jax.lax.pmean'
      )
    copied = tuple(axis for axis in cut if axis not in varying)
    kinds.append((copied, jnp.dtype(leaf.dtype).name))
    num_coordinates += leaf.size * num_devices(set(cut) & varying)
  groups = []
  for copied, dtype in sorted(set(kinds)):
    leaves = tuple(i for i, k in enumerate(kinds) if k == (copied, dtype))
    size = sum(jax.tree.leaves(rows)[i].size for i in leaves)
    owners = num_devices(workers) * num_devices(copied)
    width = -(-size // owners)
    if not cut:
      width = layouts.padded_size(size, owners) // owners
    groups.append(Group(copied, jnp.dtype(dtype), leaves, size, width))
  return Split(workers, cut, tuple(groups), num_coordinates)


def to_owners(messages: base.Messages, split: Split, dtype: Any) -> jax.Array:
  """From local messages `[n/p, *shape]` to what is owned of all: `[n, m]`."""
  leaves = [_varying_over(x, split.workers) for x in jax.tree.leaves(messages)]
  parts = []
  for group in split.groups:
    rows = [leaves[i].reshape(leaves[i].shape[0], -1) for i in group.leaves]
    x = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
    x = own_copies(x, group, split)
    parts.append(layouts.to_coordinates(x, split.workers).astype(dtype))
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def from_owners(
  aggregate: jax.Array, rows: base.Params, split: Split
) -> base.Params:
  """From what is owned `[m]` to the local aggregate, leaves `[*shape]`."""
  leaves, treedef = jax.tree.flatten(rows)
  start = 0
  for group in split.groups:
    part = aggregate[start : start + group.width]
    start += group.width
    layout = flat.row_layout([leaves[i] for i in group.leaves])
    one = jax.ShapeDtypeStruct((layout.size,), part.dtype)
    like = jax.eval_shape(layout.unravel, one)
    part = part.astype(jnp.result_type(*like))
    whole = layouts.to_everyone(part, group.copied + split.workers)
    for i, leaf in zip(group.leaves, layout.unravel(whole)):
      leaves[i] = leaf
  return jax.tree.unflatten(treedef, leaves)


def own_part(tree: base.Params, split: Split, dtype: Any) -> jax.Array:
  """Of a tree that lies as one message, everywhere: what is owned, [m]."""
  leaves = jax.tree.leaves(tree)
  parts = []
  for group in split.groups:
    rows = [leaves[i].reshape(1, -1).astype(dtype) for i in group.leaves]
    parts.append(_own_chunk(jnp.concatenate(rows, axis=1), group, split))
  return jnp.concatenate(parts)


def own_numbers(rows: base.Params, split: Split, specs: Any) -> jax.Array:
  """The global indices of the coordinates owned here: int32[m].

  In the order of the leaves and, in each, of its elements; d for padding.
  """
  leaves, treedef = jax.tree.flatten(rows)
  given = leaf_specs('worker_sharded', specs, rows)
  numbers, first = [], 0
  for leaf, spec in zip(leaves, given):
    dims = _split_dims(leaf, spec, split.coordinates)
    index, whole = _global_index(leaf.shape, dims)
    numbers.append(first + index.reshape(-1))
    first += whole
  parts = []
  for group in split.groups:
    x = jnp.concatenate([numbers[i] for i in group.leaves])[None]
    parts.append(_own_chunk(x, group, split, fill=split.num_coordinates))
  return jnp.concatenate(parts)


def _own_chunk(x, group, split, fill=0):
  """Of a row `[1, size]` that all workers have, what is owned here."""
  x = own_copies(x, group, split, fill)[0]
  place = lax.axis_index(split.workers) * group.width
  return lax.dynamic_slice_in_dim(x, place, group.width)


def own_copies(
  x: jax.Array, group: Group, split: Split, fill: int = 0
) -> jax.Array:
  """Of copies `[k, size]` each device keeps a slice, padded for its workers."""
  owners = num_devices(group.copied) * num_devices(split.workers)
  padding = group.width * owners - group.size
  x = jnp.pad(x, ((0, 0), (0, padding)), constant_values=fill)
  if not group.copied:
    return x
  width = group.width * num_devices(split.workers)
  first = lax.axis_index(group.copied) * width
  return lax.dynamic_slice_in_dim(x, first, width, axis=1)


def _global_index(shape, dims):
  """Numbers of the elements of a local block, and how many there are in all.

  `dims[j]` are the axes of the mesh that split dimension j, the major first.
  """
  index, whole = jnp.zeros(shape, jnp.int32), 1
  for j, (size, axes) in enumerate(zip(shape, dims)):
    place = jnp.arange(size, dtype=jnp.int32)
    if axes:
      place += lax.axis_index(axes) * size
    size *= num_devices(axes)
    place = place.reshape((-1,) + (1,) * (len(shape) - 1 - j))
    index = index * size + jnp.broadcast_to(place, shape)
    whole *= size
  return index, whole


def _split_dims(leaf, spec, cut) -> list[Axes]:
  """By which axes each dimension of a leaf is split."""
  varying = varying_axes(leaf).intersection(cut)
  if spec is None:
    along_first = tuple(axis for axis in cut if axis in varying)
    return [along_first, *[()] * (leaf.ndim - 1)] if leaf.ndim else []
  parts = [p if isinstance(p, tuple) else (p,) * (p is not None) for p in spec]
  parts = [tuple(a for a in part if a in cut) for part in parts]
  parts += [()] * (leaf.ndim - len(parts))
  if set(sum(parts, ())) != varying or len(parts) > leaf.ndim:
    raise ValueError(
      'worker_sharded needs specs to be those of the messages without their'
      f' worker axis, got {spec} for a leaf of local shape {list(leaf.shape)}'
      f' that is split over {sorted(varying)}'
    )
  return parts


def leaf_specs(name: str, specs: Any, rows: base.Params) -> list[Any]:
  """A spec, or None, for every leaf of `rows`, of which `specs` is a prefix."""
  num_leaves = len(jax.tree.leaves(rows))
  if specs is None:
    return [None] * num_leaves

  def is_spec(x):
    return x is None or isinstance(x, PartitionSpec)

  try:
    return jax.tree.leaves(
      jax.tree.map(
        lambda spec, part: jax.tree.map(lambda _: spec, part),
        specs,
        rows,
        is_leaf=is_spec,
      ),
      is_leaf=is_spec,
    )
  except ValueError as error:
    raise ValueError(
      f'{name} needs specs to be a tree of PartitionSpecs with the'
      f' structure of the messages, or a prefix of it, got {specs}'
    ) from error


def _varying_over(x, axes):
  missing = tuple(axis for axis in axes if axis not in varying_axes(x))
  return lax.pcast(x, missing, to='varying') if missing else x


def is_padded(split: Split) -> bool:
  """Whether something is owned that is no coordinate."""
  owned = sum(
    group.width
    * num_devices(split.workers)
    * num_devices(group.copied)
    * num_devices(set(split.coordinates).difference(group.copied))
    for group in split.groups
  )
  return owned > split.num_coordinates


def num_devices(axes: Iterable[str]) -> int:
  """How many devices there are along axes of the mesh, all together."""
  return math.prod(lax.axis_size(axis) for axis in axes)
