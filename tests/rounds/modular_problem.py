"""Modular rounds of a small problem, and the loops that they are held to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

KEY = jax.random.key(7)
RATE = 0.1
TX = optax.adam(RATE)
# Modules of level 0 on 3 and 2 paths, of level 1 on 2, 2 and 1.
PATHS = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 2]])


def loss_fn(path, x):
  """Coupled levels: what is best for one depends on the other."""
  first, second = path
  center = jnp.tanh(first['a']).sum() * second['b'] + second['c'][None]
  return jnp.mean((x - center[None]) ** 2)


def params(counts=(2, 3), seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  first, second = counts
  return (
    {'a': normal(first, 2, 2)},
    {'b': normal(second, 3), 'c': normal(second)},
  )


def batches(num_paths=5, num_rounds=2, num_steps=3, seed=1):
  """`[P, H, 4, 3]` for each round: every path has its own centre."""
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(num_paths, 1, 1, 3))
  noise = rng.normal(size=(num_rounds, num_paths, num_steps, 4, 3))
  return jnp.asarray(centers[None] + 0.3 * noise, jnp.float32)


def modular(**arguments):
  defaults = dict(
    paths=PATHS,
    local_optimizer=TX,
    num_local_steps=3,
    optimizer=optax.sgd(0.7, 0.9, nesterov=True),
  )
  return byzjax.modular_round(loss_fn, **(defaults | arguments))


def run(rounds, start, data, key=KEY):
  """Rounds one after the other, in one executable."""
  state, step = jax.jit(rounds.init)(start), jax.jit(rounds.step)
  infos = []
  for batch in data:
    state, info = step(state, batch, key)
    infos.append(info)
  assert step._cache_size() == 1
  return state, infos


def close(actual, expected, tolerance=1e-5):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(x, y, tolerance, tolerance)


GRADIENT = jax.jit(jax.grad(loss_fn))


@functools.cache
def plain():
  """Two rounds of `modular()`: what others are compared with."""
  return run(modular(), params(), batches())[0]


def module(start, path):
  return tuple(
    jax.tree.map(lambda x, m=m: x[m], modules)
    for modules, m in zip(start, path)
  )


def local_update(start, data, tx, state):
  """The local steps of one path: the loop that a user would write."""
  step = step_of(tx)
  for batch in data:
    start, state = step(start, state, batch)
  return start, state


@functools.cache
def step_of(tx):
  @jax.jit
  def step(start, state, batch):
    updates, state = tx.update(jax.grad(loss_fn)(start, batch), state, start)
    return optax.apply_updates(start, updates), state

  return step


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def loop(
  start,
  data,
  paths=PATHS,
  tx=TX,
  epsilon=0.7,
  beta=0.9,
  weights=None,
  rescale_norm=False,
  chain=lambda i, levels: levels,
  up=lambda i, level, delta: delta,
  down=lambda level, m, delta: delta,
):
  """DiPaCo as loops over paths, levels and modules, in float64 on the server.

  `weights` are float[rounds, P]; a path of weight 0 is not there. What path i
  sends goes through `chain`, and that for one module through `up`; what module
  m tells its paths goes through `down`.
  """
  num_paths, num_levels = paths.shape
  counts = paths.max(axis=0) + 1
  states = [tx.init(module(start, path)) for path in paths]
  momentum = {}
  for t, batch in enumerate(data):
    share = np.ones(num_paths) if weights is None else np.asarray(weights[t])
    deltas = {}
    for i, path in enumerate(paths):
      if share[i] > 0:
        before = module(start, path)
        after, states[i] = local_update(before, batch[i], tx, states[i])
        moved = jax.tree.map(lambda x, y: x - y, before, after)
        levels = enumerate(chain(i, moved))
        deltas[i] = [up(i, level, x) for level, x in levels]
    new = [[None] * k for k in counts]
    for level in range(num_levels):
      for m in range(counts[level]):
        old = jax.tree.map(lambda x, m=m: np.asarray(x[m]), start[level])
        mine = [i for i in deltas if paths[i][level] == m]
        if not mine:
          new[level][m] = old
          continue
        factors = np.array([share[i] for i in mine], np.float64)
        factors /= factors.sum()
        delta = jax.tree.map(
          lambda *x, c=factors: np.tensordot(c, np.array(x, np.float64), 1),
          *[deltas[i][level] for i in mine],
        )
        delta = down(level, m, delta)
        if rescale_norm:
          root = np.sqrt(len(mine))
          delta = jax.tree.map(lambda x, r=root: r * x, delta)
        past = momentum.get((level, m), jax.tree.map(np.zeros_like, delta))
        past = jax.tree.map(lambda p, x: beta * p + x, past, delta)
        momentum[level, m] = past
        new[level][m] = jax.tree.map(
          lambda w, x, p: w - epsilon * (x + beta * p), old, delta, past
        )
    start = tuple(
      jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *modules)
      for modules in new
    )
  return start, states
