"""The state and the step of a round on the devices of a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from byzjax._src import base


def sharded_step(
  step: Callable[..., tuple[base.RoundState, base.RoundInfo]],
  mesh: Mesh | AbstractMesh,
  axis_name: base.AxisName,
  state_specs: base.RoundState,
  by_worker: Sequence[str] = ('aux',),
  batch_specs: PartitionSpec | None = None,
) -> Callable[..., tuple[base.RoundState, base.RoundInfo]]:
  """`step(state, batch, key, who)`, with the workers split over the devices.

  Every device has its own rows of the batch, or what `batch_specs` say. Of the
  info it has the rows of the fields in `by_worker`; the others are the same
  everywhere, as key and who are.
  """
  rows, everywhere = PartitionSpec(axis_name), PartitionSpec()
  info: dict[str, Any] = dict.fromkeys(base.RoundInfo._fields, everywhere)
  info |= dict.fromkeys(by_worker, rows)
  return jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(
      state_specs,
      rows if batch_specs is None else batch_specs,
      everywhere,
      everywhere,
    ),
    out_specs=(state_specs, base.RoundInfo(**info)),
  )


def rows_here(
  rows: jax.Array, num_local: int, axis_name: base.AxisName
) -> jax.Array:
  """Of `[n, ...]`, the same everywhere, the rows of the workers of a device."""
  if axis_name is None:
    return rows
  first = lax.axis_index(axis_name) * num_local
  return lax.dynamic_slice_in_dim(rows, first, num_local)


def place(state: base.RoundState, mesh: Any, specs: Any) -> base.RoundState:
  """The state on the devices of a mesh, inside of jit or outside."""
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  leaves = jax.tree.leaves(state.params)
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return lax.with_sharding_constraint(state, shardings)
  return jax.device_put(state, shardings)
