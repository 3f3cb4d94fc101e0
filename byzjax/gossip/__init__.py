"""Gossip: rules for decentralised training without a server, and attacks."""

from byzjax.gossip._aggregate import aggregate, trimmed
from byzjax.gossip._attacks import alone, dissensus
from byzjax.gossip._clipped import clipped
from byzjax.gossip._mix import mix
from byzjax.gossip._nearest_neighbor_averaging import nearest_neighbor_averaging
from byzjax.gossip._plain import plain
from byzjax.gossip._types import (
  AggregateRule,
  AloneAttack,
  EdgeAttack,
  GossipRule,
)

__all__ = [
  'AggregateRule',
  'AloneAttack',
  'EdgeAttack',
  'GossipRule',
  'aggregate',
  'alone',
  'clipped',
  'dissensus',
  'mix',
  'nearest_neighbor_averaging',
  'plain',
  'trimmed',
]
