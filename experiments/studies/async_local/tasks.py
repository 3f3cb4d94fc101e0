"""What is learned: a mixture of Gaussians, and the next character of a text."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

import byzjax
from byzjax import data, models
from experiments import language, study

FLAGS = flags.FLAGS
flags.DEFINE_string('text', 'sonnets', 'sonnets, or a text of --data_dir.')
flags.DEFINE_integer('num_workers', 4, 'K.', 2)
flags.DEFINE_integer('num_local_steps', 20, 'H.', 1)
flags.DEFINE_integer('mixture_phases', 200, 'Jobs of a synchronous worker.', 1)
flags.DEFINE_integer('language_phases', 30, 'Jobs of a synchronous worker.', 1)
flags.DEFINE_list('rates', '0.07,0.3,0.7,1.4', "Of the server's Nesterov step.")
flags.DEFINE_list(
  'language_rates', '0.3,0.7', 'The same, of the language task.'
)

CLASSES, DIMENSION, CENTERS = 4, 64, 32
CONTEXT, WIDTH = 32, 64


class Task(NamedTuple):
  """What is learned."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  sampler: byzjax.LocalSampler
  batch: Any  # leaves [K, ...]
  test_loss: Callable
  local_optimizer: optax.GradientTransformation
  phases: int
  rates: list[float]


def adamw(peak, floor, decay, total_steps) -> optax.GradientTransformation:
  """AdamW whose cosine counts the steps of the shard, not of the worker."""
  return optax.chain(
    optax.scale_by_adam(),
    optax.add_decayed_weights(decay),
    byzjax.scale_by_progress(
      optax.cosine_decay_schedule(peak, total_steps, floor / peak)
    ),
  )


def mixture() -> Task:
  """Classes of eight Gaussians each; a fresh batch at every step."""
  centers = jax.random.normal(jax.random.key(7), (CENTERS, DIMENSION))
  centers /= jnp.linalg.norm(centers, axis=1, keepdims=True)
  total_steps = FLAGS.num_local_steps * FLAGS.mixture_phases

  def examples(key, count):
    which, noise = jax.random.split(key)
    center = jax.random.randint(which, (count,), 0, CENTERS)
    x = centers[center] + 0.5 * jax.random.normal(noise, (count, DIMENSION))
    return x, center % CLASSES

  def params(seed):
    model = models.MLP((DIMENSION, 256, CLASSES), rngs=nnx.Rngs(seed))
    return models.split(model)[1]

  graphdef, _ = models.split(
    models.MLP((DIMENSION, 256, CLASSES), rngs=nnx.Rngs(0))
  )
  loss_fn = models.cross_entropy_loss(graphdef)
  held_out = examples(jax.random.key(8), 4096)
  return Task(
    params,
    loss_fn,
    byzjax.LocalSampler(
      init=lambda params: (),
      start=lambda state, params, data, key: (),
      draw=lambda plan, data, step, key: (examples(key, 32), plan),
      finish=lambda state, params: state,
    ),
    jnp.zeros(FLAGS.num_workers),
    lambda params: loss_fn(params, held_out),
    adamw(1e-3, 1e-6, 0.01, total_steps),
    FLAGS.mixture_phases,
    study.floats('rates'),
  )


def text() -> Task:
  """The next character of a text, whose documents are dealt to the shards."""
  task = language.language(
    FLAGS.text, FLAGS.data_dir, length=CONTEXT, width=WIDTH
  )
  total_steps = FLAGS.num_local_steps * FLAGS.language_phases
  return Task(
    task.params,
    task.loss_fn,
    data.sequence_sampler(jnp.asarray(task.documents), batch_size=8),
    data.random_shards(
      np.zeros(len(task.documents), int), FLAGS.num_workers, seed=0
    ),
    lambda params: task.loss_fn(params, task.held_out),
    adamw(3e-3, 3e-5, 0.1, total_steps),
    FLAGS.language_phases,
    study.floats('language_rates'),
  )


@functools.cache
def task_of(name: str) -> Task:
  return {'mixture': mixture, 'language': text}[name]()
