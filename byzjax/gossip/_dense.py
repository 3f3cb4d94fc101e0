"""A step of gossip where one device sees all nodes: an n x n matrix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, grams, nonfinite, reductions
from byzjax.gossip._sending import Sent
from byzjax.gossip._types import AggregateRule, GossipRule, Rule
from byzjax.topology import Topology


def displacement(
  rule: Rule, topology: Topology, sent: Sent, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Where the nodes go: `gossip(x) - x`, [n, d]; and whose vector is usable.

  Byzantine nodes take the plain mean with their honest neighbours: they keep up
  with the others, and know better than to listen to each other.
  """
  mixing = jnp.asarray(topology.mixing, sent.x.dtype)
  adjacency = jnp.asarray(topology.adjacency)
  norms = reductions.squared_norms(jax.lax.stop_gradient(sent.x))
  usable = nonfinite.usable_norms(norms)
  is_honest = usable
  if sent.is_byzantine is not None:
    is_honest = usable & ~sent.is_byzantine
  # Of an honest row, for honest rows must keep their digits: they may be much
  # nearer to each other than to zero, and attackers may be the majority.
  index = grams.lower_median_index(norms, is_honest)
  center = grams.center_row(sent.x, index, is_honest)
  y = jnp.where(usable[:, None], sent.x - center[None], 0)
  edges = None
  if sent.edges is not None:
    assert sent.is_byzantine is not None
    edges = sent.edges.coefficients(
      jnp.where(usable[None], mixing, 0), sent.is_byzantine
    )
  own = sent.own - center[None]
  among_honest = jnp.where(adjacency & is_honest[None], mixing, 0)
  if isinstance(rule, GossipRule):
    inner = reductions.centered_gram(sent.x, center, usable)
    weights = _weights(rule, inner, usable, edges, mixing, adjacency, sent)
    if sent.is_byzantine is not None:
      weights = jnp.where(sent.is_byzantine[:, None], among_honest, weights)
    return _moved(weights, y, own), usable
  moved = _aggregated(rule, topology, sent, usable, center, y, edges, key)
  if sent.is_byzantine is not None:
    plain = _moved(among_honest, y, own)
    moved = jnp.where(sent.is_byzantine[:, None], plain, moved)
  return moved, usable


def _weights(rule, inner, usable, edges, mixing, adjacency, sent):
  """The n x n matrix of a step, of what nodes weigh that are not themselves.

  `edges` [n, n] are the coefficients of what Byzantine neighbours send to each
  node, or None if they tell all the same.
  """
  is_byzantine = sent.is_byzantine
  gram = base.Gram(inner, jnp.diagonal(inner), usable)
  squared = grams.squared_distances(gram)
  if edges is not None:
    # z_i - x_i is a combination of the rows, too.
    step = edges - jnp.eye(len(usable), dtype=edges.dtype)
    apart = (reductions.matmul(step, inner) * step).sum(axis=1)
    apart = jnp.maximum(apart, 0)[:, None]
    squared = jnp.where(is_byzantine[None], apart, squared)
  heard = adjacency & usable[:, None] & usable[None]
  squared = jnp.where(heard, squared, jnp.inf)
  weights = jax.vmap(rule.weights)(squared, mixing, adjacency)
  weights = jnp.where(heard, weights, 0)
  if edges is None:
    return weights
  byzantine = jnp.where(is_byzantine[None], weights, 0).sum(axis=1)
  weights = jnp.where(is_byzantine[None], 0, weights)
  return weights + byzantine[:, None] * edges


def _moved(weights, y, own):
  """`sum_j w_ij (y_j - own_i)`: [n, n], [n, d], [n, d] -> [n, d]."""
  return reductions.matmul(weights, y) - weights.sum(axis=1)[:, None] * own


def _aggregated(rule, topology, sent, usable, center, y, edges, key):
  """What the rule makes of every neighbourhood, minus the node's vector."""
  n = topology.num_nodes
  to_node = y
  if edges is not None:
    to_node = center[None] + reductions.matmul(edges, y)
  results, order = [], []
  for degree in np.unique(topology.degrees):
    nodes = np.flatnonzero(topology.degrees == degree)
    others = np.nonzero(topology.adjacency[nodes])[1].reshape(
      len(nodes), degree
    )
    aggregate = aggregator_of(rule, int(degree) + 1, sent.x[0])

    def of_node(node, others, aggregate=aggregate):
      own = sent.own[node][None]
      rows = sent.x[others]
      if edges is not None:
        byzantine = sent.is_byzantine[others][:, None]
        rows = jnp.where(byzantine, to_node[node][None], rows)
      rows = jnp.where(usable[others][:, None], rows, own)
      return aggregate(jnp.concatenate([own, rows]), node, key)

    # One node after the other: no n x n x d numbers at a time.
    results.append(
      jax.lax.map(lambda pair, f=of_node: f(*pair), (nodes, others))
    )
    order.append(nodes)
  back = np.argsort(np.concatenate(order))
  assert len(back) == n
  return jnp.concatenate(results)[back] - sent.own


def aggregator_of(
  rule: AggregateRule, size: int, like: jax.Array
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
  """`(rows [size, d], node, key) -> [d]` for a neighbourhood of that size."""
  aggregator = rule.rule_for(size)
  if not isinstance(aggregator, base.Aggregator):
    raise ValueError(
      f'{rule.name} needs rule_for({size}) to be an Aggregator, got'
      f' {type(aggregator).__name__}'
    )
  shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
  if jax.tree.leaves(jax.eval_shape(aggregator.init, shape)):
    raise ValueError(
      f'{rule.name} needs a rule without state, and {aggregator.name} keeps one'
      ' (for centred clipping around the own vector there is clipped)'
    )

  def aggregate(rows, node, key):
    own_key = None if key is None else jax.random.fold_in(key, node)
    state = aggregator.init(jnp.zeros_like(rows[0]))
    return aggregator.update(rows, state, key=own_key)[0]

  return aggregate
