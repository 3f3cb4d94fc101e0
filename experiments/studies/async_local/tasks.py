"""What is learned: a mixture of Gaussians, and the next character of a text."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, models
from experiments.studies import language, mixture

CONTEXT, WIDTH = 32, 64


class Task(NamedTuple):
  """What is learned."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  sampler: byzjax.LocalSampler
  batch: Any  # leaves [K, ...]
  test_loss: Callable
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
    lambda params: loss_fn(params, tests),
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
    lambda params: task.loss_fn(params, task.held_out),
    adamw(3e-3, 3e-5, 0.1, steps(settings, 'language')),
  )


TASKS = {'mixture': gaussians, 'language': text}


@functools.cache
def task_of(settings, name: str) -> Task:
  return TASKS[name](settings)


def phases(settings, name: str) -> int:
  """Jobs of a synchronous worker."""
  if name == 'mixture':
    return settings.mixture_phases
  return settings.language_phases


def steps(settings, name: str) -> int:
  """Local steps of a synchronous worker."""
  return settings.num_local_steps * phases(settings, name)
