"""Any rule of a server, at every node."""

from collections.abc import Callable

from byzjax._src import base, checks
from byzjax.aggregators import trimmed_mean
from byzjax.gossip._types import AggregateRule


def aggregate(
  rule_for: Callable[[int], base.Aggregator], *, name: str = 'aggregate'
) -> AggregateRule:
  """Every node aggregates its own vector and those of its neighbours.

  `x_i <- Agg(x_i, x_j : j a neighbour of i)`. The weights of the graph play no
  part, and nodes that see different vectors find different aggregates: on a
  sparse graph with different data such rules fail without any attacker. A
  neighbour's vector that is not usable is replaced by the node's own.

  Costs one pass of the rule per node, over its neighbourhood: n (deg + 1) d
  numbers, where the rules with weights cost a matrix product.

  Args:
    rule_for: `m -> Aggregator` for m vectors, row 0 the node's own. The rule
      must not keep a state.
    name: of the rule, for errors.

  Returns:
    An `AggregateRule`.

  Raises:
    ValueError: if `rule_for` is not callable; in rounds if it returns what is
      not an `Aggregator`, or one with a state.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> median = gossip.aggregate(lambda m: byzjax.coordinate_median())
    >>> gossip.mix(median, topology.chain(4), jnp.array([0., 1., 2., 99.]))
    Array([ 0.5,  1. ,  2. , 50.5], dtype=float32)
  """
  checks.check_text('aggregate', 'name', name)
  if not callable(rule_for) or isinstance(rule_for, base.Aggregator):
    raise ValueError(
      f'{name} needs rule_for to be a function from the number of vectors to'
      f' an Aggregator, got {rule_for!r}'
    )
  return AggregateRule(rule_for, name)


def trimmed(*, num_byzantine: int) -> AggregateRule:
  """Every node takes the trimmed mean of its neighbourhood.

  Of every coordinate of the `deg_i + 1` vectors the f smallest and the f
  largest are left out. In a neighbourhood of fewer than `2f + 1` vectors f
  shrinks to what they allow, as in the official code of ClippedGossip: with two
  vectors it is their mean, and no defence.

  Args:
    num_byzantine: f >= 0, a Python int.

  Returns:
    An `AggregateRule`; see `aggregate`.

  Raises:
    ValueError: if f is not a non-negative int.

  References:
    Yin, Chen, Ramchandran, Bartlett, 2018, arXiv:1803.01498; on graphs He,
    Karimireddy, Jaggi, 2022, arXiv:2202.01545.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import gossip, topology
    >>> gossip.mix(
    ...   gossip.trimmed(num_byzantine=1), topology.chain(4),
    ...   jnp.array([0., 1., 2., 99.]))
    Array([ 0.5,  1. ,  2. , 50.5], dtype=float32)
  """
  checks.check_count('trimmed', 'num_byzantine', num_byzantine)
  return aggregate(
    lambda m: trimmed_mean(num_byzantine=min(num_byzantine, (m - 1) // 2)),
    name='trimmed',
  )
