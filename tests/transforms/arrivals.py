"""Messages one at a time, for the tests of what acts on them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Arrivals(NamedTuple):
  """What `asynchronous_round` tells of each message, by message."""

  worker: np.ndarray
  issued_at: np.ndarray
  staleness: np.ndarray
  is_waiting: np.ndarray


def asynchronous(num_workers, num_messages, seed=0):
  """Workers in a random order, each sent new parameters at once."""
  rng = np.random.default_rng(seed)
  # Of very different speeds, so that some messages are very late.
  speeds = 1.0 / np.arange(1, num_workers + 1) ** 2
  worker = rng.choice(num_workers, num_messages, p=speeds / speeds.sum())
  version, issued_at = np.zeros(num_workers, int), []
  for t, k in enumerate(worker):
    issued_at.append(version[k])
    version[k] = t + 1
  return _arrivals(worker, issued_at, np.zeros(num_messages, bool))


def synchronous(num_workers, num_rounds):
  """All wait for all."""
  t = np.arange(num_workers * num_rounds)
  k = t % num_workers
  return _arrivals(k, t - k, k > 0)


def _arrivals(worker, issued_at, is_waiting):
  issued_at = np.asarray(issued_at, np.int32)
  staleness = np.arange(len(issued_at), dtype=np.int32) - issued_at
  return Arrivals(
    np.asarray(worker, np.int32), issued_at, staleness, is_waiting
  )


def scan(tx, gradients, params=None, **extra):
  """Parameters and states after each message; leaves [T, ...].

  `gradients` has leaves [T, ...], and so has what else is given to update.
  """
  if params is None:
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)

  def step(carry, inputs):
    w, state = carry
    g, extra = inputs
    updates, state = tx.update(g, state, w, **extra)
    assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(
      jnp.result_type, g
    )
    w = optax.apply_updates(w, updates)
    return (w, state), (w, state)

  extra = jax.tree.map(jnp.asarray, extra)
  return jax.lax.scan(step, (params, tx.init(params)), (gradients, extra))[1]


def run(tx, gradients, params=None, **extra):
  """`scan`, compiled, as NumPy arrays."""
  whole = jax.jit(lambda g, w, extra: scan(tx, g, w, **extra))
  return jax.tree.map(_as_numpy, whole(gradients, params, extra))


def _as_numpy(x):
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  return np.asarray(x)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)
