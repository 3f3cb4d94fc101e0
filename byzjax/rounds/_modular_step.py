"""A modular round, step by step: paths, messages, modules."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import (
  base,
  data_attacks,
  draws,
  local,
  reductions,
  round_arguments,
)
from byzjax._src import paths as path_tools
from byzjax.rounds import (
  _cohort,
  _local_steps,
  _modular_server,
  _modular_wire,
  _modular_work,
  _stages,
)
from byzjax.rounds._modular_work import NAME
from byzjax.rounds._sharded_step import rows_here, sharded_step
from byzjax.rounds._work import Cohort
from byzjax.rounds._worker_gradients import over_workers


def step(
  parts: _modular_work.Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round: the local update of every path, then the step of every module."""
  num_paths = len(parts.paths)
  round_arguments.check_batch(NAME, batch, num_paths)
  if parts.takes_slices:
    round_arguments.check_slices(NAME, batch, parts.longest)
  everybody = _cohort.everybody(
    NAME, parts.byzantine_at, parts.weights_at, state.step, num_paths
  )
  if parts.participation is None:
    return cohort_step(parts, state, batch, key, everybody)
  # A score is that of a path, so each is handed out with its data.
  return _cohort.step(
    NAME,
    lambda state, pairs, *rest: cohort_step(parts, state, pairs[1], *rest),
    _of_paths(parts.participation),
    everybody,
    state,
    (jnp.asarray(parts.paths), batch),
    key,
  )


def cohort_step(
  parts: _modular_work.Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
  cohort: Cohort,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round of k paths, of whom the rows of state and batch are.

  They are divided over the devices of the mesh.
  """
  one_round = functools.partial(device_step, parts)
  if parts.mesh is None:
    return one_round(state, batch, key, cohort)
  specs = _modular_work.state_specs(parts, state)
  sharded = sharded_step(one_round, parts.mesh, parts.axis_name, specs)
  return sharded(state, batch, key, cohort)


def device_step(
  parts: _modular_work.Parts,
  state: base.RoundState,
  batch: base.Batch,
  key: jax.Array,
  cohort: Cohort,
) -> tuple[base.RoundState, base.RoundInfo]:
  """A round of k paths, or of this device's paths under `jax.shard_map`."""
  ids, is_byzantine, weights = cohort

  def here(x):
    return rows_here(x, len(ids) // parts.num_shards, parts.axes)

  paths = jnp.asarray(parts.paths)[ids]
  present = jnp.ones(len(ids), bool) if weights is None else weights > 0
  params = state.params
  if parts.axes is not None:
    # Without this, gradients of replicated parameters are silently summed over
    # the devices.
    params = lax.pcast(params, parts.axes, to='varying')
  # Split as in the other rounds, so that the same key draws the same batches.
  keys = jax.random.split(jax.random.fold_in(key, state.step), 5)
  num_steps = parts.steps_at(state.step)
  if num_steps.ndim:
    num_steps = num_steps[ids]
  update = functools.partial(
    _modular_work.local_update, parts, num_steps, state.step
  )
  output = over_workers(NAME, update, parts.worker_map)(
    params,
    here(paths),
    state.workers,
    batch,
    here(data_attacks.ranks(is_byzantine)),
    draws.worker_keys(keys[2], here(ids)),
    here(num_steps) if num_steps.ndim else (),
  )
  up = _modular_wire.up(
    parts, output.messages, state.codec, keys[3], here(ids), here(present)
  )
  sent = _modular_server.aggregate_levels(
    parts,
    # No number, so that attackers do not count who is not there.
    _among_all(parts, ids, up.messages, jnp.nan),
    state,
    keys[1],
    _among_all(parts, ids, is_byzantine, False),
    _weights_of_all(parts, cohort),
  )
  down = _modular_wire.down(parts, sent, state, keys[4], paths, present)
  new_state, masked = _modular_server.server_step(parts, state, down.sent)
  workers = _stages.where_rows(here(present), output.rows, state.workers)
  counted = _local_steps.with_loss(present & ~is_byzantine, num_steps)
  loss = jnp.sum(jnp.where(here(counted), output.loss, 0))
  squares = sum(jnp.sum(jnp.square(level.errors)) for level in sent)
  masked = masked[ids]
  return new_state._replace(
    workers=workers, codec=up.state, server_codec=down.state
  ), base.RoundInfo(
    loss=reductions.psum(loss, parts.axes) / jnp.maximum(jnp.sum(counted), 1),
    aggregation_error=jnp.sqrt(squares),
    bits_up=up.bits,
    bits_down=down.bits,
    num_nonfinite=jnp.sum(masked, dtype=jnp.int32),
    is_byzantine=is_byzantine,
    masked=masked,
    num_local_steps=num_steps,
    num_gradients=parts.training.estimator.count_gradients(num_steps),
    aux=output.aux,
  )


def _of_paths(participation: local.Participation) -> local.Participation:
  """The same draw, from `(path, data)` in place of data."""
  score = participation.score
  if score is None:
    return participation

  def of_path(params, pair):
    path, data = pair
    return score(path_tools.select_path(params, path), data)

  return participation._replace(score=of_path)


def _among_all(
  parts: _modular_work.Parts, ids: jax.Array, rows: Any, fill: Any
) -> Any:
  """Leaves `[k, ...]` as `[P, ...]`, with `fill` for who was not drawn."""
  if parts.participation is None:
    return rows
  return jax.tree.map(
    lambda x: (
      jnp.full((len(parts.paths), *x.shape[1:]), fill, x.dtype).at[ids].set(x)
    ),
    rows,
  )


def _weights_of_all(
  parts: _modular_work.Parts, cohort: Cohort
) -> jax.Array | None:
  """What every path counts, float[P]: 0 for who was not drawn."""
  if parts.participation is None:
    return cohort.weights
  weights = cohort.weights
  if weights is None:
    weights = jnp.ones(len(cohort.ids))
  return _among_all(parts, cohort.ids, weights, 0)
