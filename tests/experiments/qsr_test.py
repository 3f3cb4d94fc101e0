"""The study of QSR: intervals, and the variant that interpolates."""

import numpy as np
import pytest

from byzjax import data
from experiments.harness import study
from experiments.studies.qsr import claims
from experiments.studies.qsr import study as qsr

WIDE = study.variant(qsr, 'fashion_mnist')


def test_an_interval_of_two_numbers_is_known():
  # For one degree of freedom the quantile is tan(0.475 pi).
  found = claims.half_width(np.array([0.0, 2.0]))
  assert found == pytest.approx(np.tan(0.475 * np.pi), rel=1e-6)
  assert np.isnan(claims.half_width(np.array([1.0])))


def test_all_learn_the_same_few_images_in_as_many_steps():
  rng = np.random.default_rng(0)

  def draw(count):
    labels = np.arange(count, dtype=np.int32) % 10
    return rng.integers(0, 256, (count, 28, 28, 1), np.uint8), labels

  some = data.Dataset(
    'some', *draw(4000), *draw(20), num_classes=10, scale=255.0
  )
  cells = qsr.define(WIDE)
  assert [tuple(cell.labels.values()) for cell in cells] == [
    ('parallel', 'none', 'mean'),
    ('constant 4', 'none', 'mean'),
    ('constant 11', 'none', 'mean'),
    ('linear', 'none', 'mean'),
    ('qsr 2.12', 'none', 'mean'),
    ('qsr 2.12', 'sign flip', 'mean'),
    ('qsr 2.12', 'sign flip', 'trimmed mean'),
  ]
  steps = qsr.all_lengths(WIDE)
  assert {sum(of) for of in steps.values()} == {WIDE.total_steps}
  assert len(steps['qsr 2.12']) < len(steps['constant 4'])
  for cell in cells:
    drawn = cell.partition(some.train_labels, 8, 0).indices
    assert drawn.max() == WIDE.num_examples - 1
  assert 'fit_loss' in study.program_of(cells[-1], WIDE, some).trace()


def said(accuracy, loss=0.001, attacked=0.1):
  """Verdicts; `attacked` is what the mean has under attack."""

  def of(lengths, attack, rule, seed):
    is_lost = attack != 'none' and rule == 'mean'
    return attacked if is_lost else accuracy(lengths, seed)

  rows = [
    {
      **cell.labels,
      'learning_rate': 0.05,
      'radius': 0.0,
      'seed': seed,
      'round': 1,
      'accuracy': of(**cell.labels, seed=seed),
      'validation_accuracy': 0.8,
      'fit_loss': loss,
      'aggregation_error': 0.0,
    }
    for cell in qsr.define(WIDE)
    for seed in range(WIDE.num_seeds)
  ]
  return [claim.verdict for claim in qsr.summarise(rows, WIDE).claims]


def test_a_gain_counts_only_beyond_its_interval():
  def clear(name, seed):
    return 0.8 + 0.02 * name.startswith('qsr') + 0.001 * seed

  def noisy(name, seed):
    return 0.8 + (0.002 + 0.01 * (-1) ** seed) * name.startswith('qsr')

  assert said(clear) == ['reproduced'] * 4
  assert said(noisy) == ['not reproduced', *['reproduced'] * 3]
  assert said(clear, loss=0.8)[2] == 'not reproduced'
  assert said(clear, attacked=0.7)[3] == 'not reproduced'
