r"""ADMM on the convex program of a ReLU network: speed, memory, time to 1e-3.

  python -m benchmarks.convex
  python -m benchmarks.convex --num_examples=1000 --num_inputs=50

The first table compares the operator form of the library, which builds neither
F nor G, with the same iteration on dense F and G and a Cholesky factor in 2 P d
dimensions: iterations per second, the time until the first is done (with the
factors), and temporary memory. The second is the time until the objective is
within 1e-3 of the optimum and constraints are broken by at most 1e-3, with the
time of an interior point solver if cvxpy is installed, and with what Adam
reaches on the network, whose objective may be lower: it is free in its
arrangements.
"""

import functools
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.scipy import linalg

from benchmarks import timing
from byzjax import convex

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_examples', 400, 'n.', 2)
flags.DEFINE_integer('num_inputs', 20, 'd.', 2)
flags.DEFINE_integer('num_samples', 40, 'Arrangements that are drawn.', 1)
flags.DEFINE_integer('num_iterations', 50, 'Of a timed call.', 2)
flags.DEFINE_integer('repeats', 7, 'Repeats of each measurement.', 1)
flags.DEFINE_integer('small_examples', 60, 'n of the second table.', 2)
flags.DEFINE_integer('most_iterations', 20000, 'Of the second table.', 100)


def problem(n: int, d: int, num_samples: int):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (n, d)).at[:, -1].set(1.0)
  units = jax.random.normal(keys[1], (6, d)) / jnp.sqrt(d)
  y = jax.nn.relu(x @ units[:3].T).sum(1) - jax.nn.relu(x @ units[3:].T).sum(1)
  patterns = convex.sample_arrangements(x, num_samples, keys[2])
  return x, y, jnp.asarray(patterns)


@functools.partial(jax.jit, static_argnames='num_iterations')
def dense(x, y, patterns, beta, rho, num_iterations):
  """The same iteration for the squared loss, as the papers write it."""
  masks = patterns.astype(x.dtype)
  (p, n), d = masks.shape, x.shape[1]
  half = (masks.T[:, :, None] * x[:, None]).reshape(n, p * d)
  f = jnp.concatenate([half, -half], axis=1)
  signed = jnp.tile((2 * masks - 1)[:, :, None] * x[None], (2, 1, 1))
  g = jax.vmap(lambda i, a: jnp.zeros((n, 2 * p, d)).at[:, i].set(a))(
    jnp.arange(2 * p), signed
  ).reshape(2 * p * n, 2 * p * d)
  matrix = jnp.eye(2 * p * d) + f.T @ f / rho + g.T @ g
  factor = jnp.linalg.cholesky(matrix)
  fixed = f.T @ y / rho

  def step(_, carry):
    v, s, block_dual, slack_dual = carry
    rhs = fixed + v - block_dual + g.T @ (s - slack_dual)
    u = linalg.cho_solve((factor, True), rhs)
    blocks = (u + block_dual).reshape(2 * p, d)
    norms = jnp.linalg.norm(blocks, axis=1, keepdims=True)
    kept = jnp.maximum(1 - beta / rho / jnp.maximum(norms, 1e-30), 0)
    v, gu = (kept * blocks).reshape(-1), g @ u
    s = jnp.maximum(gu + slack_dual, 0)
    return v, s, block_dual + u - v, slack_dual + gu - s

  zeros = jnp.zeros(2 * p * d), jnp.zeros(2 * p * n)
  return jax.lax.fori_loop(0, num_iterations, step, (*zeros, *zeros))[0]


def speed() -> None:
  n, d = FLAGS.num_examples, FLAGS.num_inputs
  x, y, patterns = problem(n, d, FLAGS.num_samples)
  signs = jnp.where(y > jnp.median(y), 1.0, -1.0)
  solve = functools.partial(convex.admm, beta=0.1, rho=0.1)

  def ours(loss, y, count):
    return lambda x: solve(
      x, y, patterns, loss=loss, num_iterations=count, record_every=count
    )

  def papers(count):
    return lambda x: dense(x, y, patterns, 0.1, 0.1, count)

  count = FLAGS.num_iterations
  methods = {
    'squared, operators': lambda k: ours('squared', y, k),
    'logistic, operators': lambda k: ours('logistic', signs, k),
    'squared, dense F and G': papers,
  }
  programs, memory = {}, {}
  for name, make in methods.items():
    programs[name], _, memory[name] = timing.compiled(make(count), x)
    # Less a run of one iteration: the factors are common to both.
    programs[f'{name}, 1'], _, _ = timing.compiled(make(1), x)
  seconds = timing.interleaved(programs, FLAGS.repeats)
  found = ours('squared', y, count)(x)[0].blocks
  other = dense(x, y, patterns, 0.1, 0.1, count).reshape(found.shape)
  print(f'n={n}, d={d}, P={len(patterns)}, float32')
  print(f'{"":24} {"iterations/s":>14} {"first, ms":>10} {"temp MB":>8}')
  for name in methods:
    starts = np.array(seconds[f'{name}, 1'])
    each = np.median(np.array(seconds[name]) - starts) / (count - 1)
    print(
      f'{name:24} {1 / each:14.0f} {1e3 * np.median(starts):10.1f}'
      f' {memory[name] / 1e6:8.1f}'
    )
  error = jnp.linalg.norm((found - other).reshape(-1))
  error /= jnp.linalg.norm(other.reshape(-1))
  print(f'difference of the blocks after {count}: {error:.1e}\n')


def interior_point(x, y, patterns, beta) -> tuple[float, float]:
  """Seconds in the solver, and the optimum."""
  import cvxpy as cp

  x, y, masks = (np.asarray(a, np.float64) for a in (x, y, patterns))
  p, d = len(masks), x.shape[1]
  v, w = cp.Variable((p, d)), cp.Variable((p, d))
  outputs = cp.sum(cp.multiply(x, masks.T @ (v - w)), axis=1)
  constraints = [cp.multiply(2 * masks - 1, b @ x.T) >= 0 for b in (v, w)]
  norms = cp.sum(cp.norm(v, 2, axis=1)) + cp.sum(cp.norm(w, 2, axis=1))
  program = cp.Problem(
    cp.Minimize(cp.sum_squares(outputs - y) / 2 + beta * norms), constraints
  )
  start = time.perf_counter()
  value = program.solve(solver=cp.CLARABEL)
  return time.perf_counter() - start, float(value)


def adam(x, y, beta, num_units, num_steps):
  """The objective after steps of Adam, at the best of three rates."""

  def run(rate):
    optimizer = optax.adam(optax.linear_schedule(rate, 0.0, num_steps))
    keys = jax.random.split(jax.random.key(1))
    d = x.shape[1]
    network = convex.Network(
      jax.random.normal(keys[0], (d, num_units)) / jnp.sqrt(d),
      jax.random.normal(keys[1], (num_units,)) / jnp.sqrt(num_units),
    )

    def step(_, carry):
      network, state = carry
      gradient = jax.grad(
        lambda n: convex.network_objective(n, x, y, beta=beta)
      )(network)
      updates, state = optimizer.update(gradient, state)
      return optax.apply_updates(network, updates), state

    carry = (network, optimizer.init(network))
    network, _ = jax.lax.fori_loop(0, num_steps, step, carry)
    return convex.network_objective(network, x, y, beta=beta)

  return jnp.min(jax.lax.map(run, jnp.array([0.003, 0.01, 0.03])))


def to_the_optimum() -> None:
  jax.config.update('jax_enable_x64', True)
  x, y, patterns = problem(FLAGS.small_examples, 5, FLAGS.num_samples)
  x, y, beta = x.astype(jnp.float64), y.astype(jnp.float64), 0.1
  most = FLAGS.most_iterations

  def run(x, count, every):
    return convex.admm(
      x, y, patterns, beta=beta, rho=0.1, dual_ratio=1.6, num_iterations=count,
      record_every=every,
    )  # fmt: skip

  history = run(x, most, 20)[1]
  optimum = float(history.objective[-1])
  print(f'squared loss, n={len(y)}, d=5, P={len(patterns)}, float64')
  if importlib.util.find_spec('cvxpy'):
    seconds, optimum = interior_point(x, y, patterns, beta)
    print(f'interior point (Clarabel): {seconds:.2f} s, optimum {optimum:.5f}')
  good = np.abs(history.objective / optimum - 1) < 1e-3
  bad = np.flatnonzero(~(good & np.asarray(history.violation < 1e-3)))
  count = 20 * (int(bad[-1]) + 2 if len(bad) else 1)
  if count > most:
    print(f'ADMM: not within 1e-3 after {most} iterations')
    return
  steps = 3000
  programs = {
    'admm': timing.compiled(lambda x: run(x, count, count), x)[0],
    'adam': timing.compiled(lambda x: adam(x, y, beta, 64, steps), x)[0],
  }
  seconds_of = timing.interleaved(programs, FLAGS.repeats)
  admm = np.median(seconds_of['admm'])
  network = convex.recover_network(run(x, count, count)[0].blocks)
  value = convex.network_objective(network, x, y, beta=beta)
  print(
    f'ADMM within 1e-3: {count} iterations, {admm:.2f} s; its network'
    f' {value:.5f}'
  )
  print(
    f'Adam, 3 rates x {steps} steps, 64 units:'
    f' {np.median(seconds_of["adam"]):.2f} s, {programs["adam"]():.5f}'
  )


def main(argv):
  del argv
  speed()
  to_the_optimum()


if __name__ == '__main__':
  app.run(main)
