"""The gradients of all workers, in one batched program or one by one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byzjax._src import base, local

LossFn = local.LossFn | local.Objective
# `(params, batch_i, key_i) -> (loss, gradient)`
ValueAndGrad = Callable[[base.Params, Any, jax.Array], tuple[jax.Array, Any]]


def worker_gradients(
  loss_fn: LossFn, value_and_grad: ValueAndGrad | None, worker_map: str | int
):
  """`(params, batch [n, ...], keys [n]) -> (losses [n], gradients)`."""
  if value_and_grad is None:
    exact = jax.value_and_grad(local.as_objective(loss_fn).loss)

    def estimate(params, batch, key):
      # One step from where everybody is.
      first = jnp.zeros([], jnp.int32)
      return exact(params, batch, local.LocalContext(params, key, first))

  else:
    estimate = value_and_grad
  return over_workers('robust_round', estimate, worker_map)


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
