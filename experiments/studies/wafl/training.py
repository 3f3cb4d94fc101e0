"""Cells that train on worst inputs, and are tested on moved ones."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import byzjax
from byzjax import data, models, objectives

from ...harness.cells import Cell
from .. import opponents
from . import clients

ATTACKS = {
  **opponents.ATTACKS,
  'sign flip x 10': lambda: byzjax.sign_flip(scale=10.0),
}


@functools.cache
def moments(dataset: str, data_dir: str | None) -> tuple[np.ndarray, ...]:
  """Mean and deviation of every pixel, which is from 0 to 1."""
  of = data.load(dataset, data_dir)
  pixels = of.train_images.astype(np.float32) / of.scale
  # A pixel that is always black stays at zero.
  return pixels.mean(axis=0, keepdims=True), (
    pixels.std(axis=0, keepdims=True) + 1e-5
  )


def seen(settings: Any, inputs: jax.Array) -> jax.Array:
  """What the model is given of pixels from 0 to 1."""
  if not settings.standardised:
    return inputs
  mean, deviation = moments(settings.dataset, settings.data_dir)
  return (inputs - mean) / deviation


def moved(settings: Any, loss_fn, params, batch, step_size, num_steps: int):
  """The inputs of a batch, moved by PGD inside the box."""
  return objectives.pgd_inputs(
    loss_fn,
    params,
    batch,
    epsilon=settings.radius,
    step_size=step_size,
    num_steps=num_steps,
    value_range=None if settings.standardised else (0, 1),
  )


def local_loss(settings: Any, method: str, loss_fn, gamma):
  """What a client descends, on pixels from 0 to 1."""

  def with_pgd(params, batch):
    # Fewer and longer steps than in the test, for each costs a gradient.
    inputs = moved(settings, loss_fn, params, batch, settings.radius / 4, 10)
    return loss_fn(params, (inputs, batch[1]))

  losses = {
    'fedavg': lambda: loss_fn,
    'fedpgd': lambda: with_pgd,
    'wafl': lambda: objectives.wasserstein(
      loss_fn, gamma=gamma, num_ascent_steps=settings.ascent_steps
    ),
  }
  loss = losses[method]()

  def of_pixels(params, batch):
    return loss(params, (seen(settings, batch[0]), batch[1]))

  return of_pixels


def scores(settings: Any, task, params, images, labels):
  """On inputs as they are, and on those moved against this very model."""
  loss_fn = models.cross_entropy_loss(task.graphdef)

  def is_right(image, label):
    inputs = seen(settings, image[None].astype(jnp.float32) / task.scale)
    steps = settings.pgd_step, settings.pgd_steps
    worst = moved(settings, loss_fn, params, (inputs, label[None]), *steps)
    return nnx.merge(task.graphdef, params)(worst).argmax(axis=1) == label

  # Some at a time, as PGD on all would run through memory in every step.
  right = jax.lax.map(
    lambda x: is_right(*x), (images, labels), batch_size=min(500, len(labels))
  )
  plain = models.evaluate(
    task.graphdef,
    params,
    seen(settings, images.astype(jnp.float32) / task.scale),
    labels,
    num_classes=task.num_classes,
    scale=1.0,
  )
  return {**plain._asdict(), 'attacked_accuracy': right.mean()}


def logistic_regression(shape, num_classes: int, seed: int) -> nnx.Module:
  return models.MLP((math.prod(shape), num_classes), rngs=nnx.Rngs(seed))


def cell(settings: Any, part, method, attack, rule, gammas) -> Cell:
  """Runs of a method: all learning rates, and gammas if it is WAFL."""

  def make_round(task, key, learning_rate, gamma):
    del key
    weighted = settings.labels_each and rule == 'mean'
    return byzjax.fed_avg(
      local_loss(settings, method, task.loss_fn, gamma),
      learning_rate=learning_rate,
      num_local_steps=settings.local_steps,
      num_workers=settings.num_workers,
      participation=settings.participation or None,
      aggregator=opponents.RULES[rule](settings.told),
      attack=ATTACKS[attack](),
      byzantine=0 if attack == 'none' else settings.num_byzantine,
      worker_weights=task.partition.sizes if weighted else None,
      # Almost twice as fast where a model is as small as this one.
      worker_map='map' if settings.linear else 'vmap',
      sampler=task.sampler(settings.batch_size),
    )

  rates = settings.learning_rates
  if method != 'wafl':
    rates = (*rates, *settings.larger_rates)
  few_labels = functools.partial(clients.few_labels, each=settings.labels_each)
  return Cell(
    labels={'part': part, 'method': method, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={
      'learning_rate': rates,
      # A column that only WAFL has a use for.
      'gamma': gammas if method == 'wafl' else [0.0],
    },
    num_workers=settings.num_workers,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    partition=few_labels if settings.labels_each else settings.partition,
    num_evals=settings.num_evals,
    is_local=True,
    make_model=logistic_regression if settings.linear else None,
    measure=functools.partial(scores, settings),
  )
