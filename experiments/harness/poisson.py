"""Rounds on Poisson-sampled batches, the sampling of which epsilon is known."""

import jax

import byzjax
from byzjax import data

from .cells import Task


def on_poisson_batches(
  training: byzjax.Round, task: Task, batch_size: int
) -> byzjax.Round:
  """The round, with steps that draw their batch of the partition themselves."""

  def step(state, partition, key):
    key, draw_key = jax.random.split(key)
    batch = data.poisson_batch(
      task.images,
      task.labels,
      partition,
      jax.random.fold_in(draw_key, state.step),
      batch_size,
      scale=task.scale,
    )
    return training.step(state, batch, key)

  return training._replace(step=step)
