"""What is learned: a mixture of Gaussians, and the next character of a text.

The text is learned from scratch, or from a model that has learned it before.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, models

from .. import language, mixture

CONTEXT, WIDTH = 32, 64


class Task(NamedTuple):
  """What is learned."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  sampler: byzjax.LocalSampler
  batch: Any  # leaves [K, ...]
  measure: Callable[[Any], dict[str, jax.Array]]  # of parameters
  local_optimizer: optax.GradientTransformation


def adamw(peak, floor, decay, total_steps) -> optax.GradientTransformation:
  """AdamW whose cosine counts the steps of the shard, not of the worker."""
  return optax.chain(
    optax.scale_by_adam(),
    optax.add_decayed_weights(decay),
    byzjax.scale_by_progress(
      optax.cosine_decay_schedule(peak, total_steps, floor / peak)
    ),
  )


def gaussians(settings) -> Task:
  """Classes of eight Gaussians each; a fresh batch at every step."""
  loss_fn = models.cross_entropy_loss(mixture.model(0, 256)[0])
  tests = mixture.held_out()['loss']
  return Task(
    lambda seed: mixture.model(seed, 256)[1],
    loss_fn,
    mixture.sampler(32),
    jnp.zeros(settings.num_workers),
    lambda params: {'loss': loss_fn(params, tests)},
    adamw(1e-3, 1e-6, 0.01, steps(settings, 'mixture')),
  )


def text(settings) -> Task:
  """The next character of a text, whose documents are dealt to the shards."""
  task = language.language(
    settings.text, settings.data_dir, length=CONTEXT, width=WIDTH
  )
  return Task(
    task.params,
    task.loss_fn,
    data.sequence_sampler(jnp.asarray(task.documents), batch_size=8),
    data.random_shards(
      np.zeros(len(task.documents), int), settings.num_workers, seed=0
    ),
    lambda params: {'loss': task.loss_fn(params, task.held_out)},
    adamw(3e-3, 3e-5, 0.1, steps(settings, 'language')),
  )


def trained_text(settings) -> Task:
  """The same from a model that knows the text, with small inner rates."""
  task = text(settings)
  known = language.language(
    settings.text, settings.data_dir, length=CONTEXT, width=WIDTH
  ).held_out
  half = len(known) // 2
  peak = settings.pretrained_peak
  return task._replace(
    params=lambda seed: pretrained(settings, seed)[0],
    measure=lambda params: {
      'loss': task.loss_fn(params, known[:half]),
      'validation_loss': task.loss_fn(params, known[half:]),
    },
    local_optimizer=adamw(peak, peak / 10, 0.1, steps(settings, 'pretrained')),
  )


@functools.cache
def pretrained(settings, seed: int) -> tuple[Any, jax.Array]:
  """A model after so many steps of one machine, and their losses.

  The rate is half of its peak at the end: the model has not come to rest.
  """
  task, count = task_of(settings, 'language'), settings.pretraining_steps
  known = language.language(
    settings.text, settings.data_dir, length=CONTEXT, width=WIDTH
  )
  documents = jnp.asarray(known.documents)
  tx = optax.adamw(
    optax.cosine_decay_schedule(3e-3, 2 * count), weight_decay=0.1
  )

  @jax.jit
  def train(params, documents, key):
    def step(carry, i):
      params, state = carry
      which = jax.random.randint(
        jax.random.fold_in(key, i), (32,), 0, len(documents)
      )
      loss, gradient = jax.value_and_grad(task.loss_fn)(
        params, documents[which]
      )
      updates, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss

    start = params, tx.init(params)
    (params, _), losses = jax.lax.scan(step, start, jnp.arange(count))
    return params, losses

  return train(task.params(seed), documents, jax.random.key(1000 + seed))


TASKS = {'mixture': gaussians, 'language': text, 'pretrained': trained_text}


@functools.cache
def task_of(settings, name: str) -> Task:
  return TASKS[name](settings)


def phases(settings, name: str) -> int:
  """Jobs of a synchronous worker."""
  return {
    'mixture': settings.mixture_phases,
    'language': settings.language_phases,
    'pretrained': settings.pretrained_phases,
  }[name]


def steps(settings, name: str) -> int:
  """Local steps of a synchronous worker."""
  return settings.num_local_steps * phases(settings, name)
