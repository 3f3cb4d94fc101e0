"""Local rounds on devices: the same numbers, and little on the wire."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem
from tests.rounds.local_problem import KEY, N, local, run, slices
from tests.rounds.sharded_test import collectives

ADAM = optax.adam(0.01)
ROBUST = dict(
  aggregator=byzjax.trimmed_mean(num_byzantine=3),
  attack=byzjax.alie(z=1.0),
  byzantine=3,
)
CASES = {
  'kept': dict(local_optimizer=ADAM, worker=byzjax.worker_momentum(0.9)),
  'reset': dict(
    local_optimizer=byzjax.scale_by_delta_sgd(), local_state='reset'
  ),  # fmt: skip
  'averaged': dict(
    local_optimizer=ADAM,
    local_state='average',
    num_local_steps=lambda step: 1 + jnp.arange(N) % 3,
  ),
  'global scaling': dict(
    preconditioner=byzjax.scale_by_preconditioner('oasis', lower_bound=0.1)
  ),
  'local scaling': dict(
    preconditioner=byzjax.scale_by_preconditioner('adam', lower_bound=0.1),
    preconditioner_scope='local',
  ),
  'cohort': dict(local_optimizer=ADAM, participation=8),
  'weights': dict(
    worker_weights=byzjax.random_participation(N, 12, KEY),
    codec=byzjax.scaled_sign_codec(),
    byzantine=1,
  ),
}

ALIKE = ('kept', 'local scaling', 'averaged')


# What shares most with others runs in slow tests.
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ())
    for name in CASES
  ],
)
def test_eight_devices_compute_what_one_does(name):
  arguments = ROBUST | CASES[name]
  batches = [slices(3, seed) for seed in range(3)]
  one, infos = run(local(**arguments), batches)
  many, sharded = run(local(**arguments, mesh=problem.mesh(8)), batches)
  chex.assert_trees_all_close(many.params, one.params, rtol=3e-5, atol=3e-5)
  # One device does not compute what the attackers keep.
  honest = [jax.tree.map(lambda x: x[3:], s.workers) for s in (many, one)]
  chex.assert_trees_all_close(*honest, rtol=3e-4, atol=3e-4)
  chex.assert_trees_all_close(many.shared, one.shared, rtol=3e-4, atol=3e-4)
  for a, b in zip(infos, sharded):
    np.testing.assert_allclose(a.loss, b.loss, 1e-4)
    np.testing.assert_array_equal(a.bits_up, b.bits_up)
    np.testing.assert_array_equal(a.num_local_steps, b.num_local_steps)


def test_a_round_sends_one_message_for_all_its_steps():
  width = 4096
  rounds = byzjax.local_round(
    lambda params, batch: jnp.mean((params[None] - batch) ** 2),
    local_optimizer=optax.sgd(0.1),
    num_local_steps=3,
    optimizer=optax.sgd(1.0),
    num_workers=N,
    mesh=problem.mesh(8),
    **ROBUST,
  )
  state = rounds.init(jnp.zeros(width))
  batch = jnp.ones((N, 3, 2, width))
  text = jax.jit(rounds.step).lower(state, batch, KEY).compile().as_text()
  ops = collectives(text)
  assert [s for k, s in ops if k == 'all-to-all'] == [N * width // 8]
  assert [s for k, s in ops if k == 'all-gather'] == [width]
  assert sum(s for k, s in ops if k == 'all-reduce') <= 2 * N * N
  assert 'callback' not in text
  # Loops are computations in front of the entry: nobody speaks inside.
  before, _ = text.split('ENTRY')
  assert ' while(' in text and not collectives(before)


def test_state_stays_where_it_is():
  mesh = problem.mesh(8)
  rounds = local(**ROBUST, **CASES['global scaling'], mesh=mesh)
  state = rounds.init(problem.params())
  after, _ = jax.jit(rounds.step)(state, slices(3), KEY)
  before = jax.tree.map(lambda x: x.sharding.spec, state)
  assert jax.tree.map(lambda x: x.sharding.spec, after) == before
