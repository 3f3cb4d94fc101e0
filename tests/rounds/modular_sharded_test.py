"""Modular rounds on devices: the same numbers, and little on the wire."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import data, models
from tests.rounds import modular_problem as problem
from tests.rounds import problem as tables
from tests.rounds.modular_problem import KEY, modular, run
from tests.rounds.sharded_test import collectives

FEEDBACK = byzjax.error_feedback(byzjax.scaled_sign_codec())
# Modules of level 0 on 10 and 6 of 16 paths, of level 1 on 6, 5 and 5.
SIXTEEN = np.stack([np.arange(16) % 8 // 5, np.arange(16) * 7 % 16 % 3], 1)
EIGHT = np.stack([np.arange(8) % 2, np.arange(8) // 3], 1)
CASES = {
  'attack': dict(
    worker=byzjax.worker_momentum(0.9),
    attack=byzjax.alie(z=1.0),
    byzantine=np.arange(16) % 5 == 3,
    aggregator=byzjax.coordinate_median(),
  ),
  'noise': dict(
    paths=EIGHT,
    attack=byzjax.gaussian(std=0.5),
    byzantine=np.arange(8) == 2,
    aggregator=[byzjax.geometric_median(), byzjax.centered_clipping(radius=1)],
    rescale_norm=True,
  ),
  'codecs': dict(
    codec=FEEDBACK,
    server_codec=FEEDBACK,
    worker_weights=byzjax.random_participation(16, 12, KEY),
    attack=byzjax.constant(value=jnp.nan),
    byzantine=1,
  ),
  'cohort': dict(
    participation=8,
    worker_map='map',
    num_local_steps=lambda step: 1 + jnp.arange(16) % 3,
  ),
}


def batches(num_paths, num_rounds=3):
  return problem.batches(num_paths, num_rounds)


def assert_same(result, expected):
  """As closely as local rounds on a mesh are those of one device."""
  (many, infos), (one, others) = result, expected
  chex.assert_trees_all_close(many.params, one.params, rtol=3e-5, atol=3e-5)
  chex.assert_trees_all_close(many.workers, one.workers, rtol=3e-4, atol=3e-4)
  for info, other in zip(infos, others, strict=True):
    for name in ('loss', 'aggregation_error'):
      np.testing.assert_allclose(
        getattr(info, name), getattr(other, name), 1e-4, 1e-5
      )
    for name in ('bits_up', 'bits_down', 'masked', 'num_local_steps'):
      np.testing.assert_array_equal(getattr(info, name), getattr(other, name))


# Noise is drawn on devices in the tests of other rounds, too.
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name == 'noise' else ())
    for name in CASES
  ],
)
def test_eight_devices_compute_what_one_does(name):
  arguments = dict(paths=SIXTEEN) | CASES[name]
  start, rows = problem.params(), batches(len(arguments['paths']))
  one = run(modular(**arguments), start, rows)
  many = run(modular(**arguments, mesh=tables.mesh(8)), start, rows)
  assert_same(many, one)
  moved = problem.flat(one[0].params) - problem.flat(start)
  assert np.linalg.norm(moved) > 0.1


@pytest.mark.parametrize(
  'shape, axis_name',
  [
    ((2,), 'workers'),
    pytest.param((4, 2), 'workers', marks=pytest.mark.slow),
    ((4, 2), ('workers', 'model')),
  ],
  ids=str,
)
def test_any_mesh_computes_what_a_loop_does(shape, axis_name):
  start, rows = problem.params(), batches(16)
  rounds = modular(paths=SIXTEEN, mesh=tables.mesh(*shape), axis_name=axis_name)
  state, _ = run(rounds, start, rows)
  expected, _ = problem.loop(start, rows, paths=SIXTEEN)
  problem.close(state.params, expected, 3e-5)


def test_samplers_draw_the_same_on_devices():
  documents = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  partition = data.random_shards(np.zeros(40, int), 8)
  shards = [jax.tree.map(jnp.asarray, partition)] * 2
  arguments = dict(
    paths=EIGHT,
    sampler=data.sequence_sampler(documents, batch_size=2),
    num_local_steps=2,
  )
  start = problem.params()
  one = run(modular(**arguments), start, shards)
  assert_same(
    run(modular(**arguments, mesh=tables.mesh(8)), start, shards), one
  )


def wide_round(width):
  def loss_fn(path, x):
    return jnp.mean((path[0] + path[1] - x) ** 2)

  return byzjax.modular_round(
    loss_fn,
    paths=models.grid_paths((4, 4)),
    local_optimizer=optax.sgd(0.1),
    num_local_steps=2,
    optimizer=optax.sgd(0.7, 0.9, nesterov=True),
    aggregator=byzjax.geometric_median(),
    worker=byzjax.worker_momentum(0.9),
    mesh=tables.mesh(8),
  ), (jnp.zeros([4, width]), jnp.zeros([4, width]))


def test_a_path_sends_each_module_once_and_modules_come_back_once():
  width = 4096
  rounds, start = wide_round(width)
  batch = jnp.ones((16, 2, width))
  step = jax.jit(rounds.step)
  text = step.lower(rounds.init(start), batch, KEY).compile().as_text()
  ops = collectives(text)
  moved = [size for kind, size in ops if kind == 'all-to-all']
  assert sum(moved) == 2 * 16 * width // 8
  gathered = [size for kind, size in ops if kind == 'all-gather']
  assert sum(gathered) == 2 * 4 * width
  # Sums of 4 x 4 numbers for each module, or less.
  assert sum(s for k, s in ops if k == 'all-reduce') <= 4 * 2 * 4 * 4 * 4
  assert 'callback' not in text


def test_state_is_split_and_stays_where_it_is():
  rounds, start = wide_round(512)
  state = rounds.init(start)
  after, _ = jax.jit(rounds.step)(state, jnp.ones((16, 2, 512)), KEY)
  before = jax.tree.map(lambda x: x.sharding.spec, state)
  assert jax.tree.map(lambda x: x.sharding.spec, after) == before
  (momentum,) = (x for x in jax.tree.leaves(after.workers) if x.ndim == 2)
  assert momentum.shape == (16, 1024)
  assert momentum.addressable_shards[0].data.shape == (2, 1024)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      {},
      'the number of paths to be a multiple of the 8 devices of mesh axis'
      " 'workers', got 5",
    ),
    (
      dict(paths=SIXTEEN, participation=4),
      'participation to be a multiple of the 8 devices .* got 4',
    ),
    (
      dict(paths=SIXTEEN, axis_name='paths'),
      "axis_name to be among the axes .* got 'paths'",
    ),
  ],
)
def test_refuses_what_does_not_divide(arguments, message):
  with pytest.raises(ValueError, match=f'modular_round needs {message}'):
    modular(mesh=tables.mesh(8), **arguments)


def test_refuses_what_is_no_mesh():
  with pytest.raises(TypeError, match='modular_round needs mesh to be a'):
    modular(mesh=8)
