"""Local rounds against loops over workers, written without the library."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem
from tests.rounds.local_problem import (
  KEY,
  RATE,
  N,
  average,
  close,
  local,
  local_update,
  one,
  run,
  slices,
)

# The limits.


@pytest.mark.parametrize(
  'rule, attack, f',
  [
    (byzjax.mean(), None, 0),
    (byzjax.coordinate_median(), byzjax.alie(z=1.5), 3),
    (byzjax.krum(num_byzantine=3), byzjax.sign_flip(scale=5.0), 3),
    (byzjax.trimmed_mean(num_byzantine=3), byzjax.replay(delay=2), 3),
  ],
)
def test_one_local_step_is_the_synchronous_round(rule, attack, f):
  shared = dict(aggregator=rule, attack=attack, byzantine=f)
  synchronous = problem.training(optimizer=optax.sgd(RATE), **shared)
  batches = [slices(1, seed) for seed in range(4)]
  actual, _ = run(local(num_local_steps=1, **shared), batches)
  expected, step = synchronous.init(problem.params()), jax.jit(synchronous.step)
  for batch in batches:
    batch = jax.tree.map(lambda x: x[:, 0], batch)
    expected, _ = step(expected, batch, KEY)
  close(actual.params, expected.params)


def test_clipping_of_one_step_has_its_radius_in_steps():
  rules = [byzjax.centered_clipping(radius=r) for r in (1.0, RATE)]
  synchronous = problem.training(optimizer=optax.sgd(RATE), aggregator=rules[0])
  batch = slices(1)
  actual, _ = run(local(num_local_steps=1, aggregator=rules[1]), [batch])
  expected, _ = jax.jit(synchronous.step)(
    synchronous.init(problem.params()),
    jax.tree.map(lambda x: x[:, 0], batch),
    KEY,
  )
  close(actual.params, expected.params)


def test_fed_avg_is_the_average_of_what_workers_reach():
  rounds = byzjax.fed_avg(
    problem.loss_fn, learning_rate=RATE, num_local_steps=3, num_workers=N
  )
  batches = [slices(3, seed) for seed in range(2)]
  state, infos = run(rounds, batches)
  expected = problem.params()
  for batch in batches:
    expected = average(
      [local_update(expected, batch, i, 3)[0] for i in range(N)]
    )
    expected = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), expected)
  close(state.params, expected, 2e-6)
  assert int(infos[0].num_local_steps) == 3


def test_one_worker_is_its_optimizer_however_long_rounds_are():
  schedule = optax.cosine_decay_schedule(0.02, 6)
  tx = optax.adamw(schedule)
  lengths = byzjax.linear_synchronization(
    schedule, total_steps=6, base_steps=1, growth=0.03
  )
  assert len(set(lengths.tolist())) > 1 and lengths.sum() == 6
  batch = jax.tree.map(lambda x: x[:1], slices(6))
  rounds = local(
    num_workers=1,
    num_local_steps=lengths,
    local_optimizer=tx,
  )
  state, step = rounds.init(problem.params()), jax.jit(rounds.step)
  done = 0
  for length in lengths:
    ahead = jax.tree.map(lambda x, k=done: jnp.roll(x, -k, axis=1), batch)
    state, _ = step(state, ahead, KEY)
    done += int(length)
  close(state.params, local_update(problem.params(), batch, 0, 6, tx)[0], 1e-5)


def test_a_cohort_of_attackers_alone_has_no_loss():
  rounds = local(participation=1, byzantine=lambda step: jnp.ones(N, bool))
  _, infos = run(rounds, [slices(3)])
  assert float(infos[0].loss) == 0


def test_workers_count_by_their_examples():
  sizes = jnp.arange(1.0, N + 1)
  rounds = local(worker_weights=sizes)
  batch = slices(3)
  state, _ = run(rounds, [batch])
  ends = [local_update(problem.params(), batch, i, 3)[0] for i in range(N)]
  close(state.params, average(ends, sizes), 2e-6)


def test_the_length_of_rounds_changes_without_compiling_again():
  lengths = np.array([1, 3, 2])
  rounds = local(num_local_steps=lengths)
  batches = [slices(3, seed) for seed in range(4)]
  state, infos = run(rounds, batches)
  expected = problem.params()
  for batch, length in zip(batches, lengths):
    ends = [local_update(expected, batch, i, int(length))[0] for i in range(N)]
    expected = jax.tree.map(jnp.float32, average(ends))
  # The table has no fourth round: nobody moves.
  close(state.params, expected, 2e-6)
  assert [int(i.num_local_steps) for i in infos] == [1, 3, 2, 0]
  scheduled = local(num_local_steps=lambda step: jnp.minimum(step + 1, 3))
  _, infos = run(scheduled, batches)
  assert [int(i.num_local_steps) for i in infos] == [1, 2, 3, 3]


def test_workers_of_different_speeds():
  steps = np.arange(N) % 4
  rounds = local(num_local_steps=lambda step: jnp.asarray(steps))
  batch = slices(3)
  state, info = run(rounds, [batch])
  ends = [
    local_update(problem.params(), batch, i, int(steps[i]))[0] for i in range(N)
  ]
  close(state.params, average(ends), 2e-6)
  np.testing.assert_array_equal(info[0].num_local_steps, steps)
  # Who takes no step has no loss.
  some = steps == 1
  _, info = run(local(num_local_steps=lambda step: jnp.int32(some)), [batch])
  losses = [
    problem.loss_fn(problem.params(), one(batch, i, 0))
    for i in np.flatnonzero(some)
  ]
  np.testing.assert_allclose(info[0].loss, np.mean(losses), 1e-6)


def test_slices_are_taken_in_turn():
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x], 1), slices(2))
  once, _ = run(local(num_local_steps=4), [slices(2)])
  both, _ = run(local(num_local_steps=4), [twice])
  close(once.params, both.params, 0)


# The state of the local optimizer.

HEAVY = optax.sgd(RATE, momentum=0.9)


@pytest.mark.parametrize('local_state', ['keep', 'reset', 'average'])
def test_the_local_optimizers_state(local_state):
  rounds = local(local_optimizer=HEAVY, local_state=local_state)
  batches = [slices(3, seed) for seed in range(3)]
  state, _ = run(rounds, batches)
  expected = problem.params()
  states = [HEAVY.init(expected)] * N
  for batch in batches:
    ends = [
      local_update(expected, batch, i, 3, HEAVY, states[i]) for i in range(N)
    ]
    expected = jax.tree.map(jnp.float32, average([p for p, _ in ends]))
    states = [s for _, s in ends]
    if local_state == 'reset':
      states = [HEAVY.init(expected)] * N
    if local_state == 'average':
      states = [jax.tree.map(jnp.float32, average(states))] * N
  close(state.params, expected, 1e-5)
  if local_state == 'reset':
    assert not jax.tree.leaves(state.workers)


def test_heavy_ball_of_workers_is_that_of_the_server_at_one_step():
  # All is linear, so buffers that are never averaged do not matter.
  rounds = local(local_optimizer=HEAVY, num_local_steps=1)
  server = problem.training(optimizer=HEAVY)
  batches = [slices(1, seed) for seed in range(5)]
  actual, _ = run(rounds, batches)
  state, step = server.init(problem.params()), jax.jit(server.step)
  for batch in batches:
    state, _ = step(state, jax.tree.map(lambda x: x[:, 0], batch), KEY)
  close(actual.params, state.params, 3e-6)


def test_adams_moments_are_averaged_and_steps_are_counted():
  adam = optax.adam(0.01)
  rounds = local(
    local_optimizer=adam,
    local_state='average',
    num_local_steps=lambda step: 1 + jnp.arange(N) % 3,
  )
  batch = slices(3)
  state, info = run(rounds, [batch])
  ends = [
    local_update(problem.params(), batch, i, 1 + i % 3, adam)[1][0]
    for i in range(N)
  ]
  moments = state.shared.optimizer[0]
  close(moments.mu, average([s.mu for s in ends]), 1e-6)
  close(moments.nu, average([s.nu for s in ends]), 1e-6)
  assert int(moments.count) == 3
  # Messages, and two moments beside them, in 32 bits both ways.
  d = problem.flat(problem.params()).size
  assert float(info[0].bits_up) == float(info[0].bits_down) == 3 * 32 * d * N


def test_an_optimizer_without_numbers_has_nothing_to_average():
  # A schedule counts, and a key is no number.
  tx = optax.chain(
    optax.add_noise(1e-9, 0.5, key=7),
    optax.sgd(lambda step: RATE / (1 + step)),
  )
  batches = [slices(3, seed) for seed in range(2)]
  averaged, infos = run(
    local(local_optimizer=tx, local_state='average'), batches
  )
  kept, _ = run(local(local_optimizer=tx), batches)
  close(averaged.params, kept.params, 1e-6)
  assert not averaged.auxiliary
  d = problem.flat(averaged.params).size
  assert float(infos[0].bits_up) == 32 * d * N


def test_diloco_is_adamw_inside_and_nesterov_outside():
  rounds = byzjax.diloco(
    problem.loss_fn,
    learning_rate=0.01,
    num_local_steps=3,
    num_workers=N,
    weight_decay=0.1,
  )
  batches = [slices(3, seed) for seed in range(3)]
  state, _ = run(rounds, batches)
  inner = optax.adamw(0.01, weight_decay=0.1)
  expected, momentum = problem.params(), None
  states = [inner.init(expected)] * N
  for batch in batches:
    ends = [
      local_update(expected, batch, i, 3, inner, states[i]) for i in range(N)
    ]
    states = [s for _, s in ends]
    reached = average([p for p, _ in ends])
    g = jax.tree.map(lambda w, x: w - x, expected, reached)
    momentum = (
      g
      if momentum is None
      else jax.tree.map(lambda m, g: 0.9 * m + g, momentum, g)
    )
    expected = jax.tree.map(
      lambda w, g, m: jnp.float32(w - 0.7 * (g + 0.9 * m)),
      expected,
      g,
      momentum,
    )
  close(state.params, expected, 3e-5)


def test_fed_opt_hands_the_pseudo_gradient_to_the_server():
  rounds = byzjax.fed_opt(
    problem.loss_fn,
    learning_rate=RATE,
    optimizer=optax.adam(0.1),
    num_local_steps=3,
    num_workers=N,
  )
  batch = slices(3)
  state, _ = run(rounds, [batch])
  params, adam = problem.params(), optax.adam(0.1)
  reached = average([local_update(params, batch, i, 3)[0] for i in range(N)])
  g = jax.tree.map(lambda w, x: jnp.float32(w - x), params, reached)
  updates, _ = adam.update(g, adam.init(params))
  close(state.params, optax.apply_updates(params, updates), 1e-4)
