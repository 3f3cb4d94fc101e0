"""Local SGD whose gradients are corrected: what SCAFFOLD and FedDyn share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from byzjax._src import base


class Moved(NamedTuple):
  """Where a worker came to: what it moved by float[d], its loss and steps."""

  delta: jax.Array
  loss: jax.Array
  num_steps: int


def zeros(params: base.Params, *lead: int) -> jax.Array:
  """`[*lead, d]`, in the dtype of the parameters as one vector."""
  vector = ravel_pytree(params)[0]
  return jnp.zeros((*lead, vector.size), vector.dtype)


def corrected_steps(
  loss_fn: Callable[..., jax.Array],
  needs_key: bool,
  params: base.Params,
  batches: base.Batch,
  key: jax.Array,
  learning_rate: jax.Array | float,
  correction: Callable[[jax.Array], jax.Array],
) -> Moved:
  """`y <- y - lr (grad f(y; batch_s) + correction(w - y))` for s = 0 .. S - 1.

  Batches have leaves `[S, ...]`; the correction is a function of what the
  worker has moved by, float[d].
  """
  start, unravel = ravel_pytree(params)
  num_steps = jax.tree.leaves(batches)[0].shape[0]

  def one_step(y, known):
    batch, step_key = known
    more = (step_key,) if needs_key else ()
    loss, gradient = jax.value_and_grad(
      lambda y: loss_fn(unravel(y), batch, *more)
    )(y)
    step = learning_rate * (gradient + correction(start - y))
    # A rate from a schedule is no weak number, and may have more digits.
    return (y - step).astype(y.dtype), loss

  keys = jax.random.split(key, num_steps)
  end, losses = jax.lax.scan(one_step, start, (batches, keys))
  return Moved(start - end, jnp.mean(losses), num_steps)
