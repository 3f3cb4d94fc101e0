"""Rounds of gossip: what they compute, their limits, and who survives whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import gossip, topology
from tests.gossip import oracle
from tests.rounds import gossip_problem as problem

N, TORUS, KEY = problem.N, problem.TORUS, problem.KEY


def _consensus(x, honest):
  mean = x[honest].mean(axis=0)
  return np.sqrt(np.mean(np.sum((x[honest] - mean) ** 2, axis=1)))


# The formula.


@pytest.mark.parametrize('order', ['adapt_then_combine', 'combine_while_adapt'])
def test_rounds_are_momentum_step_attack_and_gossip(order):
  rounds = problem.training(
    rule=gossip.clipped(radius=0.5),
    optimizer=optax.chain(byzjax.worker_momentum(0.9), optax.sgd(0.2)),
    order=order,
    consensus=0.7,
    attack=byzjax.constant(value=3.0),
    byzantine=3,
  )
  batch = problem.targets()
  state = problem.starts(rounds.init(problem.params()))
  x, goals = np.float64(state.params['w']), np.float64(batch)
  momentum = None
  _, infos, models = problem.scan(rounds, batch, 4, state)
  is_byzantine = np.arange(N) < 3
  honest = ~is_byzantine
  for t in range(4):
    gradient = x - goals
    loss = (np.sum((x - goals) ** 2, axis=1) / 2)[honest].mean()
    momentum = gradient if t == 0 else 0.9 * momentum + 0.1 * gradient
    update = -0.2 * momentum
    start = x + update if order == 'adapt_then_combine' else x
    sent = np.where(is_byzantine[:, None], 3.0, start)
    mixed = oracle.clipped(TORUS, sent, 0.5)
    for i in np.flatnonzero(is_byzantine):  # plain, from where it really is
      near = [j for j in oracle.neighbors(TORUS, i) if honest[j]]
      steps = [TORUS.mixing[i, j] * (start[j] - start[i]) for j in near]
      mixed[i] = start[i] + sum(steps)
    moved = 0.7 * (mixed - start)
    x = start + moved
    if order == 'combine_while_adapt':
      x = x + update
    np.testing.assert_allclose(models[t], x, 1e-4, 1e-5)
    np.testing.assert_allclose(infos.loss[t], loss, 1e-5)
    np.testing.assert_allclose(
      infos.aggregation_error[t], _consensus(x, honest), 1e-4
    )
  np.testing.assert_array_equal(infos.is_byzantine[-1], is_byzantine)
  assert (np.asarray(infos.bits_up) == 32 * problem.D * 4 * N).all()
  assert (np.asarray(infos.bits_down) == 0).all()


def test_optimizers_see_the_model_of_their_node():
  rounds = problem.training(
    optimizer=optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0)),
    consensus=0.0,
  )
  state = problem.starts(rounds.init(problem.params()))
  _, _, models = problem.scan(rounds, problem.targets(), 1, state)
  x = np.asarray(state.params['w'])
  expected = x - (x - problem.targets()) - 0.5 * x
  np.testing.assert_allclose(models[0], expected, 1e-5, 1e-6)


def test_state_keeps_its_type_and_compiles_once():
  params = {'w': jnp.full(problem.D, 0.5), 'b': jnp.zeros(2, jnp.bfloat16)}

  def loss_fn(params, batch):
    return problem.loss_fn(params, batch) + jnp.sum(params['b'] ** 2)

  rounds = byzjax.gossip_round(
    loss_fn,
    topology=topology.star(4),
    optimizer=optax.adam(0.1),
    rule=gossip.trimmed(num_byzantine=1),
    attack=gossip.dissensus(),
    byzantine=1,
    noise=0.1,
  )
  step = jax.jit(rounds.step, donate_argnums=0)
  state = rounds.init(params)
  describe = functools.partial(
    jax.tree.map, lambda x: (x.shape, x.dtype, x.weak_type)
  )
  expected = describe(state)
  for _ in range(3):
    state, _ = step(state, problem.targets(4), KEY)
    assert describe(state) == expected
  assert step._cache_size() == 1
  assert int(state.step) == 3 and state.params['b'].shape == (4, 2)
  np.testing.assert_array_equal(params['w'], 0.5)  # still the caller's


def test_seeds_in_one_vmap_equal_separate_runs():
  rounds = problem.training(noise=0.5)

  def run(key):
    state = rounds.init(problem.params())
    return rounds.step(state, problem.targets(), key)[0].params['w']

  keys = jax.random.split(KEY, 2)
  together, one = jax.jit(jax.vmap(run))(keys), jax.jit(run)
  for i in range(2):
    np.testing.assert_allclose(together[i], one(keys[i]), 1e-5, 1e-6)
  noise = together[0] - together[1]
  assert np.abs(noise).min() > 0
  # Every node draws its own, with the standard deviation asked for.
  assert len(np.unique(noise[:, 0])) == N
  np.testing.assert_allclose(
    np.std(noise / np.sqrt(2 / 5)), 0.5, rtol=0.25
  )  # gossip over 5 nodes with 1/5 each divides the variance by 5


# Limits.


def test_without_steps_models_go_to_their_mean():
  rounds = problem.training(optimizer=optax.sgd(0.0))
  state = problem.starts(rounds.init(problem.params()))
  mean = np.asarray(state.params['w']).mean(axis=0)
  _, infos, models = problem.scan(rounds, problem.targets(), 60, state)
  np.testing.assert_allclose(
    models.mean(axis=1), np.tile(mean, (60, 1)), 0, 1e-5
  )
  contraction = np.asarray(infos.aggregation_error)
  gap = topology.spectral_gap(TORUS)
  assert (contraction[1:20] <= (1 - gap) * contraction[:19] * 1.001).all()
  # Nor is it faster in the long run.
  rate = (contraction[19] / contraction[9]) ** 0.1
  np.testing.assert_allclose(rate, 1 - gap, rtol=0.01)


@pytest.mark.parametrize(
  'order, worker_map',
  [('adapt_then_combine', 3), ('combine_while_adapt', 'map')],
)
def test_without_consensus_nodes_run_alone(order, worker_map):
  rounds = problem.training(consensus=0.0, order=order, worker_map=worker_map)
  _, _, models = problem.scan(rounds, problem.targets(), 5)
  expected = np.float64(problem.targets()) * (1 - 0.9**5)
  np.testing.assert_allclose(models[-1], expected, 1e-5, 1e-6)


@pytest.mark.parametrize('graph', [topology.ring(1), topology.complete(1)])
def test_one_node_is_sgd(graph):
  rounds = problem.training(topology=graph)
  _, infos, models = problem.scan(rounds, problem.targets(1), 5)
  expected = np.float64(problem.targets(1)) * (1 - 0.9**5)
  np.testing.assert_allclose(models[-1], expected, 1e-5, 1e-6)
  np.testing.assert_array_equal(infos.aggregation_error, 0)


@pytest.mark.parametrize('order', ['adapt_then_combine', 'combine_while_adapt'])
def test_nodes_with_the_same_data_stay_equal_and_are_gradient_descent(order):
  batch = jnp.tile(problem.targets(1), (N, 1))
  rounds = problem.training(order=order)
  _, _, models = problem.scan(rounds, batch, 20)
  expected = np.float64(batch[0]) * (1 - 0.9**20)
  np.testing.assert_array_equal(models[-1], np.tile(models[-1][:1], (N, 1)))
  np.testing.assert_allclose(models[-1][0], expected, 1e-5, 1e-6)


def test_a_complete_graph_is_the_round_with_a_server():
  graph = topology.complete(6)
  batch = problem.targets(6)
  gossiping = problem.training(topology=graph, optimizer=optax.sgd(0.3))
  _, infos, models = problem.scan(gossiping, batch, 8)
  server = byzjax.robust_round(
    problem.loss_fn,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.3),
    num_workers=6,
  )
  _, _, expected = problem.scan(server, batch, 8)
  for i in range(6):
    np.testing.assert_allclose(models[:, i], expected, 1e-5, 1e-6)
  assert infos.aggregation_error.max() < 1e-6


def test_gossip_finds_the_mean_of_all_targets():
  schedule = optax.polynomial_schedule(0.5, 0.0, 1, 300)
  rounds = problem.training(optimizer=optax.sgd(schedule))
  _, _, models = problem.scan(rounds, problem.targets(), 300)
  mean = np.asarray(problem.targets()).mean(axis=0)
  np.testing.assert_allclose(models[-1], np.tile(mean, (N, 1)), 0, 0.03)


def test_schedules_are_read_at_the_step():
  rounds = problem.training(
    optimizer=optax.sgd(0.0), consensus=lambda step: jnp.where(step < 2, 0, 1)
  )
  state = problem.starts(rounds.init(problem.params()))
  _, infos, models = problem.scan(rounds, problem.targets(), 3, state)
  np.testing.assert_array_equal(models[1], state.params['w'])
  assert infos.aggregation_error[2] < 0.9 * infos.aggregation_error[1]


# Who is Byzantine.


@functools.cache
def _final_distance(rule, attack):
  """How far honest nodes are from the mean of what they want, at the end."""
  is_byzantine = np.arange(N) % 8 == 0
  rounds = problem.training(
    topology=topology.complete(N),
    rule=rule,
    attack=attack,
    byzantine=is_byzantine,
    optimizer=optax.sgd(0.2),
  )
  _, infos, models = problem.scan(rounds, problem.targets(), 60)
  wanted = np.asarray(problem.targets())[~is_byzantine].mean(axis=0)
  distance = np.linalg.norm(models[-1][~is_byzantine] - wanted, axis=1).max()
  return distance, infos


ATTACKS = {
  'dissensus': gossip.dissensus(epsilon=2.0),
  'sign_flip': byzjax.sign_flip(scale=20.0),
  'nan': byzjax.constant(value=jnp.nan),
  'huge': byzjax.constant(value=1e30),
}
RULES = {
  'clipped': gossip.clipped(num_byzantine=2),
  'nna': gossip.nearest_neighbor_averaging(num_byzantine=2),
  'trimmed': gossip.trimmed(num_byzantine=2),
  'plain': gossip.plain(),
}


@pytest.mark.parametrize(
  'rule, attack',
  [
    ('clipped', 'dissensus'),
    ('clipped', 'sign_flip'),
    ('nna', 'sign_flip'),
    ('nna', 'nan'),
    ('trimmed', 'dissensus'),
    ('plain', 'huge'),
  ],
)
def test_robust_rules_survive(rule, attack):
  distance, infos = _final_distance(RULES[rule], ATTACKS[attack])
  # Targets are about sqrt(5) from their mean.
  assert distance < 2
  masked = attack in ('nan', 'huge')
  expected = np.arange(N) % 8 == 0 if masked else np.zeros(N, bool)
  np.testing.assert_array_equal(infos.masked[-1], expected)
  assert int(infos.num_nonfinite[-1]) == expected.sum()


def test_plain_gossip_does_not():
  assert not _final_distance(RULES['plain'], ATTACKS['sign_flip'])[0] < 10


def test_more_than_half_of_all_nodes_may_lie():
  # Six attackers behind each end of a chain of four honest nodes, with two
  # honest neighbours each: what counts is the neighbourhood.
  edges = np.zeros((10, 10), bool)
  edges[:4, :4] = ~np.eye(4, dtype=bool)
  edges[0, 4:7] = edges[4:7, 0] = edges[3, 7:] = edges[7:, 3] = True
  rounds = problem.training(
    topology=topology.from_adjacency(edges),
    rule=gossip.nearest_neighbor_averaging(num_byzantine=3),
    attack=byzjax.constant(value=50.0),
    byzantine=np.arange(10) >= 4,
  )
  _, infos, models = problem.scan(rounds, problem.targets(10), 40)
  assert np.abs(models[-1][:4]).max() < 3
  assert infos.is_byzantine[-1].sum() == 6


def test_data_attacks_send_what_they_compute():
  def attack(batch, is_byzantine, key):
    del key
    return jnp.where(is_byzantine[:, None], -batch, batch)

  batch = problem.targets(6)
  rounds = problem.training(
    topology=topology.complete(6), attack=attack, byzantine=2
  )
  _, _, models = problem.scan(rounds, batch, 1)
  goals = np.asarray(batch) * np.where(np.arange(6) < 2, -1, 1)[:, None]
  np.testing.assert_allclose(models[0][3], 0.1 * goals.mean(axis=0), 1e-5, 1e-6)


def test_attacks_with_a_memory_learn_the_mean_of_honest_nodes():
  seen = byzjax.Attack(
    lambda params: jnp.zeros_like(params),
    lambda messages, state, **knowledge: (messages, state),
    lambda state, aggregate: aggregate,
  )
  rounds = problem.training(attack=seen, byzantine=4)
  state, _, models = problem.scan(rounds, problem.targets(), 2)
  np.testing.assert_allclose(state.attack, models[-1][4:].mean(axis=0), 1e-5)


@pytest.mark.parametrize(
  'kwargs, words',
  [
    (dict(num_workers=3), '16 nodes of the topology'),
    (dict(topology=np.eye(3)), 'to be a Topology'),
    (dict(rule=byzjax.mean()), 'one of byzjax.gossip'),
    (dict(order='first'), 'adapt_then_combine'),
    (dict(attack='all'), 'attack of byzjax.gossip'),
    (dict(byzantine=16), 'byzantine < 16'),
    (dict(byzantine=np.ones(16, bool)), 'at least one honest node'),
    (dict(byzantine=np.ones(3, bool)), r'bool\[16\]'),
    (dict(consensus=-1.0), 'consensus >= 0'),
    (dict(noise=-1.0), 'noise >= 0'),
    (dict(worker_map='all'), 'worker_map'),
  ],
)
def test_errors_say_what_is_wrong(kwargs, words):
  with pytest.raises(ValueError, match=words):
    problem.training(**kwargs)


def test_batches_need_a_row_for_every_node():
  rounds = problem.training()
  with pytest.raises(ValueError, match='num_workers=16 rows, got 3'):
    rounds.step(rounds.init(problem.params()), problem.targets(3), KEY)
