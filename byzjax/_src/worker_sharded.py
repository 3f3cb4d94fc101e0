"""A rule inside `shard_map`: workers, and maybe models, split over devices.

Each coordinate of the model has one owner, a device that holds this coordinate
of all workers' messages, and the rule's `axis_name` is all axes. Leaves that
are copied over an axis are cut there, so that every coordinate counts once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import (
  base,
  checks,
  flat,
  injected,
  layouts,
  ownership,
  recipes,
)


@recipes.factory
def worker_sharded(
  aggregator: base.Aggregator,
  axis_name: str | tuple[str, ...],
  attack: base.Attack | None = None,
  *,
  coordinate_axes: str | tuple[str, ...] | None = None,
  specs: Any = None,
) -> base.Aggregator:
  """A rule for use inside `jax.shard_map`, with workers split over devices.

  One tiled all-to-all converts the messages from worker layout `[n/p, ...]` to
  coordinate layout `[n, d/p]`; attack and rule run there, with psums of n or n
  x n numbers; one all-gather returns the aggregate. For k workers per device
  each device sends `(k + 1) d (p - 1) / p` numbers, at k = 1 the same as an
  all-reduce of the mean.

  If each message is itself split over the mesh (FSDP, tensor parallelism), name
  those axes: `worker_sharded(rule, 'diloco', coordinate_axes=('fsdp',
  'tensor'))`. Norms, distances and inner products are then sums over worker
  *and* coordinate axes. A leaf may be split over all of them, some or none;
  copies count once. With S devices per message, d becomes d / S above; copied
  leaves need collectives of their own.

  The guarantee is about values: it holds for workers that send arbitrary
  numbers, not for devices that run another program.

  Args:
    aggregator: the rule. It must be an `Aggregator`: other optax transforms
      would treat the local coordinates as the whole model.
    axis_name: mesh axis, or axes, over which the workers are split.
    attack: what Byzantine workers do to the messages, or None.
    coordinate_axes: mesh axis, or axes, over which the coordinates of each
      message are split, or copied; None if there are no such axes.
    specs: the `PartitionSpec` of every leaf of the aggregate, or a prefix of
      such a tree: which dimension is split. Only attacks and rules with random
      numbers per coordinate need it, to draw the same numbers on every mesh;
      with None all leaves are taken as split along their first dimension.

  Returns:
    An `Aggregator` whose `update` takes the local messages (leaves `[n/p,
    *local_shape]`), the keyword `is_byzantine` (bool[n] for *all* workers,
    required with an attack), `key` and, for rules that take it, `trusted`
    (leaves `[*local_shape]`), the same on all devices of the workers. The
    aggregate (leaves `[*local_shape]`) is the same along the worker axes, and
    along those over which a leaf is copied. `init` must also run inside the
    shard_map; its state is split over coordinates: leaves `[m]` with out_specs
    `P((*worker axes, *coordinate axes))`.

  Raises:
    ValueError: if `aggregator` is not an `Aggregator`, or an axis is named
      twice; at trace time, if the mesh has no such axis, if messages vary over
      an axis that is not named, or do not vary over a worker axis (always so
      under `check_vma=False`), or if `specs` contradict the types of the
      messages.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> mesh = jax.make_mesh(
    ...   (1, 1), ('workers', 'fsdp'),
    ...   axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> rule = byzjax.worker_sharded(
    ...   byzjax.krum(num_byzantine=1), 'workers', coordinate_axes='fsdp')
    >>> @jax.jit
    ... @jax.shard_map(mesh=mesh, in_specs=jax.P('workers', 'fsdp'),
    ...                out_specs=jax.P('fsdp'))
    ... def aggregate(messages):
    ...   params = jnp.zeros_like(messages[0])
    ...   return rule.update(messages, rule.init(params))[0]
    >>> x = jnp.array([[0., 9.], [1., 8.], [2., 8.], [1., 7.], [50., 7.]])
    >>> aggregate(x)
    Array([1., 8.], dtype=float32)
  """
  aggregator = injected.as_aggregator('worker_sharded', aggregator)
  if attack is not None:
    checks.check_kind('worker_sharded', 'attack', attack, base.Attack)
  workers = _axes('axis_name', axis_name)
  cut = _axes(
    'coordinate_axes', () if coordinate_axes is None else coordinate_axes
  )
  axes = workers + cut
  if not workers or len(set(axes)) < len(axes):
    raise ValueError(
      'worker_sharded needs a worker axis, and each axis to be named once, in'
      f' axis_name or in coordinate_axes, got {axis_name!r} and'
      f' {coordinate_axes!r}'
    )
  server = layouts.attacked(aggregator, attack)

  def init(params):
    split = ownership.split_of(params, workers, cut)
    dtype = flat.row_layout(params).dtype
    zeros = jnp.zeros(sum(group.width for group in split.groups), dtype)
    return server.init(lax.pcast(zeros, axes, to='varying'))

  def inspect(messages, state, params=None, *, axis_name=None, **extra: Any):
    del params, axis_name
    checks.num_workers('worker_sharded: messages', messages)
    _check_workers(messages, workers)
    rows = jax.tree.map(lambda x: x[0], messages)
    split = ownership.split_of(rows, workers, cut)
    layout = flat.row_layout(rows)
    _check_state(server, state, split, layout.dtype)
    owned = ownership.to_owners(messages, split, layout.dtype)
    numbers = true = None
    if cut or len(split.groups) > 1:
      numbers = ownership.own_numbers(rows, split, specs)
      if ownership.is_padded(split):
        true = numbers < split.num_coordinates
    elif ownership.is_padded(split):
      true = layouts.columns(owned.shape[1], split.num_coordinates, axes)
    if extra.get('trusted') is not None:
      checks.check_trusted('worker_sharded', extra['trusted'], rows)
      extra['trusted'] = ownership.own_part(
        extra['trusted'], split, layout.dtype
      )
    aggregate, state, info = server.inspect(
      owned,
      state,
      axis_name=axes,
      columns=None if true is None else true[None],
      num_coordinates=split.num_coordinates,
      coordinates=numbers,
      **extra,
    )
    return ownership.from_owners(aggregate, rows, split), state, info

  return base.Aggregator(init, inspect, name=aggregator.name)


def _check_workers(messages, workers):
  """Raises ValueError unless the rows differ between devices."""
  varying = set().union(*map(ownership.varying_axes, jax.tree.leaves(messages)))
  missing = [axis for axis in workers if axis not in varying]
  if missing:
    raise ValueError(
      'worker_sharded needs messages that vary over the worker axis'
      f' {missing[0]!r} of axis_name, got the same rows on all its devices. Is'
      ' it in the in_specs of the messages? (With check_vma=False this cannot'
      ' be seen: leave it True. Rows that are meant to be the same:'
      ' jax.lax.pcast(messages, axis_name, to="varying").)'
    )


def _check_state(server, state, split, dtype):
  """Raises ValueError for the state of an `init` with other local leaves."""
  width = sum(group.width for group in split.groups)
  like = jax.ShapeDtypeStruct((width,), dtype)
  wanted = jax.tree.map(jnp.shape, jax.eval_shape(server.init, like))
  found = jax.tree.map(jnp.shape, state)
  if found != wanted:
    raise ValueError(
      'worker_sharded needs the state that its init returns for the local'
      ' parameters, inside the same shard_map and split as the messages are,'
      f' with the shapes {wanted}, got {found}'
    )


def _axes(name, value) -> ownership.Axes:
  axes = (value,) if isinstance(value, str) else value
  strings = isinstance(axes, tuple) and all(isinstance(a, str) for a in axes)
  if not strings:
    raise ValueError(
      f'worker_sharded needs {name} to be the name of a mesh axis, or a tuple'
      f' of names, got {value!r}'
    )
  return axes
