"""Programs of cells: how runs are mapped, and what is traced."""

import dataclasses

import numpy as np
import optax
import pytest

import byzjax
from byzjax import data
from experiments.harness import cells, programs

DIGITS = data.load('digits')
OPTIONS = programs.Options(model='mlp', seeds=(0, 1))


def make_round(task, key, rate):
  del key
  return byzjax.robust_round(
    task.loss_fn,
    num_workers=3,
    aggregator=byzjax.coordinate_median(),
    optimizer=optax.sgd(rate),
  )


CELL = cells.Cell(
  labels={'rule': 'median'},
  make_round=make_round,
  grid={'rate': [0.1, 0.5]},
  num_workers=3,
  rounds=4,
  batch_size=4,
  num_evals=2,
)


def measured(cell):
  program = programs.of_images(cell, DIGITS, OPTIONS)
  states, _ = program.stretch(program.start(), 0, 2)
  return program.stretch(states, 2, 2)[1]


@pytest.mark.parametrize('make_images', [None, lambda images, *_: images / 2])
def test_runs_one_after_the_other_are_the_runs_at_once(make_images):
  cell = dataclasses.replace(CELL, make_images=make_images)
  at_once = measured(cell)
  in_turn = measured(dataclasses.replace(cell, run_map='map'))
  assert at_once.keys() == in_turn.keys()
  for name, values in at_once.items():
    assert values.shape == (2, 2), name
    np.testing.assert_allclose(in_turn[name], values, 1e-5, 1e-6, err_msg=name)
  assert len(np.unique(at_once['loss'])) == 4


def test_a_round_is_traced_once():
  traced = []

  def make_batch(batch):
    traced.append(batch)
    return batch

  cell = dataclasses.replace(CELL, make_batch=make_batch)
  program = programs.of_images(cell, DIGITS, OPTIONS)
  program.trace()
  states, _ = program.stretch(program.start(), 0, 3)
  program.stretch(states, 3, 1)
  assert len(traced) == 1


def test_another_way_to_map_runs_is_refused():
  program = programs.of_images(
    dataclasses.replace(CELL, run_map='both'), DIGITS, OPTIONS
  )
  with pytest.raises(KeyError, match='both'):
    program.start()
