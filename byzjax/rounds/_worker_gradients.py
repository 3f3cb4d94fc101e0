"""The gradients of all workers, in one batched program or one by one."""

from collections.abc import Callable

import jax
from jax import lax

from byzjax._src import local

LossFn = local.LossFn | local.Objective
ValueAndGrad = local.ValueAndGrad


def worker_gradients(
  estimator: local.GradientEstimator, worker_map: str | int
) -> Callable:
  """`(params, batch [n, ...], keys [n], round) -> Estimate [n, ...]`."""

  def of_worker(shared, batch, key):
    # One step from where everybody is.
    params, round = shared
    return local.estimate_once(estimator, params, batch, key, round)

  of_all = over_workers('robust_round', of_worker, worker_map)
  return lambda params, batch, keys, round: of_all((params, round), batch, keys)


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
