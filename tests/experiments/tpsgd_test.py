"""The variant of tpSGD on MNIST: places of targets, rates of their own."""

import dataclasses

import jax
import numpy as np
import pytest

import byzjax
from byzjax import data, models
from experiments.harness import programs, study
from experiments.studies import pooling
from experiments.studies.tpsgd import parts, targets
from experiments.studies.tpsgd import study as tpsgd

CONFIG = dataclasses.replace(
  study.variant(tpsgd, 'mnist'), dataset='digits', pooling=1, num_seeds=1
)


def stages_of(name):
  model = parts.network(4, name, (8, 8, 1), 3, 0)
  return models.stages(models.split(model)[0])


def test_places_are_those_of_convolutions_and_of_recurrent_layers():
  for name, places in targets.PLACES.items():
    for place in places:
      placed = parts.placed(stages_of(name), place)
      changed = [
        {k: getattr(new, k) for k in parts.PLACES[place]}
        for old, new in zip(stages_of(name), placed)
        if isinstance(old, byzjax.RecurrentStage) or old.after is not None
      ]
      assert len(changed) == (0 if name == 'mlp 2' else 2)
      assert all(fields == parts.PLACES[place] for fields in changed)


def test_convolutions_have_a_rate_of_their_own():
  task, params, _ = targets.example(CONFIG, 'cnn')
  tx = parts.optimizer(task, 1.0, 0.1, 0.01)
  ones = jax.tree.map(np.ones_like, params)
  moved, _ = tx.update(ones, tx.init(params), params)
  for name, rate in [
    ('conv1', 0.001),
    ('conv2', 0.001),
    ('dense1', 0.1),
    ('dense2', 1.0),
  ]:
    for leaf in jax.tree.leaves(moved[name]):
      np.testing.assert_allclose(leaf, -rate, rtol=1e-6)


def test_images_are_means_of_their_windows():
  images = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4, 1)
  found = pooling.pooled(images, 2)
  assert found.shape[1:] == (2, 2, 1)
  assert found.dtype == np.uint8
  # 0, 1, 4, 5 have the mean 2.5, which is rounded to the even number.
  assert found[0, :, :, 0].tolist() == [[2, 4], [10, 12]]


@pytest.mark.parametrize('name', targets.PLACES)
def test_a_cell_of_the_variant_traces(name):
  run = (name, 'l2', targets.BEST[name])
  cell = targets.cell(CONFIG, *run)
  options = programs.Options('mlp', [0])
  metrics = programs.of_images(cell, data.load('digits'), options).trace()
  assert all(x.shape == () for x in metrics.values())


def test_through_time_costs_memory_and_a_step_does_not():
  cells = {
    place: targets.cost(CONFIG, 'rnn', 'l2', place)
    for place in ('last step', 'through time')
  }
  rows = {place: cell.make_rows([0])[0] for place, cell in cells.items()}
  assert rows['through time']['megabytes'] > 2 * rows['last step']['megabytes']
  assert min(row['seconds'] for row in rows.values()) > 0


def rows_of(accuracy):
  """As if the second rates were the best of every cell."""
  rows = []
  for name in targets.PLACES:
    for run in targets.runs_of(name):
      labels = dict(zip(targets.KEYS, run))
      for i, values in enumerate(targets.cell(CONFIG, *run).values):
        score = accuracy(*run) - 0.1 * (i != 1)
        rows += [
          {
            **labels,
            **values,
            'seed': seed,
            'round': 1,
            'accuracy': score,
            'validation_accuracy': score,
          }
          for seed in range(2)
        ]
  return rows + targets.cost(CONFIG, 'mlp 2', 'l2', '').make_rows([0])


def test_every_cell_is_judged_at_its_own_rates():
  def accuracy(name, method, place):
    del name
    if method == 'bp':
      return 0.97
    far = method == 'frozen' or place in ('pixels', 'every step')
    return 0.85 if far else 0.94 if place == 'last step' else 0.96

  kept = targets.keep(rows_of(accuracy), CONFIG)
  cells = sum(map(len, map(targets.runs_of, targets.PLACES)))
  assert len(kept) == 2 * cells + 1
  said = targets.summarise(kept, CONFIG, {'method': 'tpSGD', 'paper': ''})
  assert [len(claim.checks) for claim in said.claims] == [6, 3, 4]
  assert all(check.holds for check in said.checks), said.checks


def test_what_is_far_behind_is_not_reproduced():
  def accuracy(name, method, place):
    del name, place
    return 0.97 if method == 'bp' else 0.9

  said = targets.summarise(
    rows_of(accuracy), CONFIG, {'method': 'tpSGD', 'paper': ''}
  )
  verdicts = [claim.verdict for claim in said.claims]
  assert verdicts == ['not reproduced', 'reproduced', 'not reproduced']


def test_parts_are_known():
  config = dataclasses.replace(CONFIG, parts=('nothing',))
  with pytest.raises(ValueError, match='no one of'):
    tpsgd.define(config)
