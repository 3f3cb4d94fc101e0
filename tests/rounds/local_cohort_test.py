"""Who takes part in local rounds, and what else goes through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
  run,
  slices,
)

HEAVY = optax.sgd(RATE, momentum=0.9)


# Who takes part.


def test_only_the_cohort_computes_and_is_heard():
  rounds = local(local_optimizer=HEAVY, participation=5)
  before = rounds.init(problem.params())
  batch = slices(3)
  state, info = jax.jit(rounds.step)(before, batch, KEY)
  ids = np.asarray(info.participants)
  assert len(set(ids.tolist())) == 5 and (np.diff(ids) > 0).all()
  ends = [local_update(problem.params(), batch, i, 3, HEAVY) for i in ids]
  close(state.params, average([p for p, _ in ends]), 2e-6)
  trace = state.workers.optimizer[0].trace
  for i in range(N):
    row = jax.tree.map(lambda x, i=i: x[i], trace)
    own = [s[0].trace for j, (_, s) in zip(ids, ends) if j == i]
    close(row, own[0] if own else jax.tree.map(jnp.zeros_like, row), 1e-5)
  d = problem.flat(problem.params()).size
  assert float(info.bits_up) == float(info.bits_down) == 5 * 32 * d


def test_a_worker_is_the_same_in_any_cohort():
  # Its keys and its place among the attackers are its own.
  shared = dict(
    aggregator=byzjax.trimmed_mean(num_byzantine=2),
    attack=byzjax.constant(value=jnp.nan),
    byzantine=3,
  )
  rounds = local(participation=7, **shared)
  _, infos = run(rounds, [slices(3)] * 6)
  for info in infos:
    np.testing.assert_array_equal(info.is_byzantine, info.participants < 3)
    np.testing.assert_array_equal(info.masked, info.is_byzantine)
  drawn = {int(i) for info in infos for i in info.participants}
  assert len(drawn) > 12
  assert len({tuple(np.asarray(i.participants)) for i in infos}) == 6


def test_everybody_in_the_cohort_is_everybody():
  shared = dict(local_optimizer=HEAVY, worker=byzjax.worker_momentum(0.5))
  batches = [slices(3, seed) for seed in range(2)]
  drawn, _ = run(local(participation=N, **shared), batches)
  plain, _ = run(local(**shared), batches)
  close(drawn.params, plain.params, 0)
  close(drawn.workers, plain.workers, 0)


# Everything else that goes through a round.


def test_pseudo_gradients_go_through_codecs():
  rounds = local(
    codec=byzjax.sign_codec(),
    aggregator=byzjax.majority_vote(),
    server_codec=byzjax.sign_codec(),
    optimizer=optax.sgd(0.01),
  )
  state, infos = run(rounds, [slices(3)])
  moved = problem.flat(state.params) - problem.flat(problem.params())
  np.testing.assert_allclose(np.abs(moved), 0.01, 1e-4)
  assert float(infos[0].bits_up) == N * moved.size


def test_attackers_compute_on_altered_data_in_every_step():
  def flip(batch, is_byzantine, key):
    images, labels = batch
    mask = is_byzantine.reshape((-1,) + (1,) * (labels.ndim - 1))
    return images, jnp.where(mask, 2 - labels, labels)

  rounds = local(attack=flip, byzantine=3)
  batch = slices(3)
  images, labels = batch
  altered = (images, labels.at[:3].set(2 - labels[:3]))
  state, _ = run(rounds, [batch])
  ends = [local_update(problem.params(), altered, i, 3)[0] for i in range(N)]
  close(state.params, average(ends), 2e-6)


def test_a_worker_chain_acts_on_pseudo_gradients():
  rounds = local(worker=optax.clip_by_global_norm(0.05))
  batch = slices(3)
  state, _ = run(rounds, [batch])
  start = problem.flat(problem.params())
  steps = [
    problem.flat(local_update(problem.params(), batch, i, 3)[0]) - start
    for i in range(N)
  ]
  clipped = [s * min(1, 0.05 / np.linalg.norm(s)) for s in steps]
  assert max(np.linalg.norm(s) for s in steps) > 0.1
  np.testing.assert_allclose(
    problem.flat(state.params) - start, np.mean(clipped, axis=0), 1e-4, 1e-6
  )


def test_hostile_messages_do_not_leave_the_honest_range():
  for value in (jnp.nan, jnp.inf, 1e30):
    rounds = local(
      aggregator=byzjax.trimmed_mean(num_byzantine=3),
      attack=byzjax.constant(value=value),
      byzantine=3,
      local_optimizer=optax.adam(0.01),
      local_state='average',
    )
    state, _ = run(rounds, [slices(3, seed) for seed in range(3)])
    moved = problem.flat(state.params) - problem.flat(problem.params())
    assert np.isfinite(moved).all() and np.abs(moved).max() < 0.2
    assert all(
      np.isfinite(x).all() and np.abs(x).max() < 10
      for x in jax.tree.leaves(state.shared)
    )


def test_seeds_and_step_sizes_are_one_program():
  def one_run(seed, rate):
    rounds = local(local_optimizer=optax.sgd(rate), num_local_steps=2)
    state = rounds.init(problem.params())
    return rounds.step(state, slices(2), seed)[0].params

  keys = jax.random.split(KEY, 2)
  rates = jnp.array([0.1, 0.3])
  both = jax.jit(
    jax.vmap(jax.vmap(one_run, (None, 0)), (0, None))
  )(keys, rates)  # fmt: skip
  for i in range(2):
    for j in range(2):
      close(
        jax.tree.map(lambda x, i=i, j=j: x[i, j], both),
        jax.jit(one_run)(keys[i], rates[j]),
        1e-6,
      )


def test_scan_equals_a_loop_and_state_is_stable():
  rounds = local(
    local_optimizer=optax.adam(0.01),
    participation=6,
    num_local_steps=lambda step: 1 + step % 3,
  )
  batches = [slices(3, seed) for seed in range(4)]
  looped, _ = run(rounds, batches)
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
  step = functools.partial(rounds.step, key=KEY)
  scanned, _ = jax.jit(functools.partial(jax.lax.scan, step))(
    rounds.init(problem.params()), stacked
  )
  close(scanned.params, looped.params, 1e-6)


def test_worker_map_is_a_choice_of_speed_only():
  batches = [slices(3, seed) for seed in range(2)]
  ends = [
    run(local(worker_map=worker_map, local_optimizer=HEAVY), batches)[0]
    for worker_map in ('vmap', 'map', 5)
  ]
  for end in ends[1:]:
    close(end.params, ends[0].params, 2e-6)


def test_a_coordinate_rule_beside_keeps_averaged_moments_valid():
  # Clipping alone leaves some second moments negative: all workers are lost.
  shared = dict(
    aggregator=byzjax.centered_clipping(radius=1.0),
    attack=byzjax.sign_flip(scale=10.0),
    byzantine=3,
    local_optimizer=optax.adam(0.01),
    local_state='average',
  )
  batches = [slices(3, seed) for seed in range(4)]
  _, lost = run(local(**shared), batches)
  assert int(lost[-1].num_nonfinite) == N - 3
  safe = local(**shared, side_aggregator=byzjax.coordinate_median())
  state, infos = run(safe, batches)
  assert not any(int(info.num_nonfinite) for info in infos)
  assert min(x.min() for x in jax.tree.leaves(state.shared.optimizer[0].nu)) > 0
