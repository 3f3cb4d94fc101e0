"""Gossip of public copies, whose steps go through a codec: CHOCO-SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import gossip, topology
from tests.gossip import oracle
from tests.rounds import gossip_problem as problem
from tests.rounds import problem as tables

N, TORUS, KEY, D = problem.N, problem.TORUS, problem.KEY, problem.D
TOP = byzjax.top_k_codec(num_kept=2)
SIGN = byzjax.scaled_sign_codec()


def top(x):
  """The two largest of every row."""
  kept = np.zeros_like(x)
  for row, new in zip(x, kept):
    largest = np.argsort(-np.abs(row), kind='stable')[:2]
    new[largest] = row[largest]
  return kept


@pytest.mark.parametrize('order', ['adapt_then_combine', 'combine_while_adapt'])
def test_rounds_are_steps_of_copies_and_gossip_of_them(order):
  rounds = problem.training(
    rule=gossip.clipped(radius=0.5),
    optimizer=optax.sgd(0.2),
    order=order,
    consensus=0.4,
    attack=byzjax.constant(value=3.0),
    byzantine=3,
    codec=TOP,
  )
  batch = problem.targets()
  state = problem.starts(rounds.init(problem.params()))
  x, goals = np.float64(state.params['w']), np.float64(batch)
  copies = np.zeros_like(x)  # the start that all were told
  state, infos, models = problem.scan(rounds, batch, 4, state)
  is_byzantine = (np.arange(N) < 3)[:, None]
  for t in range(4):
    update = -0.2 * (x - goals)
    start = x + update if order == 'adapt_then_combine' else x
    wanted = np.where(is_byzantine, 3.0, start)
    copies = copies + top(wanted - copies)
    mixed = oracle.clipped(TORUS, copies, 0.5) - copies
    for i in range(3):  # plain, from where it really is
      near = [j for j in oracle.neighbors(TORUS, i) if j >= 3]
      mixed[i] = sum(TORUS.mixing[i, j] * (copies[j] - start[i]) for j in near)
    x = start + 0.4 * mixed
    if order == 'combine_while_adapt':
      x = x + update
    np.testing.assert_allclose(models[t], x, 1e-4, 1e-5)
  np.testing.assert_allclose(state.codec.rows, copies, 1e-4, 1e-5)
  # Two values and two indices of 3 bits, to four neighbours each.
  np.testing.assert_array_equal(infos.bits_up, 2 * (32 + 3) * 4 * N)
  np.testing.assert_array_equal(infos.bits_down, 0)


def test_every_node_has_a_codec_state_of_its_own():
  rounds = problem.training(
    optimizer=optax.set_to_zero(),
    consensus=0.3,
    codec=byzjax.error_feedback(SIGN),
  )
  state = problem.starts(rounds.init(problem.params()))
  x = np.float64(state.params['w'])
  copies, residual = np.zeros_like(x), np.zeros_like(x)
  state, infos, models = problem.scan(rounds, problem.targets(), 3, state)
  for t in range(3):
    total = x - copies + residual
    signs = np.where(total < 0, -1, 1)
    sent = np.abs(total).mean(axis=1, keepdims=True) * signs
    residual = total - sent
    copies = copies + sent
    x = x + 0.3 * (oracle.plain(TORUS, copies) - copies)
    np.testing.assert_allclose(models[t], x, 1e-4, 1e-5)
  kept = state.codec.codec.residual[:, :D]
  np.testing.assert_allclose(kept, residual, 1e-4, 1e-5)
  np.testing.assert_array_equal(infos.bits_up, (32 + D) * 4 * N)


@pytest.mark.parametrize(
  'attack, graph',
  [
    (None, 'star'),
    (byzjax.alie(z=1.0), 'torus'),
    (gossip.alone(byzjax.sign_flip(scale=3.0, own=True)), 'torus'),
    (gossip.dissensus(), 'torus'),
  ],
  ids=['none', 'alie', 'alone', 'dissensus'],
)
def test_a_codec_that_loses_nothing_is_no_codec(attack, graph):
  graph = TORUS if graph == 'torus' else topology.star(6)
  n = graph.num_nodes
  results = []
  for codec in (None, byzjax.top_k_codec(num_kept=D)):
    rounds = problem.training(
      topology=graph,
      rule=gossip.clipped(num_byzantine=1),
      attack=attack,
      byzantine=attack and 3,
      consensus=0.8,
      noise=0.1,
      codec=codec,
    )
    state = problem.starts(rounds.init(problem.params()))
    results.append(problem.scan(rounds, problem.targets(n), 4, state))
  (_, expected_infos, expected), (_, infos, models) = results
  np.testing.assert_allclose(models, expected, 1e-4, 1e-5)
  np.testing.assert_allclose(infos.loss, expected_infos.loss, 1e-4)
  factor = 35 / 32  # an index of 3 bits beside each number
  np.testing.assert_allclose(infos.bits_up, expected_infos.bits_up * factor)


def test_the_mean_stays_and_one_number_a_message_is_enough():
  """What a codec loses is sent later: nodes still agree, on their mean."""
  rounds = problem.training(
    optimizer=optax.set_to_zero(),
    consensus=0.3,
    codec=byzjax.top_k_codec(num_kept=1),
  )
  state = problem.starts(rounds.init(problem.params()))
  mean = np.asarray(state.params['w']).mean(axis=0)
  _, infos, models = problem.scan(rounds, problem.targets(), 300, state)
  np.testing.assert_allclose(
    models.mean(axis=1), np.tile(mean, (300, 1)), 0, 1e-5
  )
  distance = np.asarray(infos.aggregation_error)
  assert distance[-1] < 1e-4 * distance[0]


def test_it_finds_the_mean_of_all_targets():
  schedule = optax.polynomial_schedule(0.5, 0.0, 1, 800)
  rounds = problem.training(
    optimizer=optax.sgd(schedule), consensus=0.5, codec=TOP
  )
  _, _, models = problem.scan(rounds, problem.targets(), 800)
  mean = np.asarray(problem.targets()).mean(axis=0)
  np.testing.assert_allclose(models[-1], np.tile(mean, (N, 1)), 0, 0.03)


def counted():
  """As it is, at a bit for every number that is not zero."""
  return byzjax.top_k_codec(num_kept=D)._replace(
    bits_per_message=lambda payload, d: jnp.sum(payload[:d] != 0, dtype=float)
  )


def test_bits_are_those_of_every_message_on_every_edge():
  star = topology.star(5)
  rounds = problem.training(topology=star, codec=counted())
  batch = problem.targets(5).at[0, :3].set(0.0).at[4].set(0.0)
  step = jax.jit(rounds.step)
  _, info = step(rounds.init(problem.params()), batch, KEY)
  assert float(info.bits_up) == 4 * (D - 3) + 3 * D + 0


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
def test_what_is_no_number_is_not_remembered(value):
  """Attackers of the first two rounds are heard again when they stop."""
  rounds = problem.training(
    attack=byzjax.constant(value=value),
    byzantine=lambda step: (jnp.arange(N) < 3) & (step < 2),
    codec=TOP,
    consensus=0.4,
  )
  state, infos, models = problem.scan(rounds, problem.targets(), 40)
  for t in range(4):
    expected = (np.arange(N) < 3) & (t < 2)
    np.testing.assert_array_equal(infos.masked[t], expected)
  assert np.isfinite(models).all()
  assert np.abs(np.asarray(state.codec.rows - models[-1])).max() < 1


def test_a_rule_survives_what_a_mean_does_not():
  is_byzantine = np.arange(N) % 8 == 0
  distances = []
  for rule in (gossip.trimmed(num_byzantine=2), gossip.plain()):
    rounds = problem.training(
      topology=topology.complete(N),
      rule=rule,
      attack=byzjax.constant(value=200.0),
      byzantine=is_byzantine,
      optimizer=optax.sgd(0.2),
      consensus=0.5,
      codec=SIGN,
    )
    _, _, models = problem.scan(rounds, problem.targets(), 60)
    honest = models[-1][~is_byzantine]
    wanted = np.asarray(problem.targets())[~is_byzantine].mean(axis=0)
    distances.append(np.linalg.norm(honest - wanted, axis=1).max())
  assert distances[0] < 2 and not distances[1] < 10


@pytest.mark.parametrize(
  'codec',
  [
    TOP,
    byzjax.error_feedback(SIGN),
    byzjax.qsgd_codec(norm='linf'),
  ],
  ids=['top_k', 'error_feedback', 'qsgd'],
)
def test_eight_devices_agree_with_one(codec):
  results = []
  for mesh in (None, tables.mesh(8)):
    rounds = problem.training(
      topology=topology.ring(N),
      rule=gossip.clipped(),
      codec=codec,
      consensus=0.3,
      attack=gossip.alone(byzjax.gaussian(std=3.0)),
      byzantine=jnp.arange(N) % 7 == 3,
      mesh=mesh,
    )
    results.append(problem.scan(rounds, problem.targets(), 4))
  (state, infos, models), (expected_state, expected, expected_models) = results
  np.testing.assert_allclose(models, expected_models, 1e-4, 1e-5)
  for actual, wanted in zip(
    jax.tree.leaves((state, infos)), jax.tree.leaves((expected_state, expected))
  ):
    np.testing.assert_allclose(actual, wanted, 1e-4, 1e-5)
  assert np.abs(models[-1]).max() > 0.1  # something happened
