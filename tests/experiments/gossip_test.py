"""The Fashion-MNIST variant of the study of gossip, on digits."""

import dataclasses

import numpy as np
import pytest

from experiments.harness import study
from experiments.reporting import tables
from experiments.studies.gossip import liars, nodes
from experiments.studies.gossip import study as gossip


@pytest.fixture
def config():
  paper = study.variant(gossip, 'fashion_mnist')
  return dataclasses.replace(paper, dataset='digits', num_seeds=1)


def test_every_honest_node_has_one_liar_among_four_neighbours():
  around = liars.TORUS.adjacency & ~np.eye(liars.TORUS.num_nodes, dtype=bool)
  assert (around.sum(axis=1) == 4).all()
  is_liar = np.isin(np.arange(liars.TORUS.num_nodes), liars.LIARS)
  assert is_liar.sum() == 5
  assert (around[:, is_liar].sum(axis=1) == ~is_liar).all()


def test_honest_nodes_reach_each_other_without_liars():
  honest = np.setdiff1d(np.arange(liars.TORUS.num_nodes), liars.LIARS)
  edges = liars.TORUS.adjacency[np.ix_(honest, honest)].astype(int)
  assert (np.linalg.matrix_power(edges, len(honest)) > 0).all()


def test_all_cells_trace(config):
  cells = gossip.define(config)
  dataset = study.dataset_of(cells, config)
  assert len(cells) == len(config.graphs) + 2 * len(nodes.RULES)
  for cell in cells:
    metrics = study.program_of(cell, config, dataset).trace()
    assert metrics['worst_node'].shape == ()


@pytest.mark.parametrize('flag', ['parts', 'graphs'])
def test_unknown_names_are_refused(flag, config):
  with pytest.raises(ValueError, match=f'--{flag}: cube is none of'):
    gossip.define(dataclasses.replace(config, **{flag: ('cube',)}))


def rows_of(config, accuracy):
  """One row of every cell, in which only the accuracy says anything."""
  return [
    {
      **cell.labels,
      **{'learning_rate': 0.3, 'seed': 0, 'round': round_number},
      **{'accuracy': accuracy(cell.labels), 'worst_node': 0.1},
      **{'aggregation_error': -accuracy(cell.labels)},
    }
    for cell in gossip.define(config)
    for round_number in (30, 120)
  ]


def test_claims_are_about_what_an_attack_changes(config):
  accuracy_of = {'complete': 0.9, 'exponential': 0.8, 'torus': 0.7, 'ring': 0.6}
  attacked = {'plain': 0.1, 'clipped': 0.5, 'trimmed': 0.2}

  def accuracy(labels):
    if labels['part'] == 'gap':
      return accuracy_of[labels['graph']]
    if labels['attack'] == 'none':
      return 0.8 - 0.2 * (labels['rule'] == 'trimmed')
    return attacked.get(labels['rule'], 0.7)

  found = gossip.summarise(rows_of(config, accuracy), config)
  values = [check.value for check in found.checks]
  np.testing.assert_allclose(values, [100, -100, 30, 70, 40, 60, 30], atol=1e-6)
  assert all(check.holds for check in found.checks)
  assert list(found.figures) == ['digits.png']


def test_the_order_of_graphs_is_that_of_their_ranks():
  gaps = {'a': 1.0, 'b': 0.5, 'c': 0.4}
  cells = tables.Cells(
    ((name, 'nodes'), np.array([value]))
    for name, value in (('a', 0.9), ('b', 0.1), ('c', 0.2))
  )
  found = nodes.rank_correlation(gaps, cells, 'nodes')
  np.testing.assert_allclose(found, 50, atol=1e-6)
