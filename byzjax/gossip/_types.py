"""Rules of gossip and attacks on edges, in types."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from byzjax._src import base


class GossipRule(NamedTuple):
  """A rule that moves a node towards its neighbours by weights.

  Node i goes from `x_i` to `x_i + sum_j w_ij (x_j - x_i)`: what its neighbours
  do not weigh, its own vector does. A rule sees one node at a time, and of its
  neighbours only how far they are. So gossip of n nodes is one n x n matrix,
  computed from inner products, and the same rule works where nodes see no one
  but their neighbours.

  Attributes:
    weights: `(squared_distances float[m], mixing float[m], is_neighbor bool[m])
      -> float[m]`, the w of one node for m others. The distance of who is no
      neighbour, or has sent a vector that is not usable (NaN, inf or far too
      large), is +inf; the weights of those two are ignored, and must not be the
      cause of a NaN in others.
    name: as in `gossip.clipped`.
  """

  weights: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
  name: str = 'gossip'


class AggregateRule(NamedTuple):
  """A rule that aggregates the vectors of a node and of its neighbours.

  Attributes:
    rule_for: `m -> Aggregator`, for a node that holds m vectors with its own,
      which is row 0.
    name: as in `gossip.aggregate`.
  """

  rule_for: Callable[[int], base.Aggregator]
  name: str = 'aggregate'


class EdgeAttack(NamedTuple):
  """Attackers that tell every neighbour something else.

  Attributes:
    coefficients: `(mixing float[n, n], is_byzantine bool[n]) -> float[n, n]`, A
      with rows that sum to one: all Byzantine neighbours of node i send it row
      i of `A X`, X the vectors of all nodes before the attack. Nodes whose
      vector is not usable have no weight in the mixing matrix, and must have
      none in A.
    name: as in `gossip.dissensus`.
  """

  coefficients: Callable[[jax.Array, jax.Array], jax.Array]
  name: str = 'edge attack'


class AloneAttack(NamedTuple):
  """Attackers each of whom knows its own vector only; see `gossip.alone`."""

  attack: base.Attack


Rule = GossipRule | AggregateRule
