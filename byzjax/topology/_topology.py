"""Communication graphs and their mixing weights."""

from typing import Any, NamedTuple

import numpy as np

from byzjax._src import base, checks

_WEIGHTS = ('metropolis', 'uniform')


class Topology(NamedTuple):
  """An undirected graph of n nodes with mixing weights on its edges.

  The arrays are NumPy, because a graph is known before a program is compiled.

  Attributes:
    adjacency: bool[n, n], symmetric, without self-loops.
    mixing: float[n, n], W, with rows that sum to one; zero where there is no
      edge, except on the diagonal.
    grid: `(rows, columns)` of a ring or a torus, in which node `r columns + c`
      is at position (r, c) and is connected to the adjacent positions, with
      periodic boundaries; a ring has one column. None for other graphs.
  """

  adjacency: np.ndarray
  mixing: np.ndarray
  grid: tuple[int, int] | None = None

  @property
  def num_nodes(self) -> int:
    """The number n of nodes."""
    return len(self.adjacency)

  @property
  def degrees(self) -> np.ndarray:
    """The number of neighbours of every node: int[n]."""
    return self.adjacency.sum(axis=1)


def from_adjacency(
  adjacency: Any,
  *,
  weights: str = 'metropolis',
  grid: tuple[int, int] | None = None,
) -> Topology:
  """A topology from any adjacency matrix.

  Metropolis weights are `W_ij = 1 / (1 + max(deg_i, deg_j))` on edges and `W_ii
  = 1 - sum_j W_ij`: symmetric and doubly stochastic on every graph, so gossip
  preserves the mean over the nodes.

  Uniform weights are `W_ij = 1 / (1 + deg_i)` on edges and for the node itself.
  They are doubly stochastic on regular graphs only. On other graphs gossip does
  not preserve the mean: it converges to one weighted by `1 + deg_i`.

  Args:
    adjacency: [n, n], symmetric, of zeros and ones (or bools), with a zero
      diagonal. It need not be connected.
    weights: 'metropolis' or 'uniform'.
    grid: see `Topology`.

  Returns:
    A `Topology`.

  Raises:
    ValueError: if an argument does not have that form, or the graph is not
      that of the grid.

  Example:
    >>> from byzjax import topology
    >>> topology.from_adjacency([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).mixing * 3
    array([[2., 1., 0.],
           [1., 1., 1.],
           [0., 1., 2.]])
  """
  checks.check_choice('topology', 'weights', weights, _WEIGHTS)
  if grid is not None:
    checks.check_pair('topology', 'grid', grid)
    for side in grid:
      checks.check_count('topology', 'grid', side, 1)
  edges = np.asarray(adjacency)
  square = edges.ndim == 2 and edges.shape[0] == edges.shape[1] > 0
  if not square or not np.isin(edges, (0, 1)).all():
    raise ValueError(
      'topology needs adjacency to be a square matrix of zeros and ones, got'
      f' {edges.dtype}{list(edges.shape)}'
    )
  edges = edges.astype(bool)
  if (edges != edges.T).any() or np.diagonal(edges).any():
    raise ValueError(
      'topology needs adjacency to be symmetric, without self-loops'
    )
  if grid is not None:
    # On a mesh only the neighbours in the grid are heard.
    rows, columns = grid
    fits = rows * columns == len(edges)
    if not fits or (edges != grid_edges(rows, columns)).any():
      raise ValueError(
        'topology needs adjacency to have exactly the edges of the grid, with'
        f' periodic boundaries, got grid={tuple(grid)} for another graph of'
        f' {len(edges)} nodes'
      )
  degrees = edges.sum(axis=1)
  larger = np.maximum(degrees[:, None], degrees[None])
  share = larger if weights == 'metropolis' else degrees[:, None]
  mixing = np.where(edges, 1 / (1 + share), 0.0)
  return Topology(edges, _with_diagonal(mixing), grid)


def laplacian(topology: Topology) -> np.ndarray:
  """The graph Laplacian `L = D - A`: degrees, minus one per edge.

  Args:
    topology: any graph.

  Returns:
    float64[n, n], symmetric, with rows that sum to zero.

  Example:
    >>> from byzjax import topology
    >>> topology.laplacian(topology.chain(2))
    array([[ 1., -1.],
           [-1.,  1.]])
  """
  checks.check_kind('laplacian', 'topology', topology, Topology)
  return np.diag(topology.degrees) - topology.adjacency.astype(float)


def laplacian_weights(
  topology: Topology, *, beta: base.Scalar | str | None = None
) -> Topology:
  """The same graph with `W = I - beta L`, the form of D-SGD.

  All edges have the same weight beta. W is symmetric, with rows that sum to
  one, and contracts for `0 < beta < 2 / lambda_max(L)`; its diagonal may be
  negative.

  Args:
    topology: a graph.
    beta: the weight of an edge; None for `1 / (1 + d_max)`, which contracts on
      every connected graph; 'best' for `2 / (lambda_2 + lambda_max)`, the
      constant with the largest spectral gap.

  Returns:
    A `Topology`.

  Raises:
    ValueError: if beta is not positive, or has another type.

  References:
    Xiao, Boyd, 2004, "Fast linear iterations for distributed averaging".

  Example:
    >>> from byzjax import topology
    >>> ring = topology.laplacian_weights(topology.ring(4), beta='best')
    >>> round(topology.spectral_gap(ring), 6)
    0.666667
  """
  checks.check_kind('laplacian_weights', 'topology', topology, Topology)
  matrix = laplacian(topology)
  if beta is None:
    step = 1 / (1 + topology.degrees.max())
  elif isinstance(beta, str):
    if beta != 'best':
      raise ValueError(
        f"laplacian_weights needs beta to be a number, 'best' or None, got"
        f' {beta!r}'
      )
    values = np.linalg.eigvalsh(matrix)
    step = 2 / (values[min(1, len(values) - 1)] + values[-1] or 1)
  else:
    checks.check_range('laplacian_weights', 'beta', beta, 0, exclusive=True)
    step = float(beta)
  mixing = step * topology.adjacency.astype(float)
  return topology._replace(mixing=_with_diagonal(mixing))


def lazy(topology: Topology) -> Topology:
  """The same graph with `(I + W) / 2`, which has no negative eigenvalue.

  Args:
    topology: any graph with symmetric weights.

  Returns:
    A `Topology`; its spectral gap is at most 1/2.

  Example:
    >>> from byzjax import topology
    >>> topology.lazy(topology.complete(2)).mixing
    array([[0.75, 0.25],
           [0.25, 0.75]])
  """
  checks.check_kind('lazy', 'topology', topology, Topology)
  mixing = (np.eye(topology.num_nodes) + topology.mixing) / 2
  return topology._replace(mixing=mixing)


def spectral_gap(topology: Topology | np.ndarray) -> float:
  """One minus the largest eigenvalue modulus of W, except for one eigenvalue 1.

  With symmetric weights a step of plain gossip multiplies the distance to the
  mean by at most `1 - gap`. Because of the modulus, an eigenvalue near -1 makes
  convergence as slow as one near 1, and with one below -1 gossip diverges.

  Args:
    topology: a `Topology`, or W itself, [n, n].

  Returns:
    The gap, in `[0, 1]` for stochastic weights: 0 for a disconnected graph, 1
    for a single node. Negative where gossip diverges, as with too large a beta
    in `laplacian_weights`.

  Example:
    >>> from byzjax import topology
    >>> round(topology.spectral_gap(topology.star(8)), 6)
    0.125
  """
  mixing = topology.mixing if isinstance(topology, Topology) else topology
  mixing = np.asarray(mixing, float)
  if len(mixing) == 1:
    return 1.0
  symmetric = np.allclose(mixing, mixing.T, rtol=0, atol=1e-12)
  values = (
    np.linalg.eigvalsh(mixing) if symmetric else np.linalg.eigvals(mixing)
  )
  # That of the mean need not be the largest.
  others = np.delete(values, np.argmin(np.abs(values - 1)))
  return float(1 - np.abs(others).max())


def is_connected(adjacency: np.ndarray) -> bool:
  """Whether there is a path between any two nodes."""
  reached = np.arange(len(adjacency)) == 0
  while True:
    further = reached | adjacency[reached].any(axis=0)
    if (further == reached).all():
      return bool(reached.all())
    reached = further


def _with_diagonal(mixing):
  return mixing + np.diag(1 - mixing.sum(axis=1))


def grid_edges(rows: int, columns: int) -> np.ndarray:
  """The adjacency of a grid with periodic boundaries: bool[n, n]."""
  row, column = np.divmod(np.arange(rows * columns), columns)

  def next_to(x, length):
    """Which pairs are one apart around a circle."""
    difference = (x[:, None] - x) % length
    return (difference == 1 % length) | (difference == (length - 1) % length)

  same_row, same_column = row[:, None] == row, column[:, None] == column
  edges = (same_row & next_to(column, columns)) | (
    same_column & next_to(row, rows)
  )
  return edges & ~np.eye(rows * columns, dtype=bool)
