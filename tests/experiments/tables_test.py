"""What tables are made of, by hand."""

import numpy as np
import pytest

from experiments.reporting import tables

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


def test_keep_averages_the_last_evaluations_of_every_run():
  kept = tables.keep(ROWS, tail=2)
  # A row for each of 2 rules, 2 rates and 2 seeds; columns stay in order.
  assert len(kept) == 8
  assert list(kept[0]) == list(ROWS[0])
  assert {row['round'] for row in kept} == {3}
  of = tables.select(kept, rule='a', rate=0.5)
  np.testing.assert_allclose(tables.final(of), [0.925, 1.025])
  np.testing.assert_allclose(tables.percent(of), [92.5, 102.5])
  # More than there are is all of them.
  of = tables.select(tables.keep(ROWS, tail=9), rule='a', rate=0.5)
  np.testing.assert_allclose(tables.final(of), [0.92, 1.02])


def test_keep_leaves_out_columns_and_keeps_rows_of_curves():
  kept = tables.keep(
    ROWS, metrics=('accuracy',), curves=lambda row: row['rule'] == 'a'
  )
  assert list(kept[0]) == ['rule', 'rate', 'seed', 'round', 'accuracy']
  rounds = [r['round'] for r in tables.select(kept, rule='a', rate=0.1, seed=0)]
  assert rounds == [1, 2, 3]
  # Those before the last are as they were, the last is the mean.
  first, _, last = tables.select(kept, rule='a', rate=0.1, seed=0)
  assert first['accuracy'] == pytest.approx(0.21)
  assert last['accuracy'] == pytest.approx(0.22)
  assert len(tables.select(kept, rule='b')) == 4


def test_runs_are_told_apart_by_what_is_in_front_of_the_round():
  assert tables.identity(ROWS[0]) == ('a', 0.1, 0)
  assert [len(rows) for rows in tables.runs(ROWS).values()] == [3] * 8


def test_rows_are_committed_with_six_digits():
  (row,) = tables.rounded([{'name': 'a', 'seed': 1, 'loss': 1 / 3}])
  assert row == {'name': 'a', 'seed': 1, 'loss': 0.333333}


def test_splitting_keeps_the_order():
  assert tables.values_of(ROWS, 'rate') == [0.1, 0.5]
  assert [len(r) for r in tables.split(ROWS, 'rule').values()] == [12, 12]
  names = [name for name, _ in tables.split_by(ROWS, 'rule', 'rate')]
  assert names == [('a', 0.1), ('a', 0.5), ('b', 0.1), ('b', 0.5)]
  assert all(
    len(rows) == 6 for _, rows in tables.split_by(ROWS, 'rule', 'rate')
  )


def test_final_is_the_last_row_of_every_seed():
  np.testing.assert_allclose(
    tables.final(tables.select(ROWS, rule='a', rate=0.5)), [0.93, 1.03]
  )
  assert np.isnan(tables.final([])).all()


def test_what_was_not_run_is_not_a_number():
  cells = tables.Cells({'a': np.array([1.0])})
  assert cells['a'].mean() == 1
  assert np.isnan(cells['b'].mean())
  assert 'b' not in cells


def test_tuned_looks_at_the_validation_split_only():
  # On which the rate is best that is worse on the test set.
  rows = tables.tuned(tables.select(ROWS, rule='b'), 'rate')
  assert {row['rate'] for row in rows} == {0.1}
  assert {row['rule'] for row in rows} == {'b'}
  assert len(rows) == 6


def test_tuned_takes_the_least_loss_and_never_what_is_not_a_number():
  rows = [
    {'rate': rate, 'seed': 0, 'round': 1, 'loss': loss}
    for rate, loss in ((1, np.nan), (2, 0.3), (3, 0.2), (4, 0.2))
  ]
  assert tables.tuned(rows, 'rate', by='loss', least=True)[0]['rate'] == 3
  assert tables.tuned(rows, 'rate', by='loss')[0]['rate'] == 2
  assert tables.tuned([], 'rate') == []


def test_pivot_has_a_dash_where_nothing_ran():
  cells = {
    ('krum', 'alie'): np.array([90.0, 92.0]),
    ('krum', 'none'): np.array([95.04]),
    ('mean', 'none'): np.array([1.0, 2.0, 3.0]),
  }
  lines = tables.pivot(cells).splitlines()
  assert lines[0].split() == ['alie', 'none']
  # One seed has no deviation.
  assert lines[1].split() == ['krum', '91.0', '±', '1.0', '95.0']
  assert lines[2].split() == ['mean', '-', '2.0', '±', '0.8']
  assert tables.pivot(cells, 2).splitlines()[1].split()[1] == '91.00'
  # Columns stand under each other, also under a long name.
  wide = tables.pivot({('a', 'x' * 20): np.ones(1), ('b', 'y'): np.ones(1)})
  heads, first, second = wide.splitlines()
  assert heads.index('x') + 20 == first.index('1.0') + 3
  assert heads.index('y') + 1 == second.index('1.0') + 3


def test_plain_rows_stand_under_their_names():
  text = tables.plain(
    [{'rule': 'krum', 'loss': 1 / 3}, {'rule': 'a', 'loss': 2}]
  )
  assert text.splitlines() == [
    'rule      loss',
    'krum  0.333333',
    '   a         2',
  ]
