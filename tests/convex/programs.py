"""The convex programs as an independent solver is given them, in float64.

The big matrices are built as the papers write them.
"""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np

from byzjax import convex


def corners(n: int = 24):
  """Points near four corners, with a column of ones, and labels like XOR."""
  random = np.random.default_rng(0)
  centers = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
  which = np.arange(n) % 4
  x = centers[which] + 0.35 * random.uniform(-1, 1, size=(n, 2))
  y = np.where(which < 2, 1.0, -1.0)
  return jnp.asarray(np.c_[x, np.ones(n)]), jnp.asarray(y)


def labels(loss: str, y, x):
  """Of `corners`: real numbers for the squared loss."""
  return y + 0.3 * x[:, 0] if loss == 'squared' else y


def patterns_of(x, num_samples: int = 8, **options):
  return convex.sample_arrangements(
    x, num_samples, jax.random.key(1), **options
  )


def loss_of(loss: str, outputs, y, moved=0.0):
  n = len(y)
  if loss == 'squared':
    return cp.sum_squares(cp.abs(outputs - y) + moved) / 2
  if loss == 'hinge':
    return cp.sum(cp.pos(1 - cp.multiply(y, outputs) + moved)) / n
  return cp.sum(cp.logistic(-cp.multiply(y, outputs) + moved))


def solve(x, y, patterns, *, beta, loss, epsilon=None):
  """The least value of the program, standard or robust."""
  x, y, masks = (np.asarray(a, np.float64) for a in (x, y, patterns))
  p, d = len(masks), x.shape[1]
  v, w = cp.Variable((p, d)), cp.Variable((p, d))
  big = np.concatenate([masks[i][:, None] * x for i in range(p)], axis=1)
  outputs = big @ cp.vec(v - w, order='C')
  moved = 0.0
  if epsilon is not None:
    epsilon = np.asarray(epsilon, np.float64)
    moved = cp.abs(masks.T @ (v - w)) @ epsilon
  constraints = []
  for blocks in (v, w):
    for i in range(p):
      room = 0.0 if epsilon is None else cp.abs(blocks[i]) @ epsilon
      constraints.append(((2 * masks[i] - 1)[:, None] * x) @ blocks[i] >= room)
  norms = cp.sum(cp.norm(v, 2, axis=1)) + cp.sum(cp.norm(w, 2, axis=1))
  program = cp.Problem(
    cp.Minimize(loss_of(loss, outputs, y, moved) + beta * norms), constraints
  )
  return program.solve(solver=cp.CLARABEL)


def solve_sampled(x, y, vectors, *, beta, loss):
  x, y, vectors = (np.asarray(a, np.float64) for a in (x, y, vectors))
  units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  weights = cp.Variable(len(units))
  outputs = np.maximum(x @ units.T, 0) @ weights
  program = cp.Problem(
    cp.Minimize(loss_of(loss, outputs, y) + beta * cp.norm1(weights))
  )
  return program.solve(solver=cp.CLARABEL)


def projected_norm(x, pattern, g):
  """The norm of the projection of g onto the cone of a pattern."""
  x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
  signs = 2 * np.asarray(pattern, np.float64) - 1
  v = cp.Variable(len(g))
  program = cp.Problem(
    cp.Maximize(g @ v), [cp.norm(v, 2) <= 1, (signs[:, None] * x) @ v >= 0]
  )
  return program.solve(solver=cp.CLARABEL)
