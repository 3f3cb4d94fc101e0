"""Against stored answers of the official code of ClippedGossip.

`epfml_decentralized.npz` holds what epfml/byzantine-robust-decentralized-
optimizer 5387d60 answers; the cases are in `tests/conformance/manifest.json`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import gossip, topology
from tests.gossip import oracle

_FOLDER = pathlib.Path(__file__).parents[1] / 'conformance'
STORED = np.load(_FOLDER / 'epfml_decentralized.npz')


def _binary_tree(n):
  edges = np.zeros((n, n), bool)
  for i in range(1, n):
    edges[i, (i - 1) // 2] = edges[(i - 1) // 2, i] = True
  return topology.from_adjacency(edges)


def _two_cliques(size, between):
  """Cliques joined by a chain of nodes, as the official code numbers them."""
  n = 2 * size + between
  edges = np.zeros((n, n), bool)
  edges[:size, :size] = edges[size : 2 * size, size : 2 * size] = True
  for i in range(2 * size - 1, n - 1):
    edges[i, i + 1] = edges[i + 1, i] = True
  edges[0, n - 1] = edges[n - 1, 0] = True
  np.fill_diagonal(edges, False)
  return topology.from_adjacency(edges)


def _two_cliques_with_byzantine(size, b):
  """Two cliques, a node between them, and b attackers on that node."""
  n, center = 2 * size + 1 + b, 2 * size
  edges = np.zeros((n, n), bool)
  edges[:size, :size] = edges[size:center, size:center] = True
  for i in (0, center - 1, *range(center + 1, n)):
    edges[i, center] = edges[center, i] = True
  np.fill_diagonal(edges, False)
  graph = topology.from_adjacency(edges)
  mixing = graph.mixing.copy()
  mixing[center, center + 1 :] = mixing[center + 1 :, center] = 1 / (b + 3)
  np.fill_diagonal(mixing, 0)
  np.fill_diagonal(mixing, 1 - mixing.sum(axis=1))
  return graph._replace(mixing=mixing)


def _dumbbell(size, b):
  graph = topology.dumbbell(size, num_byzantine=b)
  return topology.laplacian_weights(graph, beta=1 / (size + b + 1))


GRAPHS = {
  'ring6': topology.ring(6),
  'chain6': topology.chain(6),
  'complete6': topology.complete(6),
  'star6': topology.star(6),
  'binarytree7': _binary_tree(7),
  'torus3x4': topology.torus(3, 4),
  'twocliques4_1': _two_cliques(4, 1),
  'twocliquesbyz5_2': _two_cliques_with_byzantine(5, 2),
  'dumbbell4_1_0': _dumbbell(4, 1),
}


def _cases():
  path = _FOLDER / 'manifest.json'
  cases = json.loads(path.read_text())['cases']
  return [c for c in cases if c['peer'] == 'epfml_decentralized']


CASES = {case['id']: case for case in _cases()}


def test_all_cases_are_asked():
  operations = {case['op'] for case in CASES.values()}
  assert operations == {'SelfCenteredClipping', 'dissensus', 'metropolis'}
  assert len(CASES) == 20


@pytest.mark.parametrize('graph', GRAPHS)
def test_gossip(graph):
  with jax.enable_x64(True):
    x = jnp.asarray(STORED[f'graph/{graph}/x'])
    mixed = oracle.mix(gossip.plain(), GRAPHS[graph], x)
    expected = STORED[f'graph/{graph}/gossip']
    np.testing.assert_allclose(mixed, expected, 1e-9, 1e-10)


@pytest.mark.parametrize(
  'name', [k for k, c in CASES.items() if c['op'] != 'SelfCenteredClipping']
)
def test_graphs_and_dissensus(name):
  case, params = CASES[name], CASES[name]['params']
  graph = GRAPHS[params['graph']]
  if case['op'] == 'metropolis':
    stored = {key: STORED[value] for key, value in case['outputs'].items()}
    np.testing.assert_array_equal(graph.adjacency, stored['adjacency'])
    np.testing.assert_allclose(graph.mixing, stored['weights'], atol=1e-12)
    if params['graph'] != 'dumbbell4_1_0':  # there of the honest part
      gap = topology.spectral_gap(graph)
      np.testing.assert_allclose(gap, stored['spectral_gap'], atol=1e-9)
    return
  is_byzantine = np.isin(np.arange(graph.num_nodes), params['byzantine'])
  attack = gossip.dissensus(epsilon=params['epsilon'])
  with jax.enable_x64(True):
    coefficients = attack.coefficients(
      jnp.asarray(graph.mixing), jnp.asarray(is_byzantine)
    )
    sent = np.asarray(coefficients)[params['target']] @ STORED['dissensus/x']
    np.testing.assert_allclose(sent, STORED[case['output']], 1e-9, 1e-10)


@pytest.mark.parametrize(
  'name', [k for k, c in CASES.items() if c['op'] == 'SelfCenteredClipping']
)
def test_clipped(name):
  case, params = CASES[name], CASES[name]['params']
  with jax.enable_x64(True):
    x = jnp.asarray(STORED[f'graph/{params["graph"]}/x'])
    rule = gossip.clipped(radius=params['tau'])
    mixed = oracle.mix(rule, GRAPHS[params['graph']], x)
    np.testing.assert_allclose(mixed, STORED[case['output']], 1e-9, 1e-10)
