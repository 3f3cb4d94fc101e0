"""The gradients of all workers, in one batched program or one by one."""

from collections.abc import Callable

import jax
import numpy as np
from jax import lax

from byzjax._src import local

LossFn = local.LossFn | local.Objective
ValueAndGrad = local.ValueAndGrad


def over_workers(
  name: str, one_worker: Callable, worker_map: str | int
) -> Callable:
  """`one_worker(params, *rows)` for rows with leaves `[n, ...]`."""
  if worker_map == 'vmap':

    def batched(params, *rows):
      return jax.vmap(lambda *one: one_worker(params, *one))(*rows)

    return batched
  if worker_map == 'map':
    batch_size = None
  elif type(worker_map) is int and worker_map > 0:
    batch_size = worker_map
  else:
    raise ValueError(
      f"{name} needs worker_map to be 'vmap', 'map' or a positive int, got"
      f' {worker_map!r}'
    )

  def mapped(params, *rows):
    return lax.map(
      lambda one: one_worker(params, *one), rows, batch_size=batch_size
    )

  return mapped


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
