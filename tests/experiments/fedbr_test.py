"""The MNIST variant of the study of FedBR, on digits."""

import dataclasses

import jax
import numpy as np
import pytest

from byzjax import models
from experiments.harness import study
from experiments.studies.fedbr import clients
from experiments.studies.fedbr import study as fedbr


@pytest.fixture
def config():
  paper = study.variant(fedbr, 'mnist')
  return dataclasses.replace(paper, dataset='digits', num_seeds=1)


def test_the_network_has_the_features_that_are_asked_for():
  graphdef, params = models.split(clients.network('mlp', 7, (8, 8, 1), 10, 0))
  features, _ = models.features_and_classifier(graphdef)
  found = jax.eval_shape(features, params, np.zeros((5, 8, 8, 1), np.float32))
  assert found.shape == (5, 7)
  assert clients.sizes('digits', None, 'mlp', 7) == (64 * 7 + 7 + 70 + 10, 7)
  of_model = models.split(clients.network('mlp', 0, (8, 8, 1), 10, 3))[1]
  by_name = models.split(models.make('mlp', (8, 8, 1), 10, seed=3))[1]
  same = jax.tree.map(np.array_equal, of_model, by_name)
  assert all(jax.tree.leaves(same))


def test_all_cells_trace(config):
  cells = fedbr.define(config)
  dataset = study.dataset_of(cells, config)
  assert [cell.name for cell in cells] == [
    'methods, 0.1, fedbr, none, mean',
    'attacks, 0.1, fedavg, sign flip, nnm, median',
    'attacks, 0.1, fedbr, sign flip, nnm, median',
  ]
  for cell in cells:
    metrics = study.program_of(cell, config, dataset).trace()
    assert metrics['relative_error'].shape == ()


@pytest.mark.parametrize('flag', ['parts', 'methods', 'attacks', 'rules'])
def test_unknown_names_are_refused(flag, config):
  with pytest.raises(ValueError, match=f'--{flag}: nothing is none of'):
    fedbr.define(dataclasses.replace(config, **{flag: ('nothing',)}))


def rows_of(config, accuracy, error):
  """Every second round of every run, made up of its labels and weights."""
  return [
    {**about, 'round': round_number, **measured}
    for cell in fedbr.define(config)
    for value in cell.values
    for about in [{**cell.labels, **value, 'seed': 0}]
    for round_number in range(2, config.rounds + 1, 2)
    for measured in [
      {
        'accuracy': accuracy(about, round_number),
        'validation_accuracy': accuracy(about, round_number),
        'relative_error': error(about),
      }
    ]
  ]


def test_claims_are_about_each_component_at_its_own_rate(config):
  def accuracy(about, round_number):
    # The end is reached early with component 1; a rate of 0.1 is the best.
    gain = 0.04 * (about['pseudo_weight'] > 0) + 0.01 * (
      about['contrast_weight'] > 0
    )
    share = 1 if about['pseudo_weight'] else min(1, round_number / 20)
    return (0.5 + gain) * share - (about['learning_rate'] != 0.1) / 10

  rows = rows_of(
    config, accuracy, lambda about: 0.2 if about['method'] == 'fedavg' else 0.1
  )
  kept = fedbr.keep(rows, config)
  assert len(kept) < len(rows)
  assert {row['learning_rate'] for row in kept} == {0.1}
  found = fedbr.summarise(kept, config)
  values = {check.prediction: check.value for check in found.checks}
  expected = {
    'points over FedAvg after 24 rounds': 5.0,
    'rounds to 0.95, FedAvg over FedBR': 20 / 2,
    'points of component 1 over FedAvg': 4.0,
    'points of component 2 over FedAvg': 1.0,
    'sign flip: error, FedAvg over FedBR': 2.0,
  }
  assert list(values) == list(expected)
  np.testing.assert_allclose(list(values.values()), list(expected.values()))
  assert list(found.figures) == ['accuracy.png']
