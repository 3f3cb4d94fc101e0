"""Gossip between which nodes take several steps of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import gossip, objectives, topology
from tests.gossip import oracle
from tests.rounds import gossip_problem as problem
from tests.rounds import problem as tables

N, TORUS, KEY, D = problem.N, problem.TORUS, problem.KEY, problem.D
MOMENTUM = optax.sgd(0.2, momentum=0.9)


def slices(num_steps=3, n=N, seed=2):
  """Targets `[n, S, d]`, one for every local step."""
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(size=(n, num_steps, D)), jnp.float32)


def steps(x, momentum, goals):
  """Heavy-ball steps of one node, and their losses: the loop of a user."""
  losses = []
  for goal in goals:
    losses.append(np.sum((x - goal) ** 2) / 2)
    momentum = 0.9 * momentum + (x - goal)
    x = x - 0.2 * momentum
  return x, momentum, losses


@pytest.mark.parametrize(
  'order, local_state',
  [('adapt_then_combine', 'keep'), ('combine_while_adapt', 'reset')],
)
def test_rounds_are_local_steps_attack_and_gossip(order, local_state):
  counts = np.array([3, 3, 2, 1] * 4)
  rounds = problem.training(
    rule=gossip.clipped(radius=0.5),
    optimizer=MOMENTUM,
    num_local_steps=lambda step: jnp.where(step < 2, jnp.asarray(counts), 2),
    local_state=local_state,
    order=order,
    consensus=0.7,
    attack=byzjax.constant(value=3.0),
    byzantine=3,
    worker_map='map',
  )
  batch = slices()
  state = problem.starts(rounds.init(problem.params()))
  x, goals = np.float64(state.params['w']), np.float64(batch)
  momentum = np.zeros_like(x)
  state, infos, models = problem.scan(rounds, batch, 3, state)
  is_byzantine = np.arange(N) < 3
  for t in range(3):
    taken = counts if t < 2 else np.full(N, 2)
    if local_state == 'reset':
      momentum = np.zeros_like(x)
    after, losses = x.copy(), []
    for i in range(N):
      after[i], momentum[i], own = steps(
        x[i], momentum[i], goals[i, : taken[i]]
      )
      losses.append(np.mean(own))
    start = after if order == 'adapt_then_combine' else x
    sent = np.where(is_byzantine[:, None], 3.0, start)
    mixed = oracle.clipped(TORUS, sent, 0.5)
    for i in range(3):  # plain, from where it really is
      near = [j for j in oracle.neighbors(TORUS, i) if j >= 3]
      mixed[i] = start[i] + sum(
        TORUS.mixing[i, j] * (start[j] - start[i]) for j in near
      )
    step = after - x
    x = start + 0.7 * (mixed - start)
    if order == 'combine_while_adapt':
      x = x + step
    np.testing.assert_allclose(models[t], x, 1e-4, 1e-5)
    np.testing.assert_allclose(infos.loss[t], np.mean(losses[3:]), 1e-5)
    np.testing.assert_array_equal(infos.num_local_steps[t], taken)
  np.testing.assert_array_equal(state.workers.num_steps, 2 * counts + 2)
  kept = jax.tree.leaves(state.workers.optimizer)
  if local_state == 'keep':
    np.testing.assert_allclose(kept[0], momentum, 1e-4, 1e-5)
  else:
    assert not kept


def test_on_a_complete_graph_it_is_federated_averaging():
  batch = slices(4, 6)
  shared = dict(num_local_steps=4)
  gossiping = problem.training(
    topology=topology.complete(6), optimizer=optax.sgd(0.2), **shared
  )
  _, infos, models = problem.scan(gossiping, batch, 5)
  server = byzjax.fed_avg(
    problem.loss_fn, learning_rate=0.2, num_workers=6, **shared
  )
  _, expected_infos, expected = problem.scan(server, batch, 5)
  for i in range(6):
    np.testing.assert_allclose(models[:, i], expected, 1e-5, 1e-6)
  np.testing.assert_allclose(infos.loss, expected_infos.loss, 1e-5)


def test_one_step_is_the_round_without_local_steps():
  batch = slices(1)
  results = []
  for arguments, data in (
    (dict(num_local_steps=1), batch),
    (dict(), batch[:, 0]),
    (dict(local_state='reset'), batch[:, 0]),
  ):
    rounds = problem.training(optimizer=MOMENTUM, **arguments)
    _, infos, models = problem.scan(rounds, data, 4)
    results.append((models, infos))
  (models, infos), (expected, expected_infos), (reset, _) = results
  np.testing.assert_allclose(models, expected, 1e-6, 1e-6)
  np.testing.assert_allclose(infos.loss, expected_infos.loss, 1e-6)
  assert expected_infos.num_local_steps is None
  # And with nothing to remember heavy balls are as slow as others.
  plain, _, slow = problem.scan(problem.training(), batch[:, 0], 4)
  x = np.zeros((N, D))
  for _ in range(4):
    x = oracle.plain(TORUS, x - 0.2 * (x - np.float64(batch[:, 0])))
  np.testing.assert_allclose(reset[-1], x, 1e-5, 1e-6)
  assert plain.step == 4 and not np.allclose(slow[-1], x)


def in_order():
  """A sampler that remembers how many batches it has given, by its data."""

  def draw(plan, data, step, key):
    del step, key
    return data[plan % data.shape[0]], plan + 1

  return byzjax.LocalSampler(
    init=lambda params: jnp.zeros([], jnp.int32),
    start=lambda state, params, data, key: state,
    draw=draw,
    # With the model of the node, in the form of the parameters.
    finish=lambda state, params: state + 0 * params['w'].size,
    carry_over=lambda plan, state: plan,
  )


@pytest.mark.parametrize('num_local_steps', [None, 2])
def test_samplers_draw_every_batch(num_local_steps):
  batch = slices(5)
  rounds = problem.training(
    sampler=in_order(), num_local_steps=num_local_steps, consensus=0.5
  )
  state, infos, models = problem.scan(rounds, batch, 4)
  h = num_local_steps or 1
  x, goals = np.zeros((N, D)), np.float64(batch)
  for t in range(4):
    for k in range(t * h, (t + 1) * h):
      x = x - 0.1 * (x - goals[:, k % 5])
    x = x + 0.5 * (oracle.plain(TORUS, x) - x)
    np.testing.assert_allclose(models[t], x, 1e-5, 1e-6)
  np.testing.assert_array_equal(state.workers.sampler, 4 * h)
  np.testing.assert_array_equal(infos.num_local_steps, h)
  np.testing.assert_array_equal(infos.num_gradients, h)


def test_optimizers_and_objectives_know_their_node():
  """Progress, the flat vector, and the model at the start of the round."""
  rounds = byzjax.gossip_round(
    objectives.proximal(problem.loss_fn, mu=0.5),
    topology=TORUS,
    optimizer=optax.chain(
      byzjax.clip_coordinates(threshold=1.0),
      byzjax.scale_by_progress(lambda steps: 0.1 / (1 + steps)),
    ),
    num_local_steps=3,
    consensus=0.0,
  )
  batch = slices()
  state = problem.starts(rounds.init(problem.params()))
  x, goals = np.float64(state.params['w']), np.float64(batch)
  _, _, models = problem.scan(rounds, batch, 2, state)
  for t in range(2):
    anchor = x
    for k in range(3):
      gradient = x - goals[:, k] + 0.5 * (x - anchor)
      x = x - 0.1 / (1 + 3 * t + k) * np.clip(gradient, -1, 1)
    np.testing.assert_allclose(models[t], x, 1e-5, 1e-6)


def test_data_attacks_are_on_every_local_step_and_hear_no_server():
  def attack(batch, is_byzantine, key, rank, params=None):
    del key
    assert params is None
    return jnp.where(is_byzantine[:, None], rank[:, None] + 0.0 * batch, batch)

  batch = slices(2)
  rounds = problem.training(
    attack=attack, byzantine=2, num_local_steps=2, consensus=0.0
  )
  _, _, models = problem.scan(rounds, batch, 1)
  goals = np.array(batch, np.float64)
  goals[0], goals[1] = 0, 1
  x = np.zeros((N, D))
  for k in range(2):
    x = x - 0.1 * (x - goals[:, k])
  np.testing.assert_allclose(models[0], x, 1e-5, 1e-6)


def test_state_keeps_its_type_and_compiles_once():
  params = {'w': jnp.full(D, 0.5), 'b': jnp.zeros(2, jnp.bfloat16)}

  def loss_fn(params, batch):
    return problem.loss_fn(params, batch) + jnp.sum(params['b'] ** 2)

  rounds = byzjax.gossip_round(
    loss_fn,
    topology=topology.star(4),
    optimizer=optax.adam(0.1),
    sampler=in_order(),
    num_local_steps=np.array([2, 3, 1]),
    noise=0.1,
    codec=byzjax.error_feedback(byzjax.scaled_sign_codec()),
  )
  step = jax.jit(rounds.step, donate_argnums=0)
  state = rounds.init(params)

  def describe(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)

  expected = describe(state)
  for h in (2, 3, 1, 0):
    state, info = step(state, slices(3, 4), KEY)
    assert describe(state) == expected
    assert int(info.num_local_steps) == h
  assert step._cache_size() == 1


@pytest.mark.parametrize('worker_map', ['vmap', 'map'])
def test_eight_devices_agree_with_one(worker_map):
  results = []
  for mesh in (None, tables.mesh(8)):
    rounds = problem.training(
      topology=topology.ring(N),
      optimizer=MOMENTUM,
      rule=gossip.clipped(),
      num_local_steps=lambda step: 1 + jnp.arange(N) % 3,
      sampler=in_order(),
      noise=0.05,
      attack=gossip.alone(byzjax.sign_flip(scale=3.0, own=True)),
      byzantine=jnp.arange(N) % 7 == 3,
      worker_map=worker_map,
      mesh=mesh,
    )
    results.append(problem.scan(rounds, slices(4), 4))
  (state, infos, models), (expected_state, expected, expected_models) = results
  np.testing.assert_allclose(models, expected_models, 1e-4, 1e-5)
  for actual, wanted in zip(
    jax.tree.leaves((state, infos)), jax.tree.leaves((expected_state, expected))
  ):
    np.testing.assert_allclose(actual, wanted, 1e-4, 1e-5)
  assert np.linalg.norm(models[-1] - models[0]) > 0.5  # something happened


@pytest.mark.parametrize(
  'kwargs, words',
  [
    (dict(num_local_steps=0), 'num_local_steps to be a Python int'),
    (dict(local_state='average'), 'local_state to be one of keep, reset'),
    (dict(codec=byzjax.alie()), 'codec to be a Codec or None'),
  ],
)
def test_errors_say_what_is_wrong(kwargs, words):
  with pytest.raises(ValueError, match=f'gossip_round needs {words}'):
    problem.training(**kwargs)


def test_errors_of_samplers_and_slices():
  with pytest.raises(TypeError, match='gossip_round needs sampler to be of'):
    problem.training(sampler='in order')
  rounds = problem.training(num_local_steps=4)
  state = rounds.init(problem.params())
  with pytest.raises(ValueError, match='num_local_steps=4 local steps, or a'):
    rounds.step(state, slices(3), KEY)
