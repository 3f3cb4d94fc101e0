"""Any aggregation rule, applied at every node."""

from collections.abc import Callable

from byzjax._src import base, checks
from byzjax.aggregators import trimmed_mean
from byzjax.gossip._types import AggregateRule


def aggregate(
  rule_for: Callable[[int], base.Aggregator], *, name: str = 'aggregate'
) -> AggregateRule:
  """Every node applies an aggregation rule to itself and its neighbours.

  `x_i <- Agg(x_i, x_j : j a neighbour of i)`. The weights of the graph are not
  used, and nodes that see different vectors get different aggregates: on a
  sparse graph with heterogeneous data such rules fail even without Byzantine
  nodes. A neighbour's vector that is not finite is replaced by the node's own.

  It costs one call of the rule per node, on n (deg + 1) d numbers in total;
  rules with weights cost one matrix product.

  Args:
    rule_for: `m -> Aggregator` for m vectors, of which row 0 is the node's own.
      The rule must be stateless.
    name: name of the rule, for error messages.

  Returns:
    An `AggregateRule`.

  Raises:
    ValueError: if `rule_for` is not callable; in rounds, if it does not return
      an `Aggregator`, or returns one with state.

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
  """Every node takes the coordinate-wise trimmed mean of its neighbourhood.

  In every coordinate of the `deg_i + 1` vectors the f smallest and the f
  largest values are left out. In a neighbourhood of fewer than `2f + 1` vectors
  f is reduced to the largest possible value, as in the official code of
  ClippedGossip: with two vectors it is their mean, which is not robust.

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
