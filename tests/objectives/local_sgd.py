"""Local steps of workers, as a round takes them."""

import jax
import jax.numpy as jnp

from byzjax._src import local


def context(anchor, seed=0, step=0):
  return local.LocalContext(anchor, jax.random.key(seed), jnp.array(step))


def take(tree, index):
  """Of every leaf what is at an index, or at several."""
  return jax.tree.map(lambda x: x[index], tree)


def local_sgd(objective, params, batches, learning_rate, key=None):
  """H steps from the same parameters: leaves [n, H, ...] -> [n, ...]."""
  key = jax.random.key(3) if key is None else key

  def step(state, inputs):
    current, number = state
    batch, step_key = inputs
    gradient = jax.grad(objective.loss)(
      current, batch, local.LocalContext(params, step_key, number)
    )
    current = jax.tree.map(
      lambda p, g: p - learning_rate * g, current, gradient
    )
    return (current, number + 1), None

  def of_worker(batches, keys):
    start = (params, jnp.zeros([], jnp.int32))
    return jax.lax.scan(step, start, (batches, keys))[0][0]

  lead = jax.tree.leaves(batches)[0].shape[:2]
  return jax.vmap(of_worker)(batches, jax.random.split(key, lead))
