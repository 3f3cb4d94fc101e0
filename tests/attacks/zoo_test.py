"""Attacks over several rounds, with honest accidents, and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax._src import draws
from tests import reference, reference_attacks, tables
from tests.attacks.scenes import ATTACKS, BAD, KEY, SIZE, N, messages
from tests.rounds import problem

ROUNDS = 6


@functools.cache
def _compiled(attack):
  @jax.jit
  def run(x, aggregates, bad):
    def step(state, inputs):
      x, aggregate, t = inputs
      sent, state = attack.apply(
        tables.to_tree(x),
        state,
        is_byzantine=bad,
        key=jax.random.fold_in(KEY, t),
      )
      if attack.observe is not None:
        state = attack.observe(state, tables.to_tree(aggregate))
      return state, sent

    # The scan itself refuses a state that changes its type.
    start = attack.init(tables.to_tree(jnp.zeros(SIZE)))
    return jax.lax.scan(step, start, (x, aggregates, jnp.arange(len(x))))

  return run


def _run(attack, x, aggregates=None, bad=BAD):
  """What two attackers send in each round, [T, 2, d], and the last state."""
  if aggregates is None:
    aggregates = np.zeros((len(x), SIZE), np.float32)
  state, sent = _compiled(attack)(x, aggregates, jnp.asarray(bad))
  return tables.to_matrix(sent, x.shape[:2])[:, np.flatnonzero(BAD)[:2]], state


def _normal(t):
  """The draw that serves all attackers of round t."""
  key = jax.random.fold_in(jax.random.fold_in(KEY, t), 0)
  return np.float64(draws.draw(jax.random.normal, key, jnp.zeros(SIZE)))


# Against the oracle, over several rounds.


@pytest.mark.parametrize('num_warmup_rounds', [1, 4])
def test_mimic_copies_whom_the_power_iteration_finds(num_warmup_rounds):
  x = messages(ROUNDS)
  attack = byzjax.mimic(num_warmup_rounds=num_warmup_rounds)
  sent, state = _run(attack, x)
  honest = np.float64(x[:, ~BAD])
  targets, z = reference_attacks.mimic(honest, _normal(0), num_warmup_rounds)
  expected = np.array([rows[i] for rows, i in zip(honest, targets)])
  np.testing.assert_array_equal(sent[:, 0], expected)
  np.testing.assert_array_equal(sent[:, 1], expected)
  direction = tables.to_matrix(state.direction)
  np.testing.assert_allclose(direction, z, 1e-4, 1e-5)
  assert len(set(targets[num_warmup_rounds - 1 :])) == 1


def test_the_warmup_finds_the_direction_of_the_largest_spread():
  x = messages(30)
  _, state = _run(byzjax.mimic(num_warmup_rounds=30), x)
  y = np.float64(x[:, ~BAD])
  y = (y - y.mean(axis=(0, 1))).reshape(-1, SIZE)
  principal = np.linalg.eigh(y.T @ y)[1][:, -1]
  assert abs(principal @ tables.to_matrix(state.direction)) > 0.99


def test_a_target_that_is_no_longer_honest_gives_way_for_the_round():
  x = messages(ROUNDS)
  first = np.flatnonzero(~BAD)[0]
  targets, _ = reference_attacks.mimic(x[:, ~BAD], _normal(0), 1)
  target = np.flatnonzero(~BAD)[targets[0]]
  assert target != first
  x[3, target] = np.nan
  sent, _ = _run(byzjax.mimic(), x)
  expected = x[:, target]
  expected[3] = x[3, first]
  np.testing.assert_array_equal(sent[:, 0], expected)


@pytest.mark.parametrize('direction', ['random', 'gradient'])
def test_drift_pushes_the_same_way_in_every_round(direction):
  x = messages(ROUNDS)
  attack = byzjax.drift(strength=0.7, direction=direction)
  sent, state = _run(attack, x)
  u = _normal(0) if direction == 'random' else -x[0, ~BAD].mean(axis=0)
  u = reference_attacks.unit(np.float64(u))
  expected = [reference_attacks.drift(rows[~BAD], u, 0.7) for rows in x]
  np.testing.assert_allclose(sent[:, 0], expected, 1e-5, 1e-5)
  np.testing.assert_array_equal(sent[:, 1], sent[:, 0])
  np.testing.assert_allclose(tables.to_matrix(state.direction), u, 1e-5, 1e-6)


def test_drift_waits_for_a_gradient_that_is_not_zero():
  x = messages(ROUNDS)
  x[:2] = 0
  sent, state = _run(byzjax.drift(direction='gradient'), x)
  np.testing.assert_array_equal(sent[:2], 0)
  u = reference_attacks.unit(-np.float64(x[2, ~BAD]).mean(axis=0))
  np.testing.assert_allclose(tables.to_matrix(state.direction), u, 1e-5, 1e-6)


@pytest.mark.parametrize('delay', [1, 3, 9])
def test_replay_sends_what_was_true(delay):
  x = messages(ROUNDS)
  sent, _ = _run(byzjax.replay(delay=delay), x)
  means = [reference.mean(rows[~BAD]) for rows in x]
  expected = reference_attacks.replay(means, delay)
  np.testing.assert_allclose(sent[:, 0], expected, 1e-5, 1e-6)
  np.testing.assert_array_equal(sent[:, 1], sent[:, 0])

  sent, _ = _run(byzjax.replay(delay=delay, own=True, num_workers=N), x)
  expected = reference_attacks.replay(x[:, [1, 5]], delay)
  np.testing.assert_array_equal(sent, expected)


@pytest.mark.parametrize(
  'pi, lam, angle, z',
  [(1.0, 0.9, 270.0, None), (0.3, 0.5, 30.0, 2.0), (0.0, 1.0, 180.0, 0.1)],
)
def test_relocated_orthogonal_perturbation(pi, lam, angle, z):
  x = messages(ROUNDS)
  aggregates = messages(ROUNDS, seed=1)[:, 0]
  attack = byzjax.relocated_orthogonal_perturbation(
    pi=pi, lam=lam, angle=angle, z=z
  )
  sent, _ = _run(attack, x, aggregates)
  z = reference.alie_factor(N, BAD.sum()) if z is None else z
  expected = [
    reference_attacks.relocated_orthogonal_perturbation(
      rows[~BAD], previous, pi, lam, angle, z
    )
    for rows, previous in zip(x, [None, *np.float64(aggregates)])
  ]
  np.testing.assert_allclose(sent[:, 0], expected, 1e-4, 1e-5)
  np.testing.assert_array_equal(sent[:, 1], sent[:, 0])


def test_relocated_orthogonal_perturbation_is_not_clipped():
  x, aggregates = messages(ROUNDS), messages(ROUNDS, seed=1)[:, 0]
  attack = byzjax.relocated_orthogonal_perturbation(lam=1.0, z=0.4)
  sent, _ = _run(attack, x, aggregates)
  push = sent[1:, 0] - np.float64(aggregates[:-1])
  np.testing.assert_allclose(np.linalg.norm(push, axis=1), 0.4, 1e-4)
  across = np.einsum('td,td->t', push, aggregates[:-1])
  np.testing.assert_allclose(across, 0, atol=1e-4)


# Honest accidents.


@pytest.mark.parametrize('name', [k for k in ATTACKS if k != 'replay_own'])
def test_an_honest_nan_is_as_if_the_worker_were_not_there(name):
  x, attack = messages(3), ATTACKS[name]
  broken = x.copy()
  broken[:, N - 1, 4] = [np.nan, np.inf, -np.inf]
  sent, _ = _run(attack, broken)
  expected, _ = _run(attack, x, bad=BAD | (np.arange(N) == N - 1))
  assert np.isfinite(sent).all()
  np.testing.assert_array_equal(sent, expected)


@pytest.mark.parametrize(
  'name', [k for k, attack in ATTACKS.items() if not attack.reads_own]
)
def test_what_attackers_would_have_sent_is_not_read(name):
  x = messages(3)
  expected, _ = _run(ATTACKS[name], x)
  for garbage in (np.nan, -np.inf, 3e38):
    x[:, BAD] = garbage
    sent, _ = _run(ATTACKS[name], x)
    np.testing.assert_array_equal(sent, expected)


def test_only_replays_of_ones_own_messages_read_them():
  assert [k for k, a in ATTACKS.items() if a.reads_own] == ['replay_own']


@pytest.mark.parametrize('name', ['mimic', 'min_max', 'min_sum', 'fang'])
def test_equal_messages_and_zeros_give_no_nan(name):
  for value in (0.0, 3.0):
    x = np.full((2, N, SIZE), value, np.float32)
    sent, _ = _run(ATTACKS[name], x)
    lowest = {'fang': value / 2}.get(name, value)
    assert (sent >= lowest - 1e-5).all() and (sent <= value + 1e-5).all()


@pytest.mark.parametrize(
  'attack', [byzjax.alie(z=1.0), byzjax.min_max(), byzjax.min_sum()]
)
def test_where_messages_are_equal_there_are_derivatives(attack):
  x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
  x[:, 1] = 0  # such as that of a unit that is never active

  def sent(x):
    return attack(x, is_byzantine=jnp.asarray(BAD))[np.argmax(BAD)]

  jacobian = jax.jacobian(sent)(jnp.asarray(x))
  assert np.isfinite(jacobian).all()
  # All alike, the spread is at its minimum: what is sent is the mean.
  np.testing.assert_allclose(jacobian[1, ~BAD, 1], 1 / (~BAD).sum(), 1e-5)


# Rounds, on one device and on several.


def _any_attack():
  """Whichever of the attacks the state says: one program for all."""
  attacks = list(ATTACKS.values())

  def init(params):
    states = tuple(attack.init(params) for attack in attacks)
    return jnp.zeros([], jnp.int32), states

  def apply(messages, state, **knowledge):
    which, states = state

    def branch(k):
      def run():
        sent, new = attacks[k].apply(messages, states[k], **knowledge)
        return sent, (*states[:k], new, *states[k + 1 :])

      return run

    branches = [branch(k) for k in range(len(attacks))]
    sent, states = jax.lax.switch(which, branches)
    return sent, (which, states)

  def observe(state, aggregate):
    which, states = state
    pairs = zip(attacks, states)
    return which, tuple(
      attack.observe(own, aggregate) if attack.observe else own
      for attack, own in pairs
    )

  return byzjax.Attack(init, apply, observe)


@functools.cache
def _program(mesh):
  rounds = problem.training(
    attack=_any_attack(), byzantine=3, mesh=mesh, optimizer=optax.sgd(0.05)
  )

  @jax.jit
  def run(which):
    state = rounds.init(problem.params())
    state = state._replace(attack=(which, state.attack[1]))
    step = functools.partial(rounds.step, key=problem.KEY)
    return jax.lax.scan(step, state, problem.batches(8))

  return run


# One program for all attacks, and it compiles for long.
@pytest.mark.parametrize(
  'shape', [pytest.param((8,), marks=pytest.mark.slow), (4, 2)], ids=str
)
@pytest.mark.parametrize('name', ATTACKS)
def test_rounds_on_a_mesh_agree_with_one_device(name, shape):
  which = jnp.asarray(list(ATTACKS).index(name), jnp.int32)
  state, infos = _program(problem.mesh(*shape))(which)
  expected, expected_infos = _program(None)(which)
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(expected.params), 1e-5, 1e-5
  )
  np.testing.assert_allclose(
    infos.aggregation_error, expected_infos.aggregation_error, 1e-4, 1e-5
  )
  # There was an attack, from the second round on at least.
  assert (infos.aggregation_error[1:] > 1e-3).all()
  for leaf, same in zip(*map(jax.tree.leaves, (state.attack, expected.attack))):
    leaf = leaf[..., : same.shape[-1]] if same.ndim else leaf
    np.testing.assert_allclose(leaf, same, 1e-3, 1e-4)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
  'name', ['mimic', 'relocated_orthogonal_perturbation', 'drift', 'replay']
)
def test_the_state_keeps_its_dtypes_whatever_the_messages_are(name, dtype):
  attack = ATTACKS[name]

  def step(params, x):
    state = attack.init(params)
    sent, new = attack.apply(x, state, is_byzantine=jnp.asarray(BAD), key=KEY)
    if attack.observe is not None:
      new = attack.observe(new, jax.tree.map(lambda m: m[0], sent))
    return state, new

  params = {'a': jnp.zeros(3, jnp.bfloat16), 'b': jnp.zeros((2, 2))}
  x = jax.tree.map(lambda p: jnp.ones((N, *p.shape), dtype), params)
  before, after = jax.eval_shape(step, params, x)
  assert before == after


@pytest.mark.parametrize('name', ATTACKS)
def test_a_whole_run_fits_into_one_shard_map(name):
  rule = byzjax.worker_sharded(byzjax.mean(), 'workers', ATTACKS[name])

  def run(messages):
    def step(state, _):
      aggregate, state = rule.update(
        messages, state, is_byzantine=jnp.arange(16) < 3, key=KEY
      )
      return state, aggregate

    start = rule.init(jnp.zeros_like(messages[0]))
    return jax.lax.scan(step, start, None, length=3)[1]

  sharded = jax.shard_map(
    run,
    mesh=problem.mesh(8),
    in_specs=jax.P('workers'),
    out_specs=jax.P(),
  )
  # Types are what may fail: whether state is split as the coordinates are.
  assert jax.eval_shape(sharded, jnp.ones((16, 40))).shape == (3, 40)
