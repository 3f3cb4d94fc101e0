"""Classes of Gaussians: fresh examples, a small network, the best loss."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import models

CLASSES, DIMENSION, CENTERS = 4, 64, 32
NOISE = 0.5


@functools.cache
def centers() -> np.ndarray:
  with jax.ensure_compile_time_eval():
    points = jax.random.normal(jax.random.key(7), (CENTERS, DIMENSION))
    return np.asarray(points / jnp.linalg.norm(points, axis=1, keepdims=True))


def examples(key, count):
  """Classes of eight Gaussians each."""
  which, noise = jax.random.split(key)
  center = jax.random.randint(which, (count,), 0, CENTERS)
  x = NOISE * jax.random.normal(noise, (count, DIMENSION))
  return jnp.asarray(centers())[center] + x, center % CLASSES


@functools.cache
def model(seed: int, width: int):
  return models.split(
    models.MLP((DIMENSION, width, CLASSES), rngs=nnx.Rngs(seed))
  )


def sampler(batch_size: int) -> byzjax.LocalSampler:
  """Fresh examples at every step."""
  return byzjax.LocalSampler(
    init=lambda params: (),
    start=lambda state, params, data, key: (),
    draw=lambda plan, data, step, key: (examples(key, batch_size), plan),
    finish=lambda state, params: state,
  )


@functools.cache
def held_out() -> dict[str, Any]:
  return {
    'loss': examples(jax.random.key(8), 4096),
    'validation_loss': examples(jax.random.key(9), 4096),
  }


def bayes_loss() -> float:
  """Of who knows the centers, on the same test examples."""
  x, y = held_out()['loss']
  squares = jnp.sum((x[:, None] - centers()[None]) ** 2, axis=-1)
  logits = -squares.reshape(len(x), -1, CLASSES) / (2 * NOISE**2)
  return float(
    optax.softmax_cross_entropy_with_integer_labels(
      jax.nn.logsumexp(logits, axis=1), y
    ).mean()
  )
