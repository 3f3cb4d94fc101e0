"""Asynchronous rounds on devices: the same numbers, and less memory on each."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony
from tests.rounds import asynchronous_problem as problem
from tests.rounds import problem as tables
from tests.rounds.sharded_test import collectives

K, NUM_EVENTS = 8, 40
SPEEDS = np.linspace(1.0, 4.0, K)
EVENTS = asynchrony.simulate(
  SPEEDS,
  num_events=NUM_EVENTS,
  variation=0.3,
  num_local_steps=1 + np.arange(K) % 3,
  shards='least_visited',
)
GRADIENTS = asynchrony.simulate(SPEEDS, num_events=NUM_EVENTS, variation=0.3)
BATCH = jax.random.normal(jax.random.key(1), (K, 3, 4, 3)) + 2
BY_WORKER = dict(
  buffer=asynchrony.by_worker(EVENTS, num_rows=5),
  aggregator=byzjax.coordinate_median(),
)
CASES = {
  # With the memory of an optimizer that asks for the version of the job.
  'gradients': dict(
    events=GRADIENTS,
    optimizer=byzjax.ordered_momentum(0.05, num_workers=K),
    incoming=byzjax.discount_staleness(),
  ),
  'local steps': dict(
    local_optimizer=optax.adam(0.05),
    optimizer=optax.sgd(1.0),
    worker=byzjax.worker_momentum(0.5),
    codec=byzjax.error_feedback(byzjax.scaled_sign_codec()),
    attack=byzjax.alie(z=1.0),
    byzantine=np.arange(K) % 4 == 2,
    **BY_WORKER,
  ),
  'noise': dict(
    local_optimizer=optax.sgd(0.1),
    local_state='reset',
    attack=byzjax.gaussian(std=0.5),
    byzantine=np.arange(K) == 5,
    buffer=asynchrony.by_arrival(EVENTS, num_rows=4),
    aggregator=byzjax.geometric_median(),
  ),
  'a memory': dict(
    events=GRADIENTS,
    aggregator=byzjax.centered_clipping(radius=0.3),
    attack=byzjax.constant(value=jnp.nan),
    byzantine=1,
  ),
}


def build(**arguments):
  return problem.build(**(dict(events=EVENTS) | arguments))


def run(training, length=NUM_EVENTS):
  return problem.run(training, length, BATCH)


@pytest.mark.parametrize('name', CASES)
def test_eight_devices_compute_what_one_does(name):
  state, infos, path = run(build(**CASES[name]))
  many, sharded, other = run(build(**CASES[name], mesh=tables.mesh(8)))
  chex.assert_trees_all_close(other, path, rtol=3e-5, atol=3e-5)
  chex.assert_trees_all_close(
    (many.workers, many.optimizer, many.codec),
    (state.workers, state.optimizer, state.codec),
    rtol=3e-4,
    atol=3e-4,
  )
  for field in infos._fields:
    mine, wanted = getattr(sharded, field), getattr(infos, field)
    assert (mine is None) == (wanted is None), field
    if wanted is not None:
      np.testing.assert_allclose(mine, wanted, 1e-4, 1e-5, err_msg=field)
  moved = problem.minus(problem.last(path), problem.PARAMS)
  assert np.linalg.norm(tables.flat(moved)) > 0.1


@pytest.mark.parametrize(
  'shape, axis_name', [((2,), 'workers'), ((4, 2), ('workers', 'model'))]
)
def test_any_mesh_and_steps_behind_the_last_message(shape, axis_name):
  def loss_fn(params, batch):
    return problem.loss_fn(params, batch), jnp.sum(batch)

  arguments = dict(CASES['gradients'], loss_fn=loss_fn, has_aux=True)
  one = run(build(**arguments), NUM_EVENTS + 3)
  many = run(
    build(**arguments, mesh=tables.mesh(*shape), axis_name=axis_name),
    NUM_EVENTS + 3,
  )
  chex.assert_trees_all_close(many[2], one[2], rtol=3e-5, atol=3e-5)
  # Of the device that has computed, for every message another one.
  np.testing.assert_allclose(many[1].aux, one[1].aux, 1e-5)
  assert one[1].aux.shape == (NUM_EVENTS + 3, 1)
  problem.close(problem.last(many[2]), jax.tree.map(lambda x: x[-4], many[2]))


def wide(width, **arguments):
  return problem.build(
    events=GRADIENTS,
    loss_fn=lambda w, x: jnp.mean((w[None] - x) ** 2),
    worker=byzjax.worker_momentum(0.9),
    buffer=asynchrony.by_worker(GRADIENTS, num_rows=4),
    attack=byzjax.alie(z=1.0),
    byzantine=1,
    aggregator=byzjax.coordinate_median(),
    mesh=tables.mesh(8),
    **arguments,
  ), jnp.zeros(width)


def test_a_device_has_an_eighth_of_what_workers_and_the_buffer_have():
  training, params = wide(4096)
  state = training.init(params)
  after, _ = jax.jit(training.step)(
    state, jnp.ones([K, 1, 2, 4096]), problem.KEY
  )
  specs = jax.tree.map(lambda x: x.sharding.spec, (state, after))
  assert specs[0] == specs[1]
  for kept in (
    after.workers.chain.momentum,
    after.shared.versions,
    after.shared.places,
    after.shared.latest,
  ):
    local = kept.addressable_shards[0].data
    assert kept.size >= 4 * 4096 and local.size == kept.size // 8


def test_what_is_sent_over_the_wire_are_single_messages():
  training, params = wide(4096)
  step = jax.jit(training.step)
  lowered = step.lower(
    training.init(params), jnp.ones([K, 1, 2, 4096]), problem.KEY
  )
  ops = collectives(lowered.compile().as_text())
  # The version, the message, that of an attacker, and the aggregate.
  assert max(size for _, size in ops) <= 4096 + 8
  assert sum(size for _, size in ops) <= 4 * 4096 + 64
  assert {kind for kind, _ in ops} == {'all-reduce', 'all-gather'}


def test_refuses_workers_that_do_not_divide():
  events = asynchrony.simulate(np.ones(6), num_events=6)
  message = (
    'asynchronous_round needs the num_workers of events to be a multiple of the'
    " 8 devices of mesh axis 'workers', got 6"
  )
  with pytest.raises(ValueError, match=message):
    problem.build(events=events, mesh=tables.mesh(8))
  with pytest.raises(TypeError, match='asynchronous_round needs mesh to be a'):
    problem.build(mesh=4)
