"""Types of gossip rules and of attacks on edges."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from byzjax._src import base


class GossipRule(NamedTuple):
  """A rule that moves a node towards its neighbours by weights.

  Node i moves from `x_i` to `x_i + sum_j w_ij (x_j - x_i)`: its own vector has
  the remaining weight. A rule gets one node at a time, and only the distances
  to its neighbours. So a step of n nodes is one n x n matrix, computed from
  inner products, and the same rule works on a mesh where nodes see only their
  neighbours.

  Attributes:
    weights: `(squared_distances float[m], mixing float[m], is_neighbor bool[m])
      -> float[m]`, the weights w of one node for m others. The distance is +inf
      for a node that is not a neighbour, or whose vector is unusable (NaN, inf
      or far too large); its weight is ignored, and must not make the weights of
      others NaN.
    name: name of the rule, as in `gossip.clipped`.
  """

  weights: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
  name: str = 'gossip'


class AggregateRule(NamedTuple):
  """A rule that aggregates the vectors of a node and of its neighbours.

  Attributes:
    rule_for: `m -> Aggregator`, for m vectors: the node's own, which is row 0,
      and those of its neighbours.
    name: name of the rule, as in `gossip.aggregate`.
  """

  rule_for: Callable[[int], base.Aggregator]
  name: str = 'aggregate'


class EdgeAttack(NamedTuple):
  """An attack whose Byzantine nodes send each neighbour a different vector.

  Attributes:
    coefficients: `(mixing float[n, n], is_byzantine bool[n]) -> float[n, n]`, a
      matrix A with rows that sum to one: all Byzantine neighbours of node i
      send it row i of `A X`, where X are the vectors of all nodes before the
      attack. Nodes with an unusable vector have weight zero in the mixing
      matrix, and must have weight zero in A.
    name: name of the attack, as in `gossip.dissensus`.
  """

  coefficients: Callable[[jax.Array, jax.Array], jax.Array]
  name: str = 'edge attack'


class AloneAttack(NamedTuple):
  """An attack in which each node knows its own vector only; see `alone`."""

  attack: base.Attack


Rule = GossipRule | AggregateRule
