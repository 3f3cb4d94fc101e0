"""Gossip between neighbouring devices: same numbers, little communication."""

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
from tests.rounds import problem as tables
from tests.rounds.sharded_test import collectives

RING, TORUS = topology.ring(16), topology.torus(8, 3)
RULES = {
  'plain': gossip.plain(),
  'clipped': gossip.clipped(),
  'radius': gossip.clipped(radius=0.7),
  'nna': gossip.nearest_neighbor_averaging(num_byzantine=1),
  'trimmed': gossip.trimmed(num_byzantine=1),
}
ATTACKS = {
  'none': None,
  'flip': gossip.alone(byzjax.sign_flip(scale=3.0, own=True)),
  'nan': gossip.alone(byzjax.constant(value=jnp.nan)),
  'gaussian': gossip.alone(byzjax.gaussian(std=3.0)),
}


@functools.cache
def _run(graph_name, rule, attack, devices):
  graph = {'ring': RING, 'torus': TORUS}[graph_name]
  n = graph.num_nodes
  rounds = problem.training(
    topology=graph,
    rule=RULES[rule],
    attack=ATTACKS[attack],
    byzantine=jnp.arange(n) % 7 == 3 if ATTACKS[attack] else 0,
    optimizer=optax.sgd(0.1, momentum=0.9),
    noise=None if ATTACKS[attack] else 0.05,
    mesh=devices and tables.mesh(devices),
  )
  state, infos, models = problem.scan(rounds, problem.targets(n), 8)
  return state, infos, models


@pytest.mark.parametrize(
  'graph, rule, attack, devices',
  [
    ('torus', 'plain', 'none', 8),
    ('torus', 'clipped', 'flip', 2),
    ('torus', 'clipped', 'flip', 4),
    ('torus', 'clipped', 'flip', 8),
    ('torus', 'trimmed', 'flip', 4),
    ('ring', 'nna', 'nan', 4),
    ('ring', 'radius', 'gaussian', 8),
  ],
)
def test_any_number_of_devices_agrees_with_one(graph, rule, attack, devices):
  state, infos, models = _run(graph, rule, attack, devices)
  expected_state, expected_infos, expected = _run(graph, rule, attack, None)
  np.testing.assert_allclose(models, expected, 1e-4, 1e-5)
  np.testing.assert_array_equal(infos.masked, expected_infos.masked)
  for name in ('loss', 'aggregation_error', 'bits_up', 'num_nonfinite'):
    np.testing.assert_allclose(
      getattr(infos, name), getattr(expected_infos, name), 1e-4, 1e-6
    )
  momentum = jax.tree.leaves(state.workers)[0]
  np.testing.assert_allclose(
    momentum, jax.tree.leaves(expected_state.workers)[0], 1e-4, 1e-5
  )
  assert np.linalg.norm(models[-1] - models[0]) > 0.5  # something happened


def test_grids_whose_neighbours_coincide():
  graphs = [topology.torus(*shape) for shape in ((2, 3), (1, 4), (2, 1))]
  goals = [problem.targets(graph.num_nodes) for graph in graphs]

  @jax.jit
  def step(goals):
    runs = []
    for graph, x in zip(graphs, goals):
      rounds = problem.training(
        topology=graph,
        rule=RULES['radius'],
        optimizer=optax.set_to_zero(),
        mesh=tables.mesh(1),
      )
      state = rounds.init(problem.params())._replace(params={'w': x})
      state, _ = rounds.step(state, x, problem.KEY)
      runs.append(state.params['w'])
    return runs

  for graph, x, mixed in zip(graphs, goals, step(goals)):
    expected = oracle.clipped(graph, np.float64(x), 0.7)
    np.testing.assert_allclose(mixed, expected, 1e-5, 1e-6)


def test_gradients_are_those_of_the_node():
  rounds = problem.training(
    topology=RING, consensus=0.0, mesh=tables.mesh(8), optimizer=optax.sgd(1.0)
  )
  _, _, models = problem.scan(rounds, problem.targets(), 1)
  np.testing.assert_allclose(models[0], problem.targets(), 1e-6)


@pytest.mark.parametrize('graph', [RING, TORUS], ids=['ring', 'torus'])
def test_no_collective_is_as_large_as_the_models_of_a_device(graph):
  # With 2 rows to a device a boundary row is half of what it holds.
  width, devices, n = 4096, 4, graph.num_nodes

  def loss_fn(params, batch):
    return jnp.mean((params - batch) ** 2)

  rounds = byzjax.gossip_round(
    loss_fn,
    topology=graph,
    optimizer=optax.sgd(0.1),
    rule=RULES['clipped'],
    mesh=tables.mesh(devices),
  )
  state = rounds.init(jnp.zeros(width))
  batch = jnp.ones((n, width))
  hlo = jax.jit(rounds.step).lower(state, batch, problem.KEY).compile()
  ops = collectives(hlo.as_text())
  assert {kind for kind, _ in ops} == {'all-reduce', 'collective-permute'}
  assert max(size for _, size in ops) < n * width / devices
  # One row of the grid to each side, once.
  columns = graph.grid[1]
  permuted = [size for kind, size in ops if kind == 'collective-permute']
  assert sum(permuted) <= 2 * 2 * columns * width
  assert permuted.count(columns * width) <= 2
  # And the mean model, which only the diagnostics need.
  reduced = [size for kind, size in ops if kind == 'all-reduce']
  assert sum(reduced) <= width + 64


@pytest.mark.parametrize(
  'kwargs, words',
  [
    (dict(topology=topology.star(16)), 'ring or a torus on a mesh'),
    (dict(topology=topology.torus(4, 4)), 'rows of the grid'),
    (dict(topology=topology.ring(12)), 'multiple of the'),
    (dict(attack=byzjax.alie(), byzantine=1), 'one node at a time'),
    (dict(attack=gossip.dissensus(), byzantine=1), 'one node at a time'),
  ],
)
def test_errors_say_what_is_wrong(kwargs, words):
  arguments = dict(topology=RING, mesh=tables.mesh(8)) | kwargs
  with pytest.raises(ValueError, match=words):
    problem.training(**arguments)
