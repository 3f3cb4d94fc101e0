"""Standard graphs: ring, torus, star, complete, chain, and others."""

import numpy as np

from byzjax._src import checks
from byzjax.topology._topology import (
  Topology,
  from_adjacency,
  grid_edges,
  is_connected,
)


def ring(num_nodes: int, *, weights: str = 'metropolis') -> Topology:
  """A ring: every node is connected to its two neighbours on a circle.

  With weights of 1/3 the spectral gap is `(2/3) (1 - cos(2 pi / n))`, `n >= 4`.

  Args:
    num_nodes: n >= 1, a Python int.
    weights: 'metropolis' or 'uniform', the same here.

  Returns:
    A `Topology` with a grid, so that it can be split over a mesh.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> from byzjax import topology
    >>> topology.ring(4).mixing[0] * 3
    array([1., 1., 0., 1.])
  """
  checks.check_count('ring', 'num_nodes', num_nodes, 1)
  return from_adjacency(
    grid_edges(num_nodes, 1), weights=weights, grid=(num_nodes, 1)
  )


def torus(rows: int, columns: int, *, weights: str = 'metropolis') -> Topology:
  """A torus: a grid with periodic boundaries; nodes have up to 4 neighbours.

  For r x r nodes, `r >= 4`, the spectral gap is `(2/5) (1 - cos(2 pi / r))`. A
  side of length 1 has no neighbours along it, and on a side of length 2 both
  are the same node.

  Args:
    rows: r >= 1, a Python int; a mesh splits the torus along the rows.
    columns: c >= 1, a Python int; node (i, j) has the index `i c + j`.
    weights: 'metropolis' or 'uniform', the same here.

  Returns:
    A `Topology` with a grid, so that it can be split over a mesh.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> from byzjax import topology
    >>> topology.torus(3, 3).degrees
    array([4, 4, 4, 4, 4, 4, 4, 4, 4])
  """
  checks.check_count('torus', 'rows', rows, 1)
  checks.check_count('torus', 'columns', columns, 1)
  return from_adjacency(
    grid_edges(rows, columns), weights=weights, grid=(rows, columns)
  )


def star(num_nodes: int, *, weights: str = 'metropolis') -> Topology:
  """A star: node 0 is connected to all other nodes, and these only to it.

  The spectral gap of Metropolis weights is `1 / n`.

  Args:
    num_nodes: n >= 1, a Python int.
    weights: 'metropolis' or 'uniform'; the latter gives the hub more weight.

  Returns:
    A `Topology`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> from byzjax import topology
    >>> topology.star(4).degrees
    array([3, 1, 1, 1])
  """
  checks.check_count('star', 'num_nodes', num_nodes, 1)
  edges = np.zeros((num_nodes, num_nodes), bool)
  edges[0, 1:] = edges[1:, 0] = True
  return from_adjacency(edges, weights=weights)


def complete(num_nodes: int, *, weights: str = 'metropolis') -> Topology:
  """The complete graph: one step of plain gossip is the mean of all nodes.

  Args:
    num_nodes: n >= 1, a Python int.
    weights: 'metropolis' or 'uniform', the same here: 1/n everywhere.

  Returns:
    A `Topology`, with a spectral gap of 1.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> from byzjax import topology
    >>> topology.complete(4).mixing[0]
    array([0.25, 0.25, 0.25, 0.25])
  """
  checks.check_count('complete', 'num_nodes', num_nodes, 1)
  return from_adjacency(~np.eye(num_nodes, dtype=bool), weights=weights)


def chain(num_nodes: int, *, weights: str = 'metropolis') -> Topology:
  """A chain (path): a ring without one of its edges.

  The spectral gap of Metropolis weights is `(2/3) (1 - cos(pi / n))` for `n >=
  3`, about a quarter of that of the ring.

  Args:
    num_nodes: n >= 1, a Python int.
    weights: 'metropolis' or 'uniform'.

  Returns:
    A `Topology`.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> from byzjax import topology
    >>> topology.chain(4).degrees
    array([1, 2, 2, 1])
  """
  checks.check_count('chain', 'num_nodes', num_nodes, 1)
  node = np.arange(num_nodes)
  return from_adjacency(np.abs(node[:, None] - node) == 1, weights=weights)


def exponential(num_nodes: int, *, weights: str = 'metropolis') -> Topology:
  """A graph with edges of lengths 1, 2, 4, ... around a circle.

  Each node has about `2 log2(n)` neighbours, and the gap falls like `1 / log
  n`.

  Args:
    num_nodes: n >= 1, a Python int.
    weights: 'metropolis' or 'uniform', the same here.

  Returns:
    A `Topology`.

  Raises:
    ValueError: if an argument is out of range.

  References:
    Assran, Loizou, Ballas, Rabbat, 2019, arXiv:1811.10792, with directed edges;
    here they are undirected.

  Example:
    >>> from byzjax import topology
    >>> topology.exponential(16).degrees[0]  # 1, 2, 4 both ways, and 8
    np.int64(7)
  """
  checks.check_count('exponential', 'num_nodes', num_nodes, 1)
  node = np.arange(num_nodes)
  forward = (node - node[:, None]) % num_nodes
  powers = 2 ** np.arange(max(int(num_nodes) - 1, 1).bit_length())
  edges = np.isin(forward, powers[powers < num_nodes])
  return from_adjacency(edges | edges.T, weights=weights)


def dumbbell(
  clique_size: int,
  *,
  num_byzantine: int = 0,
  weights: str = 'metropolis',
) -> Topology:
  """Two cliques joined by one edge: a hard case for robust gossip.

  Nodes `0 ... q - 1` are one clique and `q ... 2q - 1` the other; the edge
  between them joins nodes 0 and `2q - 1`. Each of these two has b more
  neighbours, meant to be Byzantine: nodes `2q ... 2q + b - 1` are connected to
  node 0, and nodes `2q + b ... 2q + 2b - 1` to node `2q - 1`.

  Args:
    clique_size: q >= 1, a Python int.
    num_byzantine: b >= 0, a Python int: extra nodes at each end of the edge.
    weights: 'metropolis' or 'uniform'. (The official code of ClippedGossip
      gives all edges the weight `1 / (q + b + 1)`: `laplacian_weights`.)

  Returns:
    A `Topology` of `2 (q + b)` nodes.

  Raises:
    ValueError: if an argument is out of range.

  References:
    He, Karimireddy, Jaggi, 2022, arXiv:2202.01545.

  Example:
    >>> from byzjax import topology
    >>> topology.dumbbell(3).degrees
    array([3, 2, 2, 2, 2, 3])
  """
  checks.check_count('dumbbell', 'clique_size', clique_size, 1)
  checks.check_count('dumbbell', 'num_byzantine', num_byzantine)
  q, b = clique_size, num_byzantine
  edges = np.zeros((2 * (q + b),) * 2, bool)
  edges[:q, :q] = edges[q : 2 * q, q : 2 * q] = ~np.eye(q, dtype=bool)
  left, right = 0, 2 * q - 1
  edges[left, right] = True
  edges[left, 2 * q : 2 * q + b] = edges[right, 2 * q + b :] = True
  return from_adjacency(edges | edges.T, weights=weights)


def erdos_renyi(
  num_nodes: int,
  *,
  probability: float,
  seed: int,
  weights: str = 'metropolis',
) -> Topology:
  """A random graph (Erdos-Renyi): each pair has an edge with probability p.

  Redrawn until it is connected, which takes few draws if p is well above
  `log(n) / n`.

  Args:
    num_nodes: n >= 1, a Python int.
    probability: p of an edge, in (0, 1].
    seed: the seed of the draws, a Python int.
    weights: 'metropolis' or 'uniform'.

  Returns:
    A `Topology`.

  Raises:
    ValueError: if an argument is out of range, or if none of a thousand draws
      is connected.

  Example:
    >>> from byzjax import topology
    >>> topology.erdos_renyi(8, probability=1.0, seed=0).degrees[0]
    np.int64(7)
  """
  name = 'erdos_renyi'
  checks.check_count(name, 'num_nodes', num_nodes, 1)
  checks.check_count(name, 'seed', seed)
  checks.check_range(name, 'probability', probability, 0, 1, exclusive=True)
  random = np.random.default_rng(seed)
  for _ in range(1000):
    upper = np.triu(random.random((num_nodes,) * 2) < probability, 1)
    edges = upper | upper.T
    if is_connected(edges):
      return from_adjacency(edges, weights=weights)
  raise ValueError(
    f'{name} needs a probability that makes {num_nodes} nodes connected, got'
    f' {probability}'
  )
