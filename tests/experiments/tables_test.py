"""What tables are made of."""

import numpy as np

from experiments import report

ROWS = [
  {'rule': rule, 'rate': rate, 'seed': seed, 'round': t, **metrics}
  for rule in ('a', 'b')
  for rate, good in ((0.1, 0.2), (0.5, 0.9))
  for seed in (0, 1)
  for t in (1, 2, 3)
  for metrics in [
    {'accuracy': good + 0.01 * t + 0.1 * seed, 'validation_accuracy': -good}
  ]
]


def test_final_averages_the_last_evaluations_of_every_seed():
  rows = report.select(ROWS, rule='a', rate=0.5)
  assert len(rows) == 6
  np.testing.assert_allclose(report.final(rows, tail=2), [0.925, 1.025])
  np.testing.assert_allclose(report.final(rows, tail=1), [0.93, 1.03])
  np.testing.assert_allclose(report.final(rows, 'round', tail=9), [2, 2])


def test_tuned_looks_at_the_validation_split_only():
  # On which the rate is best that is worse on the test set.
  rows = report.tuned(report.select(ROWS, rule='b'), 'rate')
  assert {row['rate'] for row in rows} == {0.1}
  assert {row['rule'] for row in rows} == {'b'}


def test_pivot_has_a_dash_where_nothing_ran():
  cells = {
    ('krum', 'alie'): np.array([90.0, 92.0]),
    ('krum', 'none'): np.array([95.04]),
    ('mean', 'none'): np.array([1.0, 2.0, 3.0]),
  }
  lines = report.pivot(cells).splitlines()
  assert lines[0].split() == ['alie', 'none']
  assert lines[1].split() == ['krum', '91.0', '±', '1.0', '95.0', '±', '0.0']
  assert lines[2].split() == ['mean', '-', '2.0', '±', '0.8']


def test_a_heatmap_is_a_picture(tmp_path):
  cells = {
    ('krum', 'alie'): np.array([90.0]),
    ('mean', 'none'): np.array([1.0]),
  }
  report.heatmap(cells, 'title', tmp_path / 'table.png')
  assert (tmp_path / 'table.png').read_bytes().startswith(b'\x89PNG')
