"""What needs no data: rates of consensus, and D-SGD near a saddle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import gossip, topology
from experiments import report

DECAYS = ((1.0, 0.0), (1.0, 0.4), (0.8, 0.2), (0.6, 0.1))
NOISES = (0.0, 0.05, 0.2)
_FIRST = 1000  # step from which slopes are fitted


def consensus_rates(graphs, num_seeds: int) -> report.Rows:
  """By what plain gossip multiplies the distance to the mean, in the end."""
  rows = []
  for name, graph in graphs.items():

    @jax.jit
    def distances(x, graph=graph):
      def step(x, _):
        # Scaled up again, or the distance would fall below rounding.
        x = gossip.mix(gossip.plain(), graph, x)
        x -= x.mean(axis=0, keepdims=True)
        norm = jnp.linalg.norm(x)
        # A complete graph is done at once.
        return x / jnp.where(norm > 0, norm, 1), norm

      return jax.lax.scan(step, x / jnp.linalg.norm(x), length=400)[1]

    for seed in range(num_seeds):
      x = np.random.default_rng(seed).normal(size=(graph.num_nodes, 10))
      factors = distances(jnp.asarray(x - x.mean(axis=0), jnp.float32))
      rows.append(
        {
          'graph': name,
          'seed': seed,
          'gap': topology.spectral_gap(graph),
          'rate': float(factors[-1]),
        }
      )
  return rows


def consensus_slopes(num_seeds: int, steps: int) -> report.Rows:
  """Exponents of the consensus error of D-SGD, fitted on a log-log scale."""
  graph, rows = topology.ring(8), []

  def loss_fn(params, batch):
    return jnp.sum((params - batch) ** 2) / 2

  for tau_a, tau_b in DECAYS:
    rounds = byzjax.d_sgd(
      loss_fn,
      topology=graph,
      # Small: the error is alpha / (alpha + beta lambda_2), in the end.
      learning_rate=0.2,
      learning_rate_decay=tau_a,
      consensus=0.3,
      consensus_decay=tau_b,
    )

    @jax.jit
    def errors(goals, rounds=rounds):
      def step(state, _):
        state, info = rounds.step(state, goals, jax.random.key(0))
        return state, info.aggregation_error

      return jax.lax.scan(step, rounds.init(jnp.zeros(10)), length=steps)[1]

    k = np.arange(1, steps + 1)
    # Evenly spaced on the scale of the fit.
    chosen = np.unique(np.geomspace(_FIRST, steps, 50).astype(int)) - 1
    for seed in range(num_seeds):
      goals = np.random.default_rng(seed).normal(size=(8, 10))
      error = np.asarray(errors(jnp.asarray(goals, jnp.float32)))
      slope = np.polyfit(np.log(k[chosen]), np.log(error[chosen]), 1)[0]
      rows.append(
        {
          'tau_a': tau_a,
          'tau_b': tau_b,
          'seed': seed,
          'slope': float(slope),
          'expected': tau_b - tau_a,
          **{f'error_{i + 1}': float(error[i]) for i in chosen[::7]},
        }
      )
  return rows


def saddle(num_seeds: int, num_runs: int, steps: int) -> report.Rows:
  """Who leaves a saddle: f = (x1^2 - x2^2) / 2 + x2^4 / 4, n agents.

  Every agent has an offset of its own, along x1, and offsets sum to zero. All
  start at (1, 0), from where gradients lead to the saddle.
  """
  graph, rows = topology.ring(8), []

  def value(x):
    return (x[..., 0] ** 2 - x[..., 1] ** 2) / 2 + x[..., 1] ** 4 / 4

  def loss_fn(x, offset):
    return value(x) + offset * x[0]

  @functools.partial(jax.jit, static_argnums=1)
  def run(keys, is_noisy, noise, offsets):
    rounds = byzjax.d_sgd(
      loss_fn,
      topology=graph,
      learning_rate=0.5,
      learning_rate_decay=0.6,
      consensus=0.3,
      gradient_noise=noise if is_noisy else 0.0,
    )

    def of_key(key):
      def step(state, _):
        return rounds.step(state, offsets, key)[0], None

      state = rounds.init(jnp.array([1.0, 0.0]))
      return jax.lax.scan(step, state, length=steps)[0].params

    return jax.vmap(of_key)(keys)

  for noise in NOISES:
    for seed in range(num_seeds):
      drawn = np.random.default_rng(seed).normal(size=8)
      offsets = jnp.asarray(drawn - drawn.mean(), jnp.float32)
      keys = jax.random.split(jax.random.key(seed), num_runs)
      x = np.asarray(run(keys, noise > 0, noise, offsets))
      values = value(x)
      rows.append(
        {
          'noise': noise,
          'seed': seed,
          # All agents beyond the saddle.
          'left': float((np.abs(x[..., 1]) > 0.5).all(axis=1).mean()),
          'value': float(values.mean()),
          'disagreement': float(np.ptp(values, axis=1).max()),
          'to_the_right': float((x[:, 0, 1] > 0).mean()),
        }
      )
  return rows


def learning_rates(decay: float = 0.9):
  """The optimizer of a node with local momentum, by its learning rate."""
  return lambda rate: optax.chain(
    byzjax.worker_momentum(decay), optax.sgd(rate)
  )
