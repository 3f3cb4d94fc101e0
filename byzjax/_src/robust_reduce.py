"""A rule instead of the mean of arrays that are already sharded."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from byzjax._src import (
  base,
  checks,
  chunks,
  flat,
  injected,
  layouts,
  ownership,
  worker_sharded,
)

Axes = tuple[str, ...]
# Far from any width that a model may have: what has it is as long as a model.
_PROBE = 104_729
_NAME = 'robust_reduce'


def robust_reduce(
  messages: base.Messages,
  rule: base.Aggregator,
  *,
  worker_axis: str | Axes,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
  specs: Any = None,
  state: Any = None,
  worker_weights: jax.Array | None = None,
  attack: base.Attack | None = None,
  is_byzantine: jax.Array | None = None,
  key: jax.Array | None = None,
  num_chunks: int = 1,
  return_info: bool = False,
) -> Any:
  r"""The robust aggregate of stacked arrays, in the model's own sharding.

  For any rule, what `jnp.mean(x, axis=0)` is for the mean:

  .. math::
    y = \mathrm{rule}(x_1, \ldots, x_n), \qquad
    x: [n, \ldots] \text{ as } P(\mathrm{worker}, \ldots) \to
    y: [\ldots] \text{ as } P(\ldots)

  It replaces `drjax.reduce_mean`, under `jit` or in a program of drjax. Each
  coordinate of the model has one owner, a device that gets this coordinate of
  all n messages: two collectives for all leaves with the same sharding, and for
  rules with distances two sums of n and n x n numbers. For k messages on a
  device of a worker axis of size p, with m numbers of each message there, a
  device sends `(k + 1) m (p - 1) / p` numbers, each in its own dtype, and never
  holds more than its own share. At k = 1 the mean sends as much.

  The guarantee is about *values*: messages may be arbitrary, but the devices
  must run this program unchanged. A device that does not can write anything
  into the coordinates that it owns.

  Args:
    messages: leaves float `[n, *shape]`, with sharding `P(worker_axis, *spec)`.
      n is a multiple of the size of the worker axis.
    rule: an aggregator, such as `byzjax.krum(num_byzantine=2)`.
    worker_axis: the mesh axis, or axes, over which the messages are split.
    mesh: the mesh; None for that of `jax.set_mesh`. The model may be split or
      copied over its other axes.
    specs: the `PartitionSpec` or `NamedSharding` of every leaf of the
      *aggregate*, as of the parameters; or a prefix of such a tree. None reads
      them from the messages, which is possible outside of `jit`, and on meshes
      with explicit axes. If an axis does not divide a dimension, the leaf is
      copied over that axis. Wrong specs do not change the result; they only
      cost time.
    state: for a rule with a state, first `rule.init(params)`; with an attack
      the pair `(rule.init(params), attack.init(params))`. It is sharded as the
      parameters, so it can be saved with them.
    worker_weights: float[n], the weight of each message; 0 if absent.
    attack: what Byzantine workers do to the messages, for experiments.
    is_byzantine: bool[n], required with an attack.
    key: of rules and attacks with randomness; the same on every mesh.
    num_chunks: the number of parts in which coordinates are sent, one after the
      other: more parts need less memory and more time. For rules that treat
      each coordinate apart, and for those that compute weights from distances,
      which then send everything three times, and mask a message whose squared
      norm is too large for its dtype also where the rule is the mean. Not for
      rules that compare angles, nor with a state or an attack.
    return_info: whether to return diagnostics, such as masks and weights.

  Returns:
    The aggregate, leaves `[*shape]` as `P(*spec)`, in their dtypes. With a
    state, `(aggregate, state)`; with `return_info`, followed by an
    `AggregationInfo`.

  Raises:
    ValueError: at trace time, if leaves have different numbers of messages or
      are not floats, n is not a multiple of the worker axis, there is no mesh
      or no such axis, specs are not known or contain the worker axis, a state
      is missing, or the rule cannot run in chunks.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> mesh = jax.make_mesh(
    ...   (1, 1), ('replicas', 'fsdp'),
    ...   axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> delta = {'w': jnp.array([[0., 2.], [1., 2.], [2., 2.], [9e9, -9e9]])}
    >>> byzjax.robust_reduce(
    ...   delta, byzjax.coordinate_median(), mesh=mesh,
    ...   worker_axis='replicas', specs=jax.P('fsdp'))
    {'w': Array([1.5, 2. ], dtype=float32)}
  """
  rule = injected.as_aggregator(_NAME, rule, 'rule')
  if attack is not None:
    checks.check_kind(_NAME, 'attack', attack, base.Attack)
  checks.check_count(_NAME, 'num_chunks', num_chunks, 1)
  mesh, workers = _mesh(mesh), _worker_axes(worker_axis)
  num_devices = _check_axes(mesh, workers)
  n = _check_messages(messages, workers, num_devices)
  others = tuple(a for a in mesh.axis_names if a not in workers)
  specs = _usable_specs(messages, specs, mesh, workers)
  pair = _check_given_state(rule, attack, state)
  if num_chunks > 1:
    chunks.check(_NAME, rule, attack, pair, num_chunks)
    sharded = chunks.chunked(rule, workers, others, num_chunks)
  else:
    sharded = worker_sharded.worker_sharded(
      rule, workers, attack, coordinate_axes=others or None, specs=specs
    )
  server = layouts.attacked(rule, attack)
  told = {'worker_weights': worker_weights, 'key': key}
  if attack is not None:
    told['is_byzantine'] = is_byzantine
  elif is_byzantine is not None:
    told['is_byzantine'] = checks.byzantine_mask(_NAME, is_byzantine, n)
  told = {name: x for name, x in told.items() if x is not None}
  state_specs = _state_specs(server, pair, specs)

  @jax.jit  # Piece by piece, outside of a jit, it would take seconds.
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(_of_rows(specs, workers), state_specs, PartitionSpec()),
    out_specs=(specs, state_specs, PartitionSpec()),
  )
  def reduce(messages, pair, told):
    rows = jax.tree.map(lambda x: x[0], messages)
    if pair is None:
      local = sharded.init(rows)
    else:
      local = _to_owned(server, pair, rows, workers, others)
    aggregate, local, info = sharded.inspect(messages, local, **told)
    if pair is not None:
      pair = _from_owned(server, local, pair, rows, workers, others)
    return aggregate, pair, info

  if all(t == jax.sharding.AxisType.Explicit for t in mesh.axis_types):
    # The types have to say what the specs say; elsewhere XLA sees to it.
    messages = _reshard(messages, mesh, _of_rows(specs, workers))
    pair = pair and _reshard(pair, mesh, state_specs)
    told = _reshard(told, mesh, jax.tree.map(lambda x: PartitionSpec(), told))
  aggregate, pair, info = reduce(messages, pair, told)
  results = [aggregate]
  if state is not None:
    results.append(pair.aggregator if attack is None else tuple(pair))
  if return_info:
    results.append(info)
  return results[0] if len(results) == 1 else tuple(results)


def _mesh(mesh):
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  if mesh is None or not mesh.axis_names:
    raise ValueError(
      f'{_NAME} needs a mesh: give mesh=, or set one by jax.set_mesh'
    )
  if manual := jax.sharding.get_abstract_mesh().manual_axes:
    raise ValueError(
      f'{_NAME} is called outside of shard_map, got a call inside one, over'
      f' {manual}. There, use byzjax.worker_sharded'
    )
  return mesh


def _worker_axes(worker_axis) -> Axes:
  axes = (worker_axis,) if isinstance(worker_axis, str) else worker_axis
  strings = isinstance(axes, tuple) and all(isinstance(a, str) for a in axes)
  if not strings or not axes or len(set(axes)) < len(axes):
    raise ValueError(
      f'{_NAME} needs worker_axis to be the name of a mesh axis, or a tuple of'
      f' different names, got {worker_axis!r}'
    )
  return axes


def _check_axes(mesh, workers) -> int:
  """The number of devices of the worker axes."""
  for axis in workers:
    if axis not in mesh.axis_names:
      raise ValueError(
        f'{_NAME} needs worker_axis to be an axis of the mesh, which has'
        f' {tuple(mesh.axis_names)}, got {axis!r}'
      )
  return math.prod(mesh.shape[axis] for axis in workers)


def _check_messages(messages, workers, num_devices) -> int:
  n = checks.num_workers(f'{_NAME}: messages', messages)
  for path, leaf in jax.tree.leaves_with_path(messages):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f'{_NAME} needs messages of floats, got {leaf.dtype} in'
        f' {checks.name_of(path)}. Leave counters out of the tree'
      )
  if n % num_devices:
    raise ValueError(
      f'{_NAME} needs a number of messages that is a multiple of the'
      f' {num_devices} devices of the worker axis {workers}, got {n}'
    )
  return n


def _usable_specs(messages, specs, mesh, workers):
  """The specs of the aggregate, without axes that do not divide a dimension."""
  if specs is None:
    specs = jax.tree.map_with_path(_read_spec, messages)
  specs = jax.tree.map(
    lambda s: s.spec if isinstance(s, NamedSharding) else s,
    specs,
    is_leaf=lambda s: isinstance(s, NamedSharding | PartitionSpec),
  )
  leaves, treedef = jax.tree.flatten(messages)
  given = ownership.leaf_specs(_NAME, specs, messages)
  usable = [_usable_spec(s, x, mesh, workers) for s, x in zip(given, leaves)]
  return jax.tree.unflatten(treedef, usable)


def _read_spec(path, leaf) -> PartitionSpec:
  """The spec of one row, if the array or its type has it."""
  if isinstance(leaf, jax.core.Tracer):
    sharding = jax.typeof(leaf).sharding
    types = sharding.mesh.axis_types if sharding.mesh.axis_names else ()
    known = any(kind == jax.sharding.AxisType.Explicit for kind in types)
  else:
    sharding = getattr(leaf, 'sharding', None)
    known = isinstance(sharding, NamedSharding)
  if not known or sharding is None:
    raise ValueError(
      f'{_NAME} needs specs=, the PartitionSpecs of the aggregate: the array'
      f' of {checks.name_of(path)} does not have a known sharding'
    )
  return PartitionSpec(*sharding.spec[1:])


def _usable_spec(spec, leaf, mesh, workers) -> PartitionSpec:
  spec = PartitionSpec() if spec is None else spec
  shape = leaf.shape[1:]
  if len(spec) > len(shape):
    raise ValueError(
      f'{_NAME} needs specs of the aggregate, without the axis of the workers,'
      f' got {spec} for an array of shape {list(shape)}'
    )
  parts = []
  for size, part in zip(shape, spec):
    axes = part if isinstance(part, tuple) else (part,) * (part is not None)
    for axis in axes:
      if axis in workers or axis not in mesh.axis_names:
        raise ValueError(
          f'{_NAME} needs specs of the aggregate that name axes of the mesh'
          f' {tuple(mesh.axis_names)} other than the worker axis {workers},'
          f' got {spec}'
        )
    divides = size % math.prod(mesh.shape[axis] for axis in axes) == 0
    parts.append(part if divides else None)
  return PartitionSpec(*parts)


def _of_rows(specs, workers):
  return jax.tree.map(
    lambda spec: PartitionSpec(workers, *spec), specs, is_leaf=_is_spec
  )


def _is_spec(x) -> bool:
  return isinstance(x, PartitionSpec)


def _reshard(tree, mesh, specs):
  return jax.tree.map(
    lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)),
    tree,
    specs,
  )


def _check_given_state(rule, attack, state):
  """The state of `layouts.attacked`, or None if there is none."""
  server = layouts.attacked(rule, attack)
  if state is None:
    if jax.tree.leaves(_probe(server)):
      raise ValueError(
        f'{_NAME} needs state=, because the rule or the attack has a state:'
        ' at first rule.init(params), or with an attack the pair'
        ' (rule.init(params), attack.init(params)); got None'
      )
    return None
  if attack is None:
    return layouts.WorkerShardedState(state, ())
  if not isinstance(state, tuple) or len(state) != 2:
    raise ValueError(
      f'{_NAME} needs state= to be a pair with an attack, (rule.init(params),'
      f' attack.init(params)), got {type(state).__name__}'
    )
  return layouts.WorkerShardedState(*state)


def _probe(server):
  """The state for a model that is one vector, by its shapes."""
  like = jax.ShapeDtypeStruct((_PROBE,), jnp.float32)
  state = jax.eval_shape(server.init, like)
  for leaf in jax.tree.leaves(state):
    if _PROBE in leaf.shape and leaf.shape != (_PROBE,):
      raise ValueError(
        f'{_NAME} needs a state with one number for each coordinate, got'
        f' {server.name}, or an attack, that remembers more than one message'
      )
  return state


def _map_state(server, state, of_model, of_others, *more):
  """Applies a function to the parts of a state that have the model's size."""
  like = _probe(server)
  treedef: Any = jax.tree.structure(like)
  try:
    parts = [treedef.flatten_up_to(tree) for tree in (state, *more)]
  except ValueError as error:
    raise ValueError(
      f'{_NAME} needs state= to be what rule.init(params) returns, got'
      f' {jax.tree.structure(state)}'
    ) from error
  mapped = [
    of_model(*part) if like.shape == (_PROBE,) else of_others(*part)
    for like, *part in zip(jax.tree.leaves(like), *parts)
  ]
  return jax.tree.unflatten(treedef, mapped)


def _state_specs(server, pair, specs):
  if pair is None:
    return PartitionSpec()
  return _map_state(
    server, pair, lambda part: specs, lambda part: PartitionSpec()
  )


def _to_owned(server, pair, rows, workers, others):
  """The state in the layout in which the rule runs: the owned part."""
  split = ownership.split_of(rows, workers, others)
  dtype = flat.row_layout(rows).dtype

  def of_model(part):
    if checks.signature(part) != checks.signature(rows):
      raise ValueError(
        f'{_NAME} needs state= to be for parameters like the messages, got'
        f' {checks.signature(part)}, not {checks.signature(rows)}'
      )
    return ownership.own_part(part, split, dtype)

  return _map_state(server, pair, of_model, lambda part: part)


def _from_owned(server, local, pair, rows, workers, others):
  """Back to the layout of the parameters, with the original dtypes."""
  split = ownership.split_of(rows, workers, others)

  def of_model(vector, like):
    return ownership.from_owners(vector, like, split)

  return _map_state(server, local, of_model, lambda part, like: part, pair)
