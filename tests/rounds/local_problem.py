"""Local rounds of the small problem, and the loops that they are held to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from tests.rounds import problem

N, KEY = problem.N, problem.KEY
RATE = 0.2


def slices(num_steps, seed=0):
  """Batch leaves [n, H, 4, ...]."""
  return jax.tree.map(
    lambda x: jnp.moveaxis(x, 0, 1), problem.batches(num_steps, seed=seed)
  )


def local(**kwargs):
  defaults = dict(
    local_optimizer=optax.sgd(RATE),
    num_local_steps=3,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(1.0),
    num_workers=N,
  )
  return byzjax.local_round(problem.loss_fn, **(defaults | kwargs))


def run(rounds, batches, key=KEY):
  """Rounds one after the other, and whether they were one executable."""
  state, step = rounds.init(problem.params()), jax.jit(rounds.step)
  infos = []
  for batch in batches:
    state, info = step(state, batch, key)
    infos.append(info)
  assert step._cache_size() == 1
  return state, infos


def close(actual, expected, tolerance=1e-6):
  np.testing.assert_allclose(
    problem.flat(actual), problem.flat(expected), tolerance, tolerance
  )


GRADIENT = jax.jit(jax.grad(problem.loss_fn))


def one(batch, worker, k):
  """The batch of a local step of a worker."""
  return jax.tree.map(lambda x: x[worker, k], batch)


def local_update(params, batch, worker, num_steps, tx=None, state=None):
  """One worker's steps: the loop that a user would write."""
  tx = optax.sgd(RATE) if tx is None else tx
  state = tx.init(params) if state is None else state
  for k in range(num_steps):
    gradient = GRADIENT(params, one(batch, worker, k))
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def average(trees, weights=None):
  weights = np.ones(len(trees)) if weights is None else np.asarray(weights)
  weights = weights / weights.sum()
  return jax.tree.map(
    lambda *x: sum(w * np.asarray(a, np.float64) for w, a in zip(weights, x)),
    *trees,
  )
