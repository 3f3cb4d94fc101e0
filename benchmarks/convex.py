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

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy import linalg

from benchmarks import program, records, timing
from byzjax import convex

DENSE = 'squared, dense F and G'


@dataclasses.dataclass(frozen=True)
class Settings:
  num_examples: int = program.option(400, 'n.')
  num_inputs: int = program.option(20, 'd.')
  num_samples: int = program.option(40, 'Arrangements that are drawn.')
  num_iterations: int = program.option(50, 'Of a timed call.')
  small_examples: int = program.option(60, 'n of the second table.')
  most_iterations: int = program.option(20000, 'Of the second table.')
  adam_steps: int = program.option(3000, 'Of the second table.')
  solver: bool = program.option(True, 'Interior point, if cvxpy is there.')
  repeats: int = program.option(7, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(12, 3, 4, 3, 12, 2000, 5, solver=False, repeats=1)


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


def speed(settings: Settings) -> records.Run:
  n, d = settings.num_examples, settings.num_inputs
  x, y, patterns = problem(n, d, settings.num_samples)
  signs = jnp.where(y > jnp.median(y), 1.0, -1.0)
  solve = functools.partial(convex.admm, beta=0.1, rho=0.1)

  def ours(loss, y, count):
    return lambda x: solve(
      x, y, patterns, loss=loss, num_iterations=count, record_every=count
    )

  def papers(count):
    return lambda x: dense(x, y, patterns, 0.1, 0.1, count)

  methods: dict[str, Callable] = {
    'squared, operators': lambda k: ours('squared', y, k),
    'logistic, operators': lambda k: ours('logistic', signs, k),
    DENSE: papers,
  }
  count = settings.num_iterations
  programs = {
    name: timing.compiled(make(count), x) for name, make in methods.items()
  }
  calls = {name: each.call for name, each in programs.items()}
  # Less a run of one iteration: the factors are common to both.
  firsts = {
    f'{name}, first iteration': timing.compiled(make(1), x).call
    for name, make in methods.items()
  }
  times = timing.interleaved(
    calls | firsts, settings.repeats, settings.seconds / 2
  )
  values: dict[str, dict] = {}
  for name, first in zip(calls, firsts):
    each = np.array(times[name].wall) - np.array(times[first].wall)
    values[name] = {
      'rate': (count - 1) / float(np.median(each)),
      'temporary_bytes': programs[name].temporary_bytes,
    }
  blocks = ours('squared', y, count)(x)[0].blocks
  other = dense(x, y, patterns, 0.1, 0.1, count).reshape(blocks.shape)
  error = jnp.linalg.norm((blocks - other).reshape(-1))
  error /= jnp.linalg.norm(other.reshape(-1))
  return records.Run(
    f'n={n}, d={d}, P={len(patterns)}, float32',
    DENSE,
    records.figures(times, DENSE, values),
    notes={f'difference of the blocks after {count}': float(error)},
  )


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


def to_the_optimum(settings: Settings) -> records.Run:
  """In float64."""
  x, y, patterns = problem(settings.small_examples, 5, settings.num_samples)
  x, y, beta = x.astype(jnp.float64), y.astype(jnp.float64), 0.1
  most, steps = settings.most_iterations, settings.adam_steps

  def run(x, count, every):
    return convex.admm(
      x, y, patterns, beta=beta, rho=0.1, dual_ratio=1.6, num_iterations=count,
      record_every=every,
    )  # fmt: skip

  title = f'squared loss, n={len(y)}, d=5, P={len(patterns)}, float64'
  history = run(x, most, 20)[1]
  optimum, solver = float(history.objective[-1]), []
  if settings.solver and importlib.util.find_spec('cvxpy'):
    seconds, optimum = interior_point(x, y, patterns, beta)
    solver = [
      records.Figure(
        'interior point (Clarabel)', seconds, values={'objective': optimum}
      )
    ]
  good = np.abs(history.objective / optimum - 1) < 1e-3
  bad = np.flatnonzero(~(good & np.asarray(history.violation < 1e-3)))
  count = 20 * (int(bad[-1]) + 2 if len(bad) else 1)
  if count > most:
    note = {'ADMM': f'not within 1e-3 after {most} iterations'}
    return records.Run(title, '', solver, notes=note)
  admm, adams = 'ADMM within 1e-3', f'Adam, 3 rates x {steps} steps, 64 units'
  programs = {
    admm: timing.compiled(lambda x: run(x, count, count), x).call,
    adams: timing.compiled(lambda x: adam(x, y, beta, 64, steps), x).call,
  }
  times = timing.interleaved(programs, settings.repeats, settings.seconds / 2)
  network = convex.recover_network(run(x, count, count)[0].blocks)
  value = convex.network_objective(network, x, y, beta=beta)
  values = {
    admm: {'iterations': count, 'objective': float(value)},
    adams: {'objective': float(programs[adams]())},
  }
  figures = records.figures(times, admm, values)
  return records.Run(title, admm, [*solver, *figures])


def measure(settings: Settings) -> Iterator[records.Run]:
  yield speed(settings)
  with jax.enable_x64(True):
    made = to_the_optimum(settings)
  yield made


if __name__ == '__main__':
  program.run('convex', Settings, QUICK, measure)
