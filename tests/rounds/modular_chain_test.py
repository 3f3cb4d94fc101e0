"""Modular rounds: a chain of every path on what it sends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from tests.rounds import modular_problem as problem
from tests.rounds.modular_problem import PATHS, close, modular, run

RADIUS, DECAY = 0.5, 0.6
CHAIN = optax.chain(
  optax.clip_by_global_norm(RADIUS), byzjax.worker_momentum(DECAY)
)


class Chain:
  """Clipping of a whole message, then momentum: of each path, in float64."""

  def __init__(self, who=range(len(PATHS))):
    self.who, self.momentum = set(who), {}

  def __call__(self, i, levels):
    if i not in self.who:
      return levels
    length = np.linalg.norm(np.float64(problem.flat(levels)))
    share = min(1.0, RADIUS / length)
    new = jax.tree.map(lambda x: share * np.float64(x), levels)
    if i in self.momentum:  # which begins at the first message
      new = jax.tree.map(
        lambda m, x: DECAY * m + (1 - DECAY) * x, self.momentum[i], new
      )
    self.momentum[i] = new
    return new


def test_a_path_has_a_chain_and_its_state_for_all_of_its_message():
  """The length is that of the whole path, and who is away keeps its state."""
  start, batches = problem.params(), problem.batches(num_rounds=3)
  present = np.ones((3, 5), np.float32)
  present[1, [1, 4]] = 0
  rounds = modular(
    worker=CHAIN, worker_weights=lambda step: jnp.asarray(present)[step]
  )
  state, _ = run(rounds, start, batches)
  chain = Chain()
  expected, _ = problem.loop(start, batches, weights=present, chain=chain)
  close(state.params, expected)
  momentum = state.workers.chain[1].momentum
  for i in range(len(PATHS)):
    np.testing.assert_allclose(
      momentum[i], problem.flat(chain.momentum[i]), 1e-5, 1e-6
    )
  # It was not in vain.
  others, _ = problem.loop(start, batches, weights=present)
  moved = problem.flat(others) - problem.flat(expected)
  assert np.linalg.norm(moved) > 0.1


def test_attackers_may_do_without_the_chain():
  start, batches = problem.params(), problem.batches()

  def poison(batch, is_byzantine, key=None):
    del key
    return jnp.where(is_byzantine.reshape(-1, 1, 1), 50.0, batch)

  rounds = modular(
    worker=CHAIN,
    attack=poison,
    byzantine=np.arange(5) == 1,
    byzantine_chain=False,
  )
  state, _ = run(rounds, start, batches)
  poisoned = batches.at[:, 1].set(50.0)
  expected, _ = problem.loop(start, poisoned, chain=Chain([0, 2, 3, 4]))
  close(state.params, expected)


def test_a_chain_is_given_the_parameters_of_its_path():
  """Weight decay tells one path from another."""
  start, batches = problem.params(), problem.batches(num_rounds=1)
  rounds = modular(
    worker=optax.add_decayed_weights(0.5), optimizer=optax.sgd(1.0)
  )
  state, _ = run(rounds, start, batches)

  def decayed(i, levels):
    return jax.tree.map(
      lambda x, w: x + 0.5 * w, levels, problem.module(start, PATHS[i])
    )

  expected, _ = problem.loop(
    start, batches, epsilon=1.0, beta=0.0, chain=decayed
  )
  close(state.params, expected)
