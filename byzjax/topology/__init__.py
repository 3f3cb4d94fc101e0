"""Communication graphs of decentralised training, and mixing weights."""

from byzjax.topology._graphs import (
  chain,
  complete,
  dumbbell,
  erdos_renyi,
  exponential,
  ring,
  star,
  torus,
)
from byzjax.topology._topology import (
  Topology,
  from_adjacency,
  laplacian,
  laplacian_weights,
  lazy,
  spectral_gap,
)

__all__ = [
  'Topology',
  'chain',
  'complete',
  'dumbbell',
  'erdos_renyi',
  'exponential',
  'from_adjacency',
  'laplacian',
  'laplacian_weights',
  'lazy',
  'ring',
  'spectral_gap',
  'star',
  'torus',
]
