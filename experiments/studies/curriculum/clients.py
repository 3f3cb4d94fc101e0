"""What clients of the study hold, and who takes part: labels and claims."""

import functools

import jax
import jax.numpy as jnp
import optax

import byzjax
from byzjax import data, models

from ...harness.cells import Task
from ...harness.programs import split_validation


def labels_of(task: Task, key, *, noise, flipped, uneven: bool):
  """The training labels, with wrong ones.

  Each is replaced with probability `noise` by another class, or, if `uneven`,
  with one that grows from 0 at the first client to `2 noise` at the last. The
  first `flipped` clients count their labels from the other end.
  """
  labels, k = task.labels, task.num_classes
  indices, sizes = task.partition
  n, width = indices.shape
  own = jnp.where(
    jnp.arange(width)[None] < sizes[:, None], indices, labels.size
  )
  client = jnp.zeros_like(labels)
  client = client.at[own].set(jnp.arange(n)[:, None], mode='drop')
  share = 2 * noise * client / (n - 1) if uneven else noise
  which, shift = jax.random.split(key)
  wrong = jax.random.uniform(which, labels.shape) < share
  others = labels + jax.random.randint(shift, labels.shape, 1, k)
  labels = jnp.where(wrong, others % k, labels)
  return jnp.where(client < flipped, k - 1 - labels, labels)


def claiming(participation: byzjax.Participation, liars):
  """The same, with the lowest of all scores for the clients of bool[n]."""

  def draw(state, scores, step, key):
    return participation.draw(state, jnp.where(liars, -1, scores), step, key)

  return participation._replace(draw=draw)


@functools.cache
def expert_params(
  name: str, data_dir: str | None, model: str, steps: int = 200
):
  """Parameters after SGD on all training examples, with their right labels."""
  dataset = split_validation(data.load(name, data_dir))[0]
  shape = dataset.train_images.shape[1:]
  graphdef, params = models.split(
    models.make(model, shape, dataset.num_classes, seed=0)
  )
  loss_fn = models.cross_entropy_loss(graphdef)
  tx = optax.sgd(0.03, 0.9)

  @jax.jit
  def train(params, images, labels):
    def one(step, carry):
      params, state = carry
      key = jax.random.fold_in(jax.random.key(0), step)
      chosen = jax.random.randint(key, [64], 0, labels.size)
      batch = images[chosen].astype(jnp.float32) / dataset.scale, labels[chosen]
      updates, state = tx.update(jax.grad(loss_fn)(params, batch), state)
      return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, one, (params, tx.init(params)))[0]

  return train(params, *map(jnp.asarray, dataset[1:3]))
