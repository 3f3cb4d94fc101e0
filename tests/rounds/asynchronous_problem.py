"""Asynchronous rounds of a small problem."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony

KEY = jax.random.key(0)
K, S = 4, 3
# Slices of the shards: [K, S, examples, d].
BATCH = jax.random.normal(jax.random.key(1), (K, S, 4, 3)) + 2
SPEEDS = [1.0, 1.3, 2.2, 5.0]
EVENTS = asynchrony.simulate(SPEEDS, num_events=40, variation=0.3)
TOGETHER = asynchrony.simulate(np.ones(K), num_events=20, grace=math.inf)


def loss_fn(params, batch):
  hidden = jnp.tanh(batch - params['w'][None])
  return jnp.mean(hidden**2) + jnp.sum(params['b'] ** 2)


GRADIENT = jax.jit(jax.grad(loss_fn))
PARAMS = {'w': jnp.zeros(3), 'b': jnp.ones([])}


def build(events=EVENTS, loss_fn=loss_fn, optimizer=None, **arguments):
  return byzjax.asynchronous_round(
    loss_fn, events=events, optimizer=optimizer or optax.sgd(0.1), **arguments
  )


def run(training, length=None, batch=BATCH, params=PARAMS):
  """All steps in one scan: `(state, infos, parameters after each)`."""

  def step(state, _):
    state, info = training.step(state, batch, KEY)
    return state, (info, state.params)

  length = 40 if length is None else length
  state = training.init(params)
  state, (infos, path) = jax.jit(
    lambda s: jax.lax.scan(step, s, length=length)
  )(state)
  return state, infos, path


def close(actual, expected, tolerance=1e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    actual,
    expected,
  )


def last(path):
  return jax.tree.map(lambda x: x[-1], path)


def minus(a, b):
  return jax.tree.map(lambda x, y: x - y, a, b)
