"""Graphs, mixing weights and spectral gaps against closed forms."""

import numpy as np
import pytest

from byzjax import topology

GRAPHS = {
  'ring': topology.ring(9),
  'torus': topology.torus(4, 6),
  'star': topology.star(7),
  'complete': topology.complete(6),
  'chain': topology.chain(8),
  'exponential': topology.exponential(12),
  'dumbbell': topology.dumbbell(4, num_byzantine=2),
  'erdos_renyi': topology.erdos_renyi(12, probability=0.4, seed=3),
  'one': topology.ring(1),
  'two': topology.torus(2, 1),
}


@pytest.mark.parametrize('name', GRAPHS)
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(name):
  graph = GRAPHS[name]
  n, degrees = graph.num_nodes, graph.adjacency.sum(axis=1)
  np.testing.assert_array_equal(graph.mixing, graph.mixing.T)
  np.testing.assert_allclose(graph.mixing.sum(axis=0), 1, 1e-12)
  assert (graph.mixing >= 0).all()
  for i in range(n):
    for j in range(n):
      expected = graph.adjacency[i, j] / (1 + max(degrees[i], degrees[j]))
      if i != j:
        np.testing.assert_allclose(graph.mixing[i, j], expected, 1e-12)
  assert not np.diagonal(graph.adjacency).any()


@pytest.mark.parametrize('name', GRAPHS)
def test_every_graph_is_connected(name):
  # Two hops at a time: all pairs are reached by powers of I + A.
  graph = GRAPHS[name]
  hops = np.linalg.matrix_power(
    np.eye(graph.num_nodes) + graph.adjacency, graph.num_nodes
  )
  assert (hops > 0).all()
  if graph.num_nodes > 1:
    assert 0 < topology.spectral_gap(graph) <= 1 + 1e-12


def _cosine(turn):
  return np.cos(2 * np.pi * turn)


@pytest.mark.parametrize(
  'graph, gap',
  [
    (topology.ring(4), 2 / 3),
    (topology.ring(8), 0.1953),
    (topology.ring(16), 0.0507),
    (topology.ring(25), 0.0209),
    (topology.ring(11), 2 / 3 * (1 - _cosine(1 / 11))),
    (topology.torus(5, 5), 0.2764),
    (topology.torus(6, 6), 2 / 5 * (1 - _cosine(1 / 6))),
    (topology.complete(7), 1),
    (topology.star(8), 0.125),
    (topology.star(16), 0.0625),
    (topology.chain(9), 2 / 3 * (1 - _cosine(1 / 18))),
    (topology.ring(1), 1),
  ],
  ids=str,
)
def test_spectral_gaps_have_their_closed_forms(graph, gap):
  np.testing.assert_allclose(topology.spectral_gap(graph), gap, atol=6e-5)


def test_the_whole_spectrum_of_a_ring():
  values = np.linalg.eigvalsh(topology.ring(10).mixing)
  expected = np.sort((1 + 2 * _cosine(np.arange(10) / 10)) / 3)
  np.testing.assert_allclose(values, expected, atol=1e-12)


def test_a_chain_has_about_a_quarter_of_the_gap_of_the_ring():
  ratio = topology.spectral_gap(topology.chain(40)) / topology.spectral_gap(
    topology.ring(40)
  )
  assert 0.24 < ratio < 0.26


def test_the_gap_uses_the_modulus():
  # Two nodes that swap: an eigenvalue -1, so no convergence at all.
  swap = np.array([[0.0, 1.0], [1.0, 0.0]])
  np.testing.assert_allclose(topology.spectral_gap(swap), 0, atol=1e-12)
  bipartite = topology.laplacian_weights(topology.ring(4), beta=0.49)
  np.testing.assert_allclose(
    topology.spectral_gap(bipartite), 1 - abs(1 - 0.49 * 4), atol=1e-9
  )


def test_the_gap_is_negative_where_gossip_diverges():
  # The eigenvalues of the Laplacian are 0, 2, 2 and 4.
  for beta in (0.6, 1.0):
    graph = topology.laplacian_weights(topology.ring(4), beta=beta)
    np.testing.assert_allclose(
      topology.spectral_gap(graph), 2 - 4 * beta, atol=1e-9
    )


def test_lazy_weights_have_no_negative_eigenvalue():
  graph = topology.laplacian_weights(topology.ring(6), beta=0.45)
  assert np.linalg.eigvalsh(graph.mixing)[0] < -0.5
  lazy = topology.lazy(graph)
  values = np.linalg.eigvalsh(graph.mixing)
  np.testing.assert_allclose(
    np.linalg.eigvalsh(lazy.mixing), (1 + values) / 2, atol=1e-12
  )


def test_uniform_weights_are_not_doubly_stochastic_on_irregular_graphs():
  graph = topology.star(5, weights='uniform')
  np.testing.assert_allclose(graph.mixing.sum(axis=1), 1)
  assert graph.mixing.sum(axis=0)[0] > 2  # the hub counts twice and more
  # Gossip tends to the mean with weights 1 + deg.
  limit = np.linalg.matrix_power(graph.mixing, 400)
  share = (1 + graph.degrees) / (1 + graph.degrees).sum()
  np.testing.assert_allclose(limit, np.tile(share, (5, 1)), atol=1e-9)
  regular = topology.ring(5, weights='uniform')
  np.testing.assert_allclose(regular.mixing, topology.ring(5).mixing)


def test_laplacian_weights():
  graph = topology.star(6)
  matrix = topology.laplacian(graph)
  np.testing.assert_array_equal(matrix.sum(axis=1), 0)
  values = np.linalg.eigvalsh(matrix)
  np.testing.assert_allclose(values[[0, 1, -1]], [0, 1, 6], atol=1e-12)
  default = topology.laplacian_weights(graph)
  np.testing.assert_allclose(default.mixing, np.eye(6) - matrix / 6, atol=1e-12)
  best = topology.laplacian_weights(graph, beta='best')
  np.testing.assert_allclose(
    best.mixing, np.eye(6) - matrix * 2 / 7, atol=1e-12
  )
  gaps = [
    topology.spectral_gap(topology.laplacian_weights(graph, beta=beta))
    for beta in np.linspace(0.05, 0.33, 50)
  ]
  assert topology.spectral_gap(best) >= max(gaps)


def test_the_exponential_graph():
  graph = topology.exponential(16)
  neighbours = set(np.flatnonzero(graph.adjacency[5]) - 5)
  assert {x % 16 for x in neighbours} == {1, 2, 4, 8, 12, 14, 15}
  assert topology.spectral_gap(graph) > 3 * topology.spectral_gap(
    topology.ring(16)
  )


def test_the_grid_of_a_torus_says_who_the_neighbours_are():
  rows, columns = topology.torus(3, 4).grid
  assert (rows, columns) == (3, 4)
  neighbours = np.flatnonzero(topology.torus(3, 4).adjacency[0])
  np.testing.assert_array_equal(neighbours, [1, 3, 4, 8])
  assert topology.ring(5).grid == (5, 1)
  assert topology.chain(5).grid is None
  given = topology.from_adjacency(topology.torus(3, 4).adjacency, grid=(3, 4))
  assert given.grid == (3, 4)


def test_a_dumbbell_has_one_bridge():
  graph = topology.dumbbell(3, num_byzantine=1)
  assert graph.num_nodes == 8
  assert graph.adjacency[0, 5] and graph.adjacency[:3, 3:6].sum() == 1
  np.testing.assert_array_equal(np.flatnonzero(graph.adjacency[6]), [0])
  np.testing.assert_array_equal(np.flatnonzero(graph.adjacency[7]), [5])
  # The tiny gap of a large one.
  assert topology.spectral_gap(topology.dumbbell(20)) < 0.01


def test_erdos_renyi_is_drawn_from_its_seed_until_it_is_connected():
  draws = [
    topology.erdos_renyi(12, probability=0.25, seed=s) for s in range(20)
  ]
  again = topology.erdos_renyi(12, probability=0.25, seed=7)
  np.testing.assert_array_equal(draws[7].adjacency, again.adjacency)
  assert len({graph.adjacency.tobytes() for graph in draws}) == 20
  gaps = [topology.spectral_gap(graph) for graph in draws]
  assert min(gaps) > 1e-3


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: topology.ring(0), 'ring needs num_nodes'),
    (lambda: topology.ring(4, weights='max'), 'weights to be one of'),
    (lambda: topology.from_adjacency([[0, 1], [0, 0]]), 'symmetric'),
    (lambda: topology.from_adjacency([[1]]), 'self-loops'),
    (lambda: topology.from_adjacency([[0, 2], [2, 0]]), 'zeros and ones'),
    (lambda: topology.from_adjacency(np.zeros((2, 3))), 'square'),
    (
      lambda: topology.from_adjacency(topology.chain(4).adjacency, grid=(4, 1)),
      r'edges of the grid.* got grid=\(4, 1\) for another graph of 4 nodes',
    ),
    (
      lambda: topology.from_adjacency(topology.ring(6).adjacency, grid=(3, 1)),
      r'edges of the grid.* got grid=\(3, 1\) for another graph of 6 nodes',
    ),
    (
      lambda: topology.erdos_renyi(20, probability=0.01, seed=0),
      'connected',
    ),
    (
      lambda: topology.erdos_renyi(4, probability=0.0, seed=0),
      'probability > 0',
    ),
    (
      lambda: topology.laplacian_weights(topology.ring(4), beta=0.0),
      'beta > 0',
    ),
    (
      lambda: topology.laplacian_weights(topology.ring(4), beta='fast'),
      "'best'",
    ),
  ],
)
def test_errors_say_what_is_wrong(make, words):
  with pytest.raises(ValueError, match=words):
    make()
