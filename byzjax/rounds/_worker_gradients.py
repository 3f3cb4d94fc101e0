"""Functions of one worker for all, in one batched program or one by one."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax._src import base, flat, local
from byzjax.transforms import per_worker

LossFn = local.LossFn | local.Objective
ValueAndGrad = local.ValueAndGrad


def check_worker_map(name: str, worker_map: str | int) -> str | int:
  """The argument; ValueError unless it says how workers are computed."""
  is_count = type(worker_map) is int and worker_map > 0
  if worker_map in ('vmap', 'map') or is_count:
    return worker_map
  raise ValueError(
    f"{name} needs worker_map to be 'vmap', 'map' or a positive int, got"
    f' {worker_map!r}'
  )


def over_workers(
  name: str, one_worker: Callable, worker_map: str | int
) -> Callable:
  """`one_worker(params, *rows)` for rows with leaves `[n, ...]`."""
  check_worker_map(name, worker_map)

  def batched(params, *rows):
    return jax.vmap(lambda *one: one_worker(params, *one))(*rows)

  def mapped(params, *rows):
    batch_size = worker_map if isinstance(worker_map, int) else None
    return lax.map(
      lambda one: one_worker(params, *one), rows, batch_size=batch_size
    )

  return batched if worker_map == 'vmap' else mapped


def only_for(computes: np.ndarray | None, over_all: Callable) -> Callable:
  """`over_all(params, *rows)`, computed for those workers only, bool[n].

  The results still have n rows: those of the others are copies of a row that
  was computed. None is everybody.
  """
  if computes is None:
    return over_all
  ids = np.flatnonzero(computes)
  copied = np.maximum(np.cumsum(computes) - 1, 0)

  def take(x):
    # A slice where it is one, for a gather of all examples is slow.
    if ids[-1] - ids[0] == len(ids) - 1:
      return x[ids[0] : ids[-1] + 1]
    return x[ids]

  def over_some(params, *rows):
    results = over_all(params, *jax.tree.map(take, rows))
    return jax.tree.map(lambda x: x[copied], results)

  return over_some


class _Chained(Protocol):
  """Parts of a work that have a worker chain."""

  @property
  def chain(self) -> optax.GradientTransformation: ...

  @property
  def byzantine_chain(self) -> bool: ...


def worker_messages(
  parts: _Chained,
  gradients: jax.Array,
  state: base.State,
  params: base.Params,
  is_byzantine: jax.Array,
) -> tuple[jax.Array, base.State]:
  """Gradients float[k, d] behind the chain of every worker."""
  chain = per_worker(parts.chain, gradients.shape[0])
  vector = flat.row_layout(params).ravel(params)
  messages, state = chain.update(gradients, state, vector)
  if not parts.byzantine_chain:
    messages = jnp.where(is_byzantine[:, None], gradients, messages)
  return messages, state
