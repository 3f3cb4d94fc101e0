"""A smooth loss whose gradient is one line of NumPy, for loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np

N, D, KEY = 4, 3, jax.random.key(5)


def loss_fn(w, batch):
  points, targets = batch
  return jnp.mean(jnp.log(jnp.cosh(points @ w - targets)))


def gradient(w, batch):
  points, targets = (np.asarray(x, np.float64) for x in batch)
  return points.T @ np.tanh(points @ w - targets) / len(targets)


def start():
  return np.array([0.5, -1.0, 2.0])


def batches(*lead, seed=0):
  """Leaves float64[*lead, 5, ...], of a target each slice of its own."""
  random = np.random.default_rng(seed)
  points = random.normal(size=(*lead, 5, D))
  return points, points.sum(axis=-1) + random.normal(size=(*lead, 5))


def one(batch, *index):
  return tuple(x[index] for x in batch)


def run(rounds, params, many):
  """Rounds one after the other, one executable; the states after each."""
  state, step, states = rounds.init(params), jax.jit(rounds.step), []
  before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  for batch in many:
    state, info = step(state, batch, KEY)
    states.append((state, info))
  assert step._cache_size() == 1
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
  return states
