"""What needs no images: rates of consensus, and D-SGD near a saddle."""

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from byzjax import gossip, topology

from ...harness.cells import OwnCell, Rows

DECAYS = ((1.0, 0.0), (1.0, 0.4), (0.8, 0.2), (0.6, 0.1))
NOISES = (0.0, 0.05, 0.2)
_FIRST = 1000  # step from which exponents are fitted
_MIXINGS = 400  # rounds of plain gossip
_SADDLE_STEPS = 1500


def cells(graphs, steps: int, num_runs: int) -> list[OwnCell]:
  """Rates on all graphs; exponents and a saddle on a ring of 8."""

  def cell(part, graph, rule, measured, *arguments):
    labels = {'part': part, 'graph': graph, 'rule': rule, 'attack': 'none'}
    return OwnCell(
      labels=labels,
      make_rows=lambda seeds: [
        {**labels, **row} for row in measured(*arguments, seeds)
      ],
    )

  rates = [
    cell('rate', name, 'plain', consensus_rates, graph)
    for name, graph in graphs.items()
  ]
  exponents = [
    cell(
      'exponent', 'ring', f'decays {a:g}, {b:g}', consensus_exponents, a, b,
      steps,
    )
    for a, b in DECAYS
  ]  # fmt: skip
  saddles = [
    cell('saddle', 'ring', f'noise {noise:g}', saddle, noise, num_runs)
    for noise in NOISES
  ]
  return rates + exponents + saddles


def consensus_rates(graph: topology.Topology, seeds) -> Rows:
  """By what plain gossip multiplies the distance to the mean, in the end."""

  @jax.jit
  def distances(x):
    def step(x, _):
      # Scaled up again, or the distance would fall below rounding.
      x = gossip.mix(gossip.plain(), graph, x)
      x -= x.mean(axis=0, keepdims=True)
      norm = jnp.linalg.norm(x)
      # A complete graph is done at once.
      return x / jnp.where(norm > 0, norm, 1), norm

    return jax.lax.scan(step, x / jnp.linalg.norm(x), length=_MIXINGS)[1]

  rows = []
  for seed in seeds:
    x = np.random.default_rng(seed).normal(size=(graph.num_nodes, 10))
    factors = distances(jnp.asarray(x - x.mean(axis=0), jnp.float32))
    rows.append(
      {
        'seed': seed,
        'round': _MIXINGS,
        'expected': 1 - topology.spectral_gap(graph),
        'rate': float(factors[-1]),
      }
    )
  return rows


def consensus_exponents(tau_a: float, tau_b: float, steps: int, seeds) -> Rows:
  """The consensus error of D-SGD, and its exponent on a log-log scale."""
  rounds = byzjax.d_sgd(
    lambda params, batch: jnp.sum((params - batch) ** 2) / 2,
    topology=topology.ring(8),
    # Small: the error is alpha / (alpha + beta lambda_2), in the end.
    learning_rate=0.2,
    learning_rate_decay=tau_a,
    consensus=0.3,
    consensus_decay=tau_b,
  )

  @jax.jit
  def errors(goals):
    def step(state, _):
      state, info = rounds.step(state, goals, jax.random.key(0))
      return state, info.aggregation_error

    return jax.lax.scan(step, rounds.init(jnp.zeros(10)), length=steps)[1]

  k = np.arange(1, steps + 1)
  # Evenly spaced on the scale of the fit.
  chosen = np.unique(np.geomspace(_FIRST, steps, 50).astype(int)) - 1
  rows = []
  for seed in seeds:
    goals = np.random.default_rng(seed).normal(size=(8, 10))
    error = np.asarray(errors(jnp.asarray(goals, jnp.float32)))
    slope = np.polyfit(np.log(k[chosen]), np.log(error[chosen]), 1)[0]
    rows += [
      {
        'seed': seed,
        'round': int(i + 1),
        'aggregation_error': float(error[i]),
        'expected': tau_b - tau_a,
        'rate': float(slope),
      }
      for i in chosen[::7]
    ]
  return rows


def saddle(noise: float, num_runs: int, seeds) -> Rows:
  """Who leaves a saddle: f = (x1^2 - x2^2) / 2 + x2^4 / 4, n agents.

  Every agent has an offset of its own, along x1, and offsets sum to zero. All
  start at (1, 0), from where gradients lead to the saddle.
  """

  def value(x):
    return (x[..., 0] ** 2 - x[..., 1] ** 2) / 2 + x[..., 1] ** 4 / 4

  rounds = byzjax.d_sgd(
    lambda x, offset: value(x) + offset * x[0],
    topology=topology.ring(8),
    learning_rate=0.5,
    learning_rate_decay=0.6,
    consensus=0.3,
    gradient_noise=noise,
  )

  @jax.jit
  def run(keys, offsets):
    def of_key(key):
      def step(state, _):
        return rounds.step(state, offsets, key)[0], None

      state = rounds.init(jnp.array([1.0, 0.0]))
      return jax.lax.scan(step, state, length=_SADDLE_STEPS)[0].params

    return jax.vmap(of_key)(keys)

  rows = []
  for seed in seeds:
    drawn = np.random.default_rng(seed).normal(size=8)
    offsets = jnp.asarray(drawn - drawn.mean(), jnp.float32)
    x = np.asarray(
      run(jax.random.split(jax.random.key(seed), num_runs), offsets)
    )
    values = value(x)
    rows.append(
      {
        'seed': seed,
        'round': _SADDLE_STEPS,
        # All agents beyond the saddle.
        'left': float((np.abs(x[..., 1]) > 0.5).all(axis=1).mean()),
        'to_the_right': float((x[:, 0, 1] > 0).mean()),
        'value': float(values.mean()),
        'disagreement': float(np.ptp(values, axis=1).max()),
      }
    )
  return rows
