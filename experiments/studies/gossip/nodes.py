"""Nodes of a graph that train on images, some of them Byzantine."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import gossip, models, topology

from ...harness.cells import Cell, Rows, even_stops
from ...reporting import tables

GRAPHS = {
  'complete': topology.complete(16),
  'exponential': topology.exponential(16),
  'erdos-renyi': topology.erdos_renyi(16, probability=0.4, seed=0),
  'torus': topology.torus(4, 4),
  'star': topology.star(16),
  'ring': topology.ring(16),
  'chain': topology.chain(16),
}
RULES: dict[str, Callable] = {
  'plain': lambda f: gossip.plain(),
  'clipped': lambda f: gossip.clipped(num_byzantine=f),
  'nearest neighbors': lambda f: gossip.nearest_neighbor_averaging(
    num_byzantine=f
  ),
  'trimmed': lambda f: gossip.trimmed(num_byzantine=f),
}
ATTACKS: dict = {
  'none': None,
  'dissensus': gossip.dissensus(epsilon=1.0),
  'sign flip': byzjax.sign_flip(scale=1.0),
  'alie': byzjax.alie(z=1.5),
}


def bridge(clique_size: int, share: float) -> topology.Topology:
  """A dumbbell with an attacker at each end of its bridge; 0 for none."""
  graph = topology.dumbbell(clique_size, num_byzantine=int(share > 0))
  if not share:
    return graph
  mixing, honest = graph.mixing.copy(), 2 * clique_size
  for attacker, end in ((honest, 0), (honest + 1, honest - 1)):
    weight = share * mixing[0, honest - 1]
    mixing[attacker, end] = mixing[end, attacker] = weight
  np.fill_diagonal(mixing, 0)
  np.fill_diagonal(mixing, 1 - mixing.sum(axis=1))
  return graph._replace(mixing=mixing)


def cell(
  settings: Any, part, graph_name, graph, rule, attack='none', byzantine=()
) -> Cell:
  """Nodes of a graph, some Byzantine; the data is that of the others."""
  nodes = np.arange(graph.num_nodes)
  honest = np.setdiff1d(nodes, byzantine)
  # Attackers need a batch, though nothing comes of it.
  source = np.zeros(graph.num_nodes, int)
  source[honest] = np.arange(len(honest))
  momentum = 0.0 if part == 'gap' else 0.9

  def make_round(task, key, learning_rate):
    del key
    return byzjax.gossip_round(
      task.loss_fn,
      topology=graph,
      rule=RULES[rule](2 if part == 'dense' else 1),
      optimizer=optax.chain(
        byzjax.worker_momentum(momentum), optax.sgd(learning_rate)
      ),
      attack=ATTACKS[attack],
      byzantine=jnp.isin(jnp.array(nodes), jnp.array(byzantine, int)),
    )

  def of_nodes(task, params, images, labels):
    """Every honest node with its own model."""

    def accuracy(params):
      return models.evaluate(
        task.graphdef, params, images, labels, num_classes=task.num_classes,
        scale=task.scale,
      ).accuracy  # fmt: skip

    own = jax.tree.map(lambda x: x[honest], params)
    accuracies = jax.vmap(accuracy)(own)
    return {'accuracy': accuracies.mean(), 'worst_node': accuracies.min()}

  rates = settings.learning_rates
  if part == 'gap':
    rates = (*settings.smaller_rates, *rates)
  mixed = part in ('dense', 'liars')
  return Cell(
    labels={'part': part, 'graph': graph_name, 'rule': rule, 'attack': attack},
    make_round=make_round,
    grid={'learning_rate': rates},
    num_workers=len(honest),
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    num_evals=settings.num_evals,
    partition=settings.dense_partition if mixed else settings.partition,
    make_batch=lambda batch: jax.tree.map(lambda x: x[source], batch),
    model_of=lambda params: jax.tree.map(
      lambda x: x[honest].mean(axis=0), params
    ),
    measure=of_nodes,
  )


def early(settings: Any) -> int:
  """The evaluation nearest to a quarter of the rounds."""
  length = even_stops(settings.rounds, settings.num_evals)[0]
  return max(settings.rounds // 4 // length, 1) * length


def accuracies(rows: Rows, part: str, by: str) -> tables.Cells:
  """In percent, by rule and another column."""
  table = tables.Cells()
  for (rule, of), runs in tables.split_by(
    tables.select(rows, part=part), 'rule', by
  ):
    table[rule, of] = tables.percent(runs)
    table[rule, f'{of}, worst'] = tables.percent(runs, 'worst_node')
  return table


def of_training(rows: Rows, first: int) -> tables.Cells:
  """What nodes of a graph have learned, and how far they are apart."""
  table = tables.Cells()
  graphs = tables.split(tables.select(rows, part='gap'), 'graph')
  for name, best in graphs.items():
    at_first = tables.select(best, round=first)
    table[name, 'nodes'] = tables.percent(best)
    table[name, 'worst node'] = tables.percent(best, 'worst_node')
    table[name, f'nodes, {first} rounds'] = tables.percent(at_first)
    table[name, 'learning rate'] = tables.final(best, 'learning_rate')
    table[name, 'distance'] = tables.final(best, 'aggregation_error')
  return table


def rank_correlation(
  gaps: Mapping[str, float], training: tables.Cells, name: str
) -> float:
  """Of Spearman between the gap and what is measured, in percent."""
  values = [training[graph, name].mean() for graph in gaps]
  x, y = (np.argsort(np.argsort(v)) for v in (list(gaps.values()), values))
  return float(100 * np.corrcoef(x, y)[0, 1])
