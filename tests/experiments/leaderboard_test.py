"""The leaderboard: what counts, who is better, and what is on it."""

import dataclasses
import math

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.grid import (
  board,
  board_store,
  entries,
  environment,
  predictions,
  settings,
  times,
)
from experiments.grid import cells as grid_cells
from experiments.harness import output
from experiments.harness.cells import Program
from tests.experiments.boards import IID, SUITE, raw, text

# --- What counts.


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_counts_as_guessing(loss):
  (row, other) = board.chosen(
    raw({'none': [0.9, 0.8]}) + raw({'alie': [0.7, 0.6]}, loss=loss), 10
  )
  assert row['accuracy'] == '90.00 80.00'
  assert other['accuracy'] == 'failed failed'
  assert other['validation_accuracy'] == '10.00'
  (standing,) = board.board_of(text([row, other]), 10).standings
  assert (standing.failed, standing.runs) == (2, 4)
  np.testing.assert_allclose(standing.score, [10, 10])


def test_what_is_no_better_than_guessing_counts_as_guessing():
  (row,) = board.chosen(raw({'none': [0.1, 0.03, 0.11]}), 10)
  assert row['accuracy'] == 'failed failed 11.00'


def test_a_loss_of_long_ago_is_forgiven():
  rows = raw({'none': [0.9]})
  rows[0]['loss'] = math.nan
  (row,) = board.chosen(rows, 10)
  assert row['accuracy'] == '90.00'


def test_a_failure_is_no_good_setting():
  # 0.9 would be best, but it fails under one attack.
  rows = [
    *raw({'none': [0.5], 'alie': [0.4]}, rate=0.1),
    *raw({'none': [0.95]}, rate=0.9),
    *raw({'alie': [0.99]}, rate=0.9, loss=math.nan),
  ]
  chosen = board.chosen(rows, 10)
  assert [row['learning_rate'] for row in chosen] == [0.1, 0.1]
  tuned = {row['learning_rate']: row for row in board.tuning(rows, 10)}
  assert tuned[0.1]['validation_accuracy'] == '40.00'
  assert tuned[0.9]['worst_attack'] == 'alie'
  assert tuned[0.9]['validation_accuracy'] == '10.00'


def test_a_backdoor_has_its_success_and_others_have_none():
  rows = raw({'none': [0.9]}) + raw({'backdoor': [0.8]}, success=0.75)
  nobody, backdoor = board.chosen(rows, 10)
  assert nobody['attack_success_rate'] == '-'
  assert backdoor['attack_success_rate'] == '75.0'
  (standing,) = board.board_of(text([nobody, backdoor]), 10).standings
  assert standing.success == {IID: 75.0}


# --- Who is better.


def test_holm_is_that_of_the_book():
  found = board.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(board.holm([0.9, 0.9]), [1, 1])


def test_a_paired_test_sees_what_seeds_share():
  seeds = np.array([50.0, 60.0, 70.0, 80.0, 90.0])
  better = seeds + [1.0, 1.1, 0.9, 1.0, 1.05]
  assert board.paired(better, seeds) < 1e-4
  # Differences 1 .. 5: t = 3 / (1.5811 / sqrt 5) = 4.2426.
  assert board.paired(seeds + [1, 2, 3, 4, 5], seeds) == pytest.approx(
    0.013236, abs=1e-5
  )
  assert board.paired(seeds, seeds) == 1
  assert board.paired(seeds + 1, seeds) == 0
  assert board.paired(seeds[:1] + 1, seeds[:1]) == 1


def test_ties_are_ties():
  noise = np.array([0.0, 0.5, -0.4, 0.3, -0.1])
  scores = {
    'last': 20 + noise[::-1],
    'second': 80 + noise,
    'first': 80.2 + noise[[3, 1, 4, 0, 2]],
    'middle': 50 + noise[[2, 0, 1, 4, 3]],
  }
  ranks = board.ranks(scores)
  assert ranks == {'first': 1, 'second': 1, 'middle': 3, 'last': 4}
  assert list(ranks) == ['first', 'second', 'middle', 'last']


def test_many_comparisons_need_larger_differences():
  noise = np.array([0.0, 0.8, -0.9, 0.6, -0.5])
  pair = {'a': 50 + 1.4 + noise, 'b': np.full(5, 50.0)}
  assert board.ranks(pair) == {'a': 1, 'b': 2}
  crowd = {f'c{i}': np.full(5, 50.0) for i in range(20)}
  assert set(board.ranks({**pair, **crowd}).values()) == {1}


@pytest.mark.parametrize(
  ('title', 'expected'),
  [
    ('mean', ('mean', None)),
    ('krum(num_byzantine=4)', ('krum', 4)),
    ('krum(num_neighbors=3, num_byzantine=12)', ('krum(num_neighbors=3)', 12)),
    ('a(num_byzantine=2, b=1), c(num_byzantine=2)', ('a(b=1), c', 2)),
  ],
)
def test_a_name_without_what_it_assumes(title, expected):
  assert board.plain(title) == expected


# --- Who hands one in, and how long it takes.

OWN = """
import byzjax
def my_rule(*, num_byzantine):
  return byzjax.trimmed_mean(num_byzantine=num_byzantine)
"""


def test_a_file_is_a_defence(tmp_path, monkeypatch):
  monkeypatch.setattr(entries, 'FOLDER', tmp_path)
  monkeypatch.setattr(entries, '__path__', [str(tmp_path)])
  (tmp_path / '__init__.py').touch()
  (tmp_path / 'my_rule.py').write_text(OWN)
  (name,) = entries.names()
  grid = dataclasses.replace(
    SUITE, aggregators=f'mean; {name}', attacks='none', partitions='iid'
  )
  cells = grid_cells.make_cells(grid, 10)
  assert [cell.labels['defence'] for cell in cells] == [
    'mean',
    *(f'{name}(num_byzantine={f})' for f in (2, 4, 6)),
    'mean',
  ]
  with flagsaver.flagsaver():
    settings.define_flags()
    flags.FLAGS(['grid'])
    settings.adopt_suite('leaderboard')
    assert settings.read().entries('aggregators')[-1] == name
  title = f'bucketing(bucket_size=2), {name}(num_byzantine=4)'
  assert board.plain(title) == ('bucketing(bucket_size=2), my_rule', 4)


def test_the_time_of_a_round_is_without_what_is_measured():
  now = [0.0]

  def stretch(states, done, length):
    now[0] += 0.5 + 0.002 * length
    return states, {}

  program = Program([], lambda: np.zeros(1), stretch, [55], dict)
  found = times._of_a_round(program, lambda: now[0])
  assert found == pytest.approx(0.002)


def test_a_defence_is_timed_once_near_the_truth():
  grid = dataclasses.replace(SUITE, aggregators='mean; krum')
  cells = times._one_each(grid_cells.make_cells(grid, 10))
  titles = [cell.describe(cell.values[0])['defence'] for cell in cells]
  assert titles == ['mean', 'krum(num_byzantine=4)']
  assert {cell.labels['attack'] for cell in cells} == {'none'}


def test_a_stamp_is_text():
  stamp = environment.stamp()
  assert stamp['commit'] == 'unknown' or stamp['commit'].startswith('g')
  assert output.numbers([stamp]) == [stamp]


# --- The suite.


def test_the_suite_is_as_large_as_was_promised():
  names = {board.plain(title)[0] for title, _ in board_store.wanted()}
  attacks = {attack for _, attack in board_store.wanted()}
  assert len(names) >= 20 and len(attacks) >= 12
  assert {'none', 'label_poison', 'label_flip', 'backdoor'} <= attacks
  assert sum(predictions.ADAPTIVE in a for a in attacks) >= 2
  assumed = {board.plain(title)[1] for title, _ in board_store.wanted()}
  assert assumed == {None, 2, 4, 6}
  backdoor = [
    cell
    for cell in grid_cells.make_cells(SUITE, 10)
    if cell.labels['attack'] == 'backdoor'
  ]
  assert all(cell.measure is not None for cell in backdoor)


def test_only_the_settings_of_the_board_stand_on_it():
  board_store.check(
    dataclasses.replace(SUITE, aggregators='mean', model='cnn', data_dir='x')
  )
  with pytest.raises(ValueError, match='only --aggregators'):
    board_store.check(dataclasses.replace(SUITE, rounds=7))
  with pytest.raises(ValueError, match='must be none'):
    board_store.check(dataclasses.replace(SUITE, attacks='alie(z=1.5)'))
