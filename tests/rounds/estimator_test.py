"""A gradient estimator in every round: what it is told, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony, topology
from tests.rounds import smooth_problem

SGD = optax.sgd(1.0)
# Its gradient is the number of the round, and its price three gradients.
COUNTING = byzjax.GradientEstimator(
  lambda params, batch, context: (
    jnp.zeros([]),
    jax.tree.map(lambda w: jnp.ones_like(w) * context.round, params),
  ),
  num_gradients=3,
)


def make(name, value_and_grad):
  shared = dict(value_and_grad=value_and_grad)
  if name == 'robust':
    return byzjax.robust_round(
      None, aggregator=byzjax.mean(), optimizer=SGD, num_workers=2, **shared
    )
  if name == 'local':
    return byzjax.local_round(
      None,
      aggregator=byzjax.mean(),
      optimizer=SGD,
      num_workers=2,
      local_optimizer=SGD,
      num_local_steps=2,
      **shared,
    )
  if name == 'asynchronous':
    events = asynchrony.simulate([1.0], num_events=4)
    return byzjax.asynchronous_round(
      None, events=events, optimizer=SGD, **shared
    )
  if name == 'modular':
    return byzjax.modular_round(
      None,
      paths=np.zeros((2, 1), int),
      optimizer=SGD,
      local_optimizer=SGD,
      num_local_steps=2,
      **shared,
    )
  return byzjax.gossip_round(
    None, topology=topology.complete(2), optimizer=SGD, **shared
  )


# name: estimates in a round, rows of the batch
ROUNDS = {
  'robust': (1, (2, 2)),
  'local': (2, (2, 2)),
  'asynchronous': (1, (1, 1)),
  'gossip': (1, (2, 2)),
  'modular': (2, (2, 2)),
}


@pytest.mark.parametrize('name', ROUNDS)
def test_knows_the_round_and_is_counted(name):
  estimates, shape = ROUNDS[name]
  start = (jnp.zeros([1, 3]),) if name == 'modular' else jnp.zeros(3)
  states = smooth_problem.run(
    make(name, COUNTING), start, [jnp.zeros(shape)] * 3
  )
  for t, (state, info) in enumerate(states):
    assert int(info.num_gradients) == 3 * estimates
    expected = -estimates * sum(range(t + 1))
    (params,) = jax.tree.leaves(state.params)
    np.testing.assert_array_equal(params, np.full_like(params, expected))


def test_what_a_plain_function_costs_is_not_known():
  rounds = make('robust', lambda params, batch, key: (jnp.zeros([]), params))
  _, info = smooth_problem.run(rounds, jnp.zeros(3), [jnp.zeros([2, 2])])[0]
  assert info.num_gradients is None


def test_a_state_of_the_same_numbers_twice_can_be_donated():
  # STORM starts where the parameters and the previous ones are the same.
  rounds = make('robust', byzjax.storm(smooth_problem.loss_fn, decay=0.9))
  step, state = jax.jit(rounds.step, donate_argnums=0), rounds.init(jnp.ones(3))
  for _ in range(2):
    state, _ = step(state, smooth_problem.batches(2), smooth_problem.KEY)
  assert int(state.step) == 2
