"""Checks of the arguments of rounds, and the forms that they may have."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from byzjax._src import base, checks, data_attacks, injected, parameters


def make_round(
  name: str,
  init: Callable[[base.Params], base.RoundState],
  step: Callable[..., tuple[base.RoundState, base.RoundInfo]],
) -> base.Round:
  """The `Round` of `init(params)` and `step(state, batch, key)`.

  Parameters are checked, and get a fixed dtype, because a weak dtype would
  change in the first step. All of the state is copied, so that it may be
  donated: the caller's parameters must not be, and no buffer may be there
  twice, as where two parts of a state start as the same zeros.
  """

  def checked_init(params, key=None):
    del key  # No round draws its first state.
    parameters.check_parameters(name, params)
    state = init(
      jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(p)), params)
    )
    return jax.tree.map(jnp.copy, state)

  return base.Round(checked_init, step)


def split_attack(attack: Any, kinds: Any = base.Attack) -> tuple[Any, Any]:
  """`(attack on messages, attack on data)`, with None for the missing one.

  A joint attack is both. `kinds` are the types of an attack on messages.
  """
  if isinstance(attack, data_attacks.JointAttack):
    return attack.message_attack, attack.data_attack
  if isinstance(attack, kinds):
    return attack, None
  return None, attack


def check_slots(
  name: str, aggregator: Any, attack: Any, codecs: dict[str, Any]
) -> base.Aggregator:
  """Raises ValueError for an argument of the wrong kind.

  Returns the rule, also if it is inside `optax.inject_hyperparams`.
  """
  rule = injected.as_aggregator(name, aggregator)
  if attack is not None and not callable(attack):
    if not isinstance(attack, base.Attack):
      raise ValueError(
        f'{name} needs attack to be an Attack, a data attack (batch,'
        f' is_byzantine, key) -> batch, or None, got {attack!r}'
      )
  for slot, codec in codecs.items():
    if codec is not None and not isinstance(codec, base.Codec):
      raise ValueError(
        f'{name} needs {slot} to be a Codec or None, got {codec!r}'
      )
  return rule


def check_transforms(name: str, transforms: dict[str, Any]) -> None:
  """Raises unless all are optax transforms, or None, and none is a rule."""
  for slot, transform in transforms.items():
    if transform is not None:
      check_transform(name, slot, transform)


def check_transform(name: str, slot: str, transform: Any) -> None:
  """Raises unless this is an optax transform and no rule."""
  if isinstance(transform, base.Aggregator):
    raise ValueError(
      f'{name} needs {slot} to be an optax transform such as optax.sgd(0.1),'
      f' got the rule {transform!r}: rules belong in aggregator'
    )
  if not (
    callable(getattr(transform, 'init', None))
    and callable(getattr(transform, 'update', None))
  ):
    raise TypeError(
      f'{name} needs {slot} to be an optax transform such as optax.sgd(0.1),'
      f' got {transform!r}'
    )


def check_attackers(name: str, attack: Any, byzantine: Any) -> None:
  """Raises ValueError for an attack without Byzantine workers given."""
  if attack is not None and byzantine is None:
    raise ValueError(
      f'{name} needs byzantine= to be set, such as byzantine=1, where attack='
      ' is given, got None (byzantine=0 for no Byzantine workers)'
    )


def check_byzantine(num_workers: int, num_byzantine: Any) -> None:
  """Raises ValueError unless both are ints and less than half are Byzantine."""
  checks.check_count('byzantine', 'num_workers', num_workers, 1)
  checks.check_count('byzantine', 'num_byzantine', num_byzantine)
  checks.check_majority('byzantine', num_workers, num_byzantine)


def byzantine_schedule(
  name: str, num_workers: int, byzantine: Any
) -> base.ByzantineSchedule:
  """The Byzantine workers, in any form, as a schedule; None for none."""
  if byzantine is None:
    byzantine = 0
  if callable(byzantine):
    return byzantine
  if checks.is_whole(byzantine):
    check_byzantine(num_workers, byzantine)
    first = jnp.arange(num_workers) < byzantine
    return lambda step: first
  traced = isinstance(byzantine, jax.core.Tracer)
  mask = byzantine if traced else np.asarray(byzantine)
  if mask.shape != (num_workers,) or mask.dtype != jnp.bool_:
    raise ValueError(
      f'{name} needs byzantine to be an int, a schedule or'
      f' bool[{num_workers}], got {mask.dtype}{list(mask.shape)}'
    )
  if not traced:
    checks.check_majority('byzantine', num_workers, int(mask.sum()))
  return lambda step: jnp.asarray(mask)


def who_computes(
  num_workers: int,
  attack: base.Attack | None,
  byzantine: Any,
  *,
  codec: base.Codec | None,
  mesh: Any,
  has_aux: bool,
) -> np.ndarray | None:
  """Which workers must compute: bool[n], or None if all of them.

  Byzantine workers need not, if they are known before tracing, the attack does
  not read their messages, and these are not reported: no aux, and no bits of a
  codec. On a mesh each device computes for equally many workers.
  """
  if attack is None or attack.reads_own:
    return None
  if codec is not None or mesh is not None or has_aux:
    return None
  if byzantine is None or callable(byzantine):
    return None
  if isinstance(byzantine, jax.core.Tracer):
    return None
  if checks.is_whole(byzantine):
    return np.arange(num_workers) >= byzantine if byzantine else None
  mask = np.asarray(byzantine)
  return ~mask if mask.any() else None


def byzantine_of(
  name: str,
  schedule: base.ByzantineSchedule,
  step: jax.Array,
  num_workers: int,
) -> jax.Array:
  """The Byzantine workers of a step: bool[n], or a ValueError when traced."""
  mask = jnp.asarray(schedule(step))
  if mask.shape != (num_workers,) or mask.dtype != bool:
    raise ValueError(
      f'{name} needs byzantine(step) to be bool[{num_workers}], got'
      f' {mask.dtype}{list(mask.shape)}'
    )
  return mask


def root_schedule(
  root_batch: Any,
) -> Callable[[jax.Array], base.Batch] | None:
  """The server's root batch, in any form, as a schedule, or None."""
  if root_batch is None or callable(root_batch):
    return root_batch
  return lambda step: root_batch


def check_root(
  name: str,
  root_at: Callable[[jax.Array], base.Batch] | None,
  batch: base.Batch,
) -> None:
  """Raises ValueError unless the root batch is like that of one worker.

  The number of examples may differ.
  """
  if root_at is None:
    return

  def form(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [len(leaf.shape) for leaf in leaves]

  root = jax.eval_shape(root_at, jax.ShapeDtypeStruct((), 'int32'))
  one = jax.eval_shape(lambda b: jax.tree.map(lambda x: x[0], b), batch)
  wanted = form(one)
  if form(root) != wanted:
    raise ValueError(
      f'{name} needs root_batch to be like the batch of one worker, without the'
      f' axis of workers: leaves of {wanted[1]} axes in {wanted[0]}, got the'
      f' shapes {checks.signature(root)[1]} in {form(root)[0]}'
    )


def weight_schedule(
  name: str, num_workers: int, worker_weights: Any
) -> Callable[[jax.Array], jax.Array | None]:
  """The worker weights, in any form, as a schedule; None stays None."""
  if worker_weights is None:
    return lambda step: None
  if callable(worker_weights):

    def checked(step):
      weights = worker_weights(step)
      checks.check_worker_weights(name, weights, num_workers)
      # What is no number is no weight: such a worker does not take part.
      weights = jnp.asarray(weights)
      return jnp.where(jnp.isfinite(weights), weights, 0)

    return checked
  checks.check_worker_weights(name, worker_weights, num_workers)
  weights = jnp.asarray(worker_weights)
  return lambda step: weights


def check_batch(name: str, batch: base.Batch, num_workers: int) -> None:
  """Raises ValueError unless the batch has a row for every worker."""
  rows = checks.num_workers(f'{name}: batch', batch)
  if rows != num_workers:
    raise ValueError(
      f'{name} needs a batch with num_workers={num_workers} rows, got {rows}'
    )


def step_schedule(
  name: str, num_workers: int, num_local_steps: Any
) -> tuple[Callable[[jax.Array], jax.Array], int | None]:
  """Local steps by round, int32[] or int32[n], and their maximum, if known."""
  if callable(num_local_steps):

    def scheduled(step):
      steps = jnp.asarray(num_local_steps(step))
      whole = jnp.issubdtype(steps.dtype, jnp.integer)
      if not whole or steps.shape not in ((), (num_workers,)):
        raise ValueError(
          f'{name} needs num_local_steps(step) to be int32[] or'
          f' int32[{num_workers}], got {steps.dtype}{list(steps.shape)}'
        )
      return steps

    return scheduled, None
  if isinstance(num_local_steps, (int, np.integer)):
    checks.check_count(name, 'num_local_steps', num_local_steps, 1)
    count = int(num_local_steps)
    return lambda step: jnp.asarray(count), count
  lengths = np.asarray(num_local_steps)
  if (
    lengths.ndim != 1
    or not lengths.size
    or not np.issubdtype(lengths.dtype, np.integer)
    or lengths.min() < 0
  ):
    raise ValueError(
      f'{name} needs num_local_steps to be an int, a schedule or the lengths of'
      f' rounds, integers >= 0 [R], got {num_local_steps!r}'
    )
  table = jnp.asarray(lengths, jnp.int32)

  def of_round(step):
    return jnp.take(table, step, mode='fill', fill_value=0)

  return of_round, int(lengths.max())


def check_slices(name: str, batch: base.Batch, longest: int | None) -> None:
  """Raises ValueError unless a round takes S slices or whole passes."""
  lengths = {x.shape[1] if x.ndim > 1 else 0 for x in jax.tree.leaves(batch)}
  if len(lengths) > 1 or 0 in lengths:
    raise ValueError(
      f'{name} needs batch leaves [num_workers, S, ...] with one S for all, got'
      f' the shapes {[x.shape for x in jax.tree.leaves(batch)]}'
    )
  slices = lengths.pop()
  if longest is not None and longest > slices and longest % slices:
    raise ValueError(
      f'{name} needs a slice of the batch for each of num_local_steps={longest}'
      f' local steps, or a number that divides it, got {slices}'
    )


def check_mesh(
  name: str,
  mesh: Any,
  axis_name: Any,
  num_workers: int,
  count: str = 'num_workers',
) -> tuple[Mesh | AbstractMesh | None, int]:
  """The mesh with automatic axes, and the number of shards of workers.

  `(None, 1)` for None. Raises TypeError unless this is a mesh, or None, and
  names of axes; ValueError unless the workers can be split over these axes,
  where `count` says what their number is.
  """
  if mesh is not None and not isinstance(mesh, Mesh | AbstractMesh):
    raise TypeError(
      f'{name} needs mesh to be a jax.sharding.Mesh or None, got {mesh!r}'
    )
  names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
  if not names or not all(isinstance(axis, str) for axis in names):
    raise TypeError(
      f'{name} needs axis_name to be the name of a mesh axis, or a tuple of'
      f' names, got {axis_name!r}'
    )
  if mesh is None:
    return None, 1
  unknown = [axis for axis in names if axis not in mesh.axis_names]
  if unknown:
    raise ValueError(
      f'{name} needs axis_name to be among the axes {mesh.axis_names} of'
      f' the mesh, got {axis_name!r}'
    )
  num_shards = math.prod(mesh.shape[axis] for axis in names)
  if num_workers % num_shards:
    raise ValueError(
      f'{name} needs {count} to be a multiple of the'
      f' {num_shards} devices of mesh axis {axis_name!r}, got {num_workers}'
    )
  auto = (AxisType.Auto,) * len(mesh.axis_names)
  if isinstance(mesh, AbstractMesh):
    return AbstractMesh(
      mesh.axis_sizes, mesh.axis_names, axis_types=auto
    ), num_shards
  return Mesh(mesh.devices, mesh.axis_names, axis_types=auto), num_shards
