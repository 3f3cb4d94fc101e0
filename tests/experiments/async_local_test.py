"""The variant of asynchronous Local-SGD that starts from a trained model."""

import dataclasses

import numpy as np
import pytest

from experiments.harness import study
from experiments.studies.async_local import study as async_local
from experiments.studies.async_local import tasks

PRETRAINED = study.variant(async_local, 'pretrained')
# The text that is built in, and as little of it as will do.
SMALL = dataclasses.replace(
  PRETRAINED, text='sonnets', pretraining_steps=3, pretrained_phases=2
)


def test_the_first_cell_trains_what_the_others_begin_with():
  first, *others = async_local.define(SMALL)
  rows = first.make_rows(range(2))
  assert [row['seed'] for row in rows] == [0, 1]
  task = tasks.task_of(SMALL, 'pretrained')
  scratch = tasks.task_of(SMALL, 'language')
  for row in rows:
    begin = task.measure(task.params(row['seed']))
    assert row['loss'] == pytest.approx(float(begin['loss']))
    # Even three steps teach which letters are frequent.
    fresh = task.measure(scratch.params(row['seed']))
    assert row['loss'] < float(fresh['loss'])
  assert {cell.labels['task'] for cell in others} == {'pretrained'}


def test_the_inner_rate_is_small_and_falls():
  optimizer = tasks.task_of(SMALL, 'pretrained').local_optimizer
  gradient, steps = np.ones(3, np.float32), tasks.steps(SMALL, 'pretrained')

  def size(progress):
    state = optimizer.init(gradient)
    update, _ = optimizer.update(
      gradient, state, 0 * gradient, progress=progress
    )
    return float(np.abs(update).max())

  peak = SMALL.pretrained_peak
  np.testing.assert_allclose(size(0), peak, rtol=1e-3)
  np.testing.assert_allclose(size(steps), peak / 10, rtol=1e-3)


def rows_of(loss):
  """What all cells would keep, with the same seconds for every loss."""
  settings = PRETRAINED
  rows = []
  for cell in async_local.define(settings):
    name, is_first = cell.labels['method'], cell.rounds == 1
    rates = (0.0,) if is_first else settings.language_rates
    for rate in rates:
      for seed in range(3):
        rows.append(
          {**cell.labels, 'rate': rate, 'seed': seed, 'round': 1}
          | {
            'loss': loss(name, cell.labels['level']),
            'validation_loss': loss(name, cell.labels['level']),
            'mean_loss': 2.0,
            'seconds': 1.0 if name == 'DN + DyLU' else 4.0,
            'best_seconds': 1.0 if name == 'DN + DyLU' else 4.0,
          }
        )
  return rows


def verdicts(loss):
  said = async_local.summarise(rows_of(loss), PRETRAINED)
  return [claim.verdict for claim in said.claims]


def test_what_the_paper_found_reproduces_its_claims():
  losses = {'pretraining': 1.95, 'Nesterov / K': 1.9}
  assert set(verdicts(lambda name, level: losses.get(name, 1.85))) == {
    'reproduced'
  }


def test_levels_that_differ_and_a_start_that_is_as_good_do_not():
  def loss(name, level):
    return 1.7 if name == 'DN + DyLU' and level == 'no' else 1.95

  assert verdicts(loss) == [
    'reproduced',
    'reproduced',
    'not reproduced',
    'not reproduced',
    'not reproduced',
  ]
