"""SAVIC, Delta-SGD and local objectives inside the local round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import data, objectives
from tests.rounds import problem
from tests.rounds.local_problem import (
  GRADIENT,
  RATE,
  average,
  close,
  local,
  one,
  run,
  slices,
)

N, KEY = problem.N, problem.KEY


def quadratic(curvature):
  """Loss (x - c)' A (x - c) / 2 with the worker's batch for c."""

  def loss_fn(params, centers):
    gap = params - jnp.mean(centers, axis=0)
    return jnp.sum(curvature * gap**2) / 2

  return loss_fn


def centers(num_steps):
  values = np.random.default_rng(1).normal(size=(4, 1, 1, 3))
  return jnp.asarray(np.broadcast_to(values, (4, num_steps, 2, 3)), 'float32')


# SAVIC.


def test_a_preconditioner_that_stays_one_is_local_sgd():
  identity = byzjax.scale_by_preconditioner(
    'rmsprop', decay=1.0, lower_bound=1.0
  )
  batches = [slices(3, seed) for seed in range(2)]
  plain, _ = run(local(), batches)
  for scope in ('global', 'local'):
    actual, _ = run(
      local(preconditioner=identity, preconditioner_scope=scope), batches
    )
    close(actual.params, plain.params, 0)


def test_a_high_bound_is_local_sgd_with_a_smaller_step():
  bounded = byzjax.scale_by_preconditioner('adam', lower_bound=100.0)
  batches = [slices(3, seed) for seed in range(2)]
  actual, _ = run(local(preconditioner=bounded), batches)
  plain, _ = run(local(local_optimizer=optax.sgd(RATE / 100)), batches)
  close(actual.params, plain.params, 1e-6)


@pytest.mark.parametrize('scope', ['global', 'local'])
def test_scaling_is_refreshed_where_all_are_and_then_stays(scope):
  decay, bound = 0.9, 0.02
  rounds = local(
    preconditioner=byzjax.scale_by_preconditioner(
      'rmsprop', decay=decay, lower_bound=bound
    ),
    preconditioner_scope=scope,
  )
  batches = [slices(3, seed) for seed in range(2)]
  state, infos = run(rounds, batches)
  params = problem.params()
  squares = [np.ones_like(problem.flat(params))] * N
  flatten = problem.flat
  for batch in batches:
    of = [flatten(GRADIENT(params, one(batch, i, 0))) for i in range(N)]
    if scope == 'global':
      of = [np.mean(of, axis=0)] * N
    squares = [decay * s + (1 - decay) * g**2 for s, g in zip(squares, of)]
    ends = []
    for i in range(N):
      scale = np.maximum(bound, np.sqrt(squares[i]))
      w = params
      for k in range(3):
        g = GRADIENT(w, one(batch, i, k))
        step = jax.flatten_util.ravel_pytree(w)[1](
          jnp.float32(RATE * flatten(g) / scale)
        )
        w = jax.tree.map(lambda a, b: a - b, w, step)
      ends.append(w)
    params = jax.tree.map(jnp.float32, average(ends))
  close(state.params, params, 3e-5)
  d = problem.flat(params).size
  messages = 2 if scope == 'global' else 1
  assert float(infos[0].bits_up) == messages * 32 * d * N


def test_one_step_of_all_is_preconditioned_sgd_on_the_mean():
  tx = byzjax.scale_by_preconditioner('adam', decay=0.99, lower_bound=0.01)
  batches = [slices(1, seed) for seed in range(4)]
  actual, _ = run(local(num_local_steps=1, preconditioner=tx), batches)
  server = problem.training(optimizer=optax.chain(tx, optax.sgd(RATE)))
  state, step = server.init(problem.params()), jax.jit(server.step)
  for batch in batches:
    state, _ = step(state, jax.tree.map(lambda x: x[:, 0], batch), KEY)
  close(actual.params, state.params, 1e-5)


def test_oasis_steps_to_the_optimum_of_a_diagonal_quadratic():
  curvature = jnp.array([0.1, 1.0, 50.0])
  rounds = byzjax.local_round(
    quadratic(curvature),
    local_optimizer=optax.sgd(1.0),
    num_local_steps=1,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(1.0),
    num_workers=4,
    preconditioner=byzjax.scale_by_preconditioner(
      'oasis', decay=0.0, lower_bound=1e-3
    ),
  )
  batch = centers(1)
  state, _ = jax.jit(rounds.step)(rounds.init(jnp.zeros(3)), batch, KEY)
  np.testing.assert_allclose(
    state.params, batch[:, 0, 0].mean(axis=0), 1e-5, 1e-6
  )


def test_local_steps_converge_to_the_same_point_for_any_number():
  curvature = jnp.array([0.1, 1.0, 10.0])
  batch = centers(8)
  same = jnp.broadcast_to(batch[:1], batch.shape)
  ends = []
  for num_steps in (1, 3, 8):
    rounds = byzjax.local_round(
      quadratic(curvature),
      local_optimizer=optax.sgd(0.25),
      num_local_steps=num_steps,
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(1.0),
      num_workers=4,
      preconditioner=byzjax.scale_by_preconditioner(
        'oasis', decay=0.5, lower_bound=0.05
      ),
    )
    state, step = rounds.init(jnp.zeros(3)), jax.jit(rounds.step)
    for _ in range(60):
      state, _ = step(state, same[:, :num_steps], KEY)
    ends.append(np.asarray(state.params))
  for end in ends:
    np.testing.assert_allclose(end, same[0, 0, 0], 1e-4, 1e-5)


def test_statistics_are_attacked_and_aggregated_robustly():
  def scale_after(rule):
    rounds = local(
      preconditioner=byzjax.scale_by_preconditioner('adam', lower_bound=0.01),
      side_aggregator=rule,
      attack=byzjax.constant(value=1e4),
      aggregator=byzjax.coordinate_median(),
      byzantine=3,
    )
    state, _ = run(rounds, [slices(3)])
    return problem.flat(state.shared.preconditioner.scale)

  assert scale_after(byzjax.coordinate_median()).max() < 2
  assert scale_after(byzjax.mean()).min() > 100


def test_scaling_belongs_to_the_server_and_reaches_new_participants():
  tx = byzjax.scale_by_preconditioner('adam', lower_bound=0.01)
  rounds = local(preconditioner=tx, participation=4)
  state, infos = run(rounds, [slices(3, seed) for seed in range(3)])
  assert int(state.shared.preconditioner.num_refreshes) == 3
  assert not jax.tree.leaves(state.workers)


# Delta-SGD.

DELTA = dict(local_optimizer=byzjax.scale_by_delta_sgd(), local_state='reset')


def test_one_step_of_delta_sgd_is_sgd_with_its_first_step_size():
  batches = [slices(1, seed) for seed in range(3)]
  delta_sgd, _ = run(local(num_local_steps=1, **DELTA), batches)
  sgd, _ = run(local(num_local_steps=1), batches)  # RATE is 0.2 as well
  close(delta_sgd.params, sgd.params, 1e-6)


def test_delta_sgd_finds_the_curvature_of_each_worker():
  # Same-batch differences: batches that jump about do not enter.
  curvature, gamma, damping = 10.0, 2.0, 0.1
  random = np.random.default_rng(2)
  batch = random.normal(size=(4, 3, 2, 3))
  rounds = byzjax.local_round(
    quadratic(curvature),
    local_optimizer=byzjax.scale_by_delta_sgd(gamma=gamma, damping=damping),
    local_state='keep',
    num_local_steps=3,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(1.0),
    num_workers=4,
  )
  state, _ = jax.jit(rounds.step)(
    rounds.init(jnp.zeros(3)), jnp.float32(batch), KEY
  )
  reached = []
  for row in batch.mean(axis=2):
    x, size, ratio = np.zeros(3), 0.2, 1.0
    for k, center in enumerate(row):
      if k:
        cap = gamma / (2 * curvature)
        new = min(cap, np.sqrt(1 + damping * ratio) * size)
        size, ratio = new, new / size
      x = x - size * curvature * (x - center)
    reached.append(x)
  np.testing.assert_allclose(state.params, np.mean(reached, axis=0), 1e-4, 1e-5)
  np.testing.assert_allclose(state.workers.optimizer.step_size, size, 1e-4)


def test_every_round_of_delta_sgd_begins_anew():
  rounds = local(num_local_steps=1, **DELTA)
  batch = slices(1)
  state, _ = run(rounds, [batch, batch])
  sgd, _ = run(local(num_local_steps=1), [batch, batch])
  close(state.params, sgd.params, 1e-6)
  assert not jax.tree.leaves(state.workers)


# Local objectives.


def test_objectives_without_weight_are_fed_avg():
  def make(loss_fn, **kwargs):
    return byzjax.fed_avg(
      loss_fn, learning_rate=RATE, num_local_steps=3, num_workers=N, **kwargs
    )

  batches = [slices(3, seed) for seed in range(2)]
  plain, _ = run(make(problem.loss_fn), batches)
  proximal, _ = run(make(objectives.proximal(problem.loss_fn, mu=0.0)), batches)
  close(proximal.params, plain.params, 0)
  wide, _ = run(
    make(objectives.wasserstein(problem.loss_fn, gamma=1e7)), batches
  )
  close(wide.params, plain.params, 1e-5)
  near, _ = run(
    make(objectives.wasserstein(problem.loss_fn, gamma=1.0)), batches
  )
  assert np.abs(
    problem.flat(near.params) - problem.flat(plain.params)
  ).max() > (1e-3)


def test_a_proximal_term_holds_workers_where_the_round_began():
  batch = slices(3)
  free, _ = run(local(), [batch])
  rounds = byzjax.fed_prox(
    problem.loss_fn,
    learning_rate=RATE,
    mu=4.0,
    num_local_steps=3,
    num_workers=N,
  )
  held, _ = run(rounds, [batch])
  params, ends = problem.params(), []
  for i in range(N):
    w = params
    for k in range(3):
      g = GRADIENT(w, one(batch, i, k))
      w = jax.tree.map(
        lambda w, g, a: w - RATE * (g + 4.0 * (w - a)), w, g, params
      )
    ends.append(w)
  close(held.params, average(ends), 2e-6)
  start = problem.flat(params)
  assert np.linalg.norm(problem.flat(held.params) - start) < 0.7 * (
    np.linalg.norm(problem.flat(free.params) - start)
  )


def test_an_objective_in_the_synchronous_round_is_at_its_anchor():
  rounds = byzjax.robust_round(
    objectives.proximal(problem.loss_fn, mu=5.0),
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.1),
    num_workers=N,
  )
  plain = problem.training()
  states = [
    jax.jit(r.step)(r.init(problem.params()), problem.batch(), KEY)[0]
    for r in (rounds, plain)
  ]
  close(states[0].params, states[1].params, 0)


# Samplers.


def _examples():
  random = np.random.default_rng(3)
  images = random.integers(0, 255, (40, 1, 5, 1)).astype(np.uint8)
  return jnp.asarray(images), jnp.asarray(random.integers(0, 3, 40))


def _flat_loss(params, batch):
  images, labels = batch
  return problem.loss_fn(params, (images.reshape(-1, 5), labels))


def test_workers_draw_from_their_own_examples():
  images, labels = _examples()
  partition = data.label_sorted(np.asarray(labels), 4)
  seen = []

  def loss_fn(params, batch):
    jax.debug.callback(lambda y: seen.append(np.asarray(y)), batch[1])
    return _flat_loss(params, batch)

  rounds = byzjax.local_round(
    loss_fn,
    local_optimizer=optax.sgd(0.1),
    num_local_steps=3,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(1.0),
    num_workers=4,
    sampler=data.local_sampler(images, labels, batch_size=2, scale=255.0),
    worker_map='map',
  )
  batch = jax.tree.map(jnp.asarray, partition)
  jax.block_until_ready(
    jax.jit(rounds.step)(rounds.init(problem.params()), batch, KEY)
  )
  jax.effects_barrier()
  own = [set(np.asarray(labels)[i].tolist()) for i in partition.indices]
  assert len(seen) == 12
  for draw, labels_drawn in enumerate(seen):
    assert set(labels_drawn.tolist()) <= own[draw // 3]


def test_full_pacing_is_shuffled_sgd():
  images, labels = _examples()
  partition = jax.tree.map(
    jnp.asarray, data.random_shards(np.asarray(labels), 4)
  )

  def loss_per_example(params, images, labels):
    return jax.vmap(lambda x, y: _flat_loss(params, (x[None], y[None])))(
      images, labels
    )

  shuffled = data.local_sampler(
    images, labels, batch_size=4, scale=255.0, shuffled=True
  )
  curriculum = data.curriculum(
    images,
    labels,
    loss_per_example=loss_per_example,
    batch_size=4,
    scale=255.0,
    num_local_steps=5,
    pacing='step',
    full_at=1.0,
    initial_share=1.0,
  )
  ends = []
  for sampler in (shuffled, curriculum):
    rounds = byzjax.fed_avg(
      _flat_loss,
      learning_rate=RATE,
      num_local_steps=5,
      num_workers=4,
      sampler=sampler,
    )
    state, _ = run(rounds, [partition] * 2)
    ends.append(state.params)
  close(ends[0], ends[1], 0)
