"""The gradients of all workers, in one batched program or one by one."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from byzjax._src import base

LossFn = Callable[[base.Params, base.Batch], jax.Array]
# `(params, batch_i, key_i) -> (loss, gradient)`
ValueAndGrad = Callable[[base.Params, Any, jax.Array], tuple[jax.Array, Any]]


def worker_gradients(
  loss_fn: LossFn, value_and_grad: ValueAndGrad | None, worker_map: str | int
):
  """`(params, batch [n, ...], keys [n]) -> (losses [n], gradients)`."""
  if value_and_grad is None:
    exact = jax.value_and_grad(loss_fn)

    def estimate(params, batch, key):
      del key
      return exact(params, batch)

  else:
    estimate = value_and_grad
  if worker_map == 'vmap':
    return jax.vmap(estimate, in_axes=(None, 0, 0))
  if worker_map == 'map':
    batch_size = None
  elif type(worker_map) is int and worker_map > 0:
    batch_size = worker_map
  else:
    raise ValueError(
      "robust_round needs worker_map to be 'vmap', 'map' or a positive int, got"
      f' {worker_map!r}'
    )

  def mapped(params, batch, keys):
    return lax.map(
      lambda one: estimate(params, *one), (batch, keys), batch_size=batch_size
    )

  return mapped
