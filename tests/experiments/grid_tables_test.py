"""What the tables of a grid choose and show, on rows made up for it."""

import math

import numpy as np
import pytest

from experiments.grid import tables


def rows(accuracies, *, defence='krum', partition='iid', f=2, validation=None):
  """`{(momentum, attack): [accuracy of each seed]}`, over three evaluations."""
  return [
    {
      'defence': defence,
      'attack': attack,
      'num_byzantine': f,
      'partition': partition,
      'pre_aggregators': 'none',
      'aggregator': defence,
      'momentum': momentum,
      'learning_rate': 0.1,
      'seed': seed,
      'round': t,
      'accuracy': accuracy,
      'validation_accuracy': (validation or accuracies)[momentum, attack][seed],
    }
    for (momentum, attack), of_seeds in accuracies.items()
    for t in (1, 2, 3)
    for seed, accuracy in enumerate(of_seeds)
  ]


def test_the_validation_split_under_the_worst_attack_decides():
  test = {
    (0.0, 'none'): [0.9, 0.9],
    (0.0, 'alie'): [0.8, 0.9],
    (0.9, 'none'): [0.5, 0.6],
    (0.9, 'alie'): [0.3, 0.2],
  }
  # On which momentum is safer, though not under every attack.
  validation = {
    (0.0, 'none'): [1.0, 1.0],
    (0.0, 'alie'): [0.1, 0.2],
    (0.9, 'none'): [0.4, 0.4],
    (0.9, 'alie'): [0.2, 0.3],
  }
  (choice,) = tables.choices(rows(test, validation=validation))
  assert choice.setting == 'krum; momentum 0.9, learning rate 0.1'
  np.testing.assert_allclose(choice.accuracy['none'], [50, 60])
  np.testing.assert_allclose(choice.accuracy['alie'], [30, 20])
  assert choice.worst == 'alie'
  np.testing.assert_allclose(choice.floor, 25)


def test_only_the_last_evaluations_count():
  found = rows({(0.0, 'none'): [0.5]})
  found = [{**found[0], 'round': 0, 'accuracy': 0.0}, *found]
  (choice,) = tables.choices(found)
  np.testing.assert_allclose(choice.floor, 50)
  (choice,) = tables.choices(found, tail=4)
  np.testing.assert_allclose(choice.floor, 37.5)


def test_of_equals_the_first_is_chosen_and_is_worst():
  same = {(m, a): [0.5] for m in (0.9, 0.0) for a in ('mimic', 'alie')}
  (choice,) = tables.choices(rows(same))
  assert 'momentum 0.9' in choice.setting
  assert choice.worst == 'mimic'


def test_accuracies_that_are_no_numbers_are_lost_runs():
  found = {
    (0.0, 'none'): [1.0, 1.0],
    (0.0, 'alie'): [0.4, math.nan],
    (0.9, 'none'): [0.5, 0.5],
    (0.9, 'alie'): [0.3, 0.3],
  }
  (choice,) = tables.choices(rows(found))
  assert 'momentum 0.9' in choice.setting  # 30 on the average, not 20.
  (choice,) = tables.choices(rows({(0.0, 'none'): [1.0, math.nan]}))
  np.testing.assert_allclose(choice.floor, 50)


def test_settings_that_lack_an_attack_are_not_preferred():
  found = {
    (0.0, 'none'): [0.9],
    (0.9, 'none'): [0.8],
    (0.9, 'alie'): [0.1],
  }
  (choice,) = tables.choices(rows(found))
  assert 'momentum 0.9' in choice.setting


PLACES = [
  *rows({(0.0, 'none'): [0.9], (0.0, 'alie'): [0.6]}),
  *rows({(0.0, 'none'): [0.8], (0.0, 'alie'): [0.5]}, partition='sorted'),
  *rows({(0.0, 'none'): [0.95], (0.0, 'alie'): [0.1]}, defence='mean'),
  *rows(
    {(0.0, 'none'): [0.7], (0.0, 'alie'): [0.9]},
    defence='mean',
    partition='sorted',
  ),
  *rows({(0.0, 'none'): [0.99]}, defence='bulyan'),
  *rows({(0.0, 'none'): [0.97]}, defence='mean', f=0),
  *rows({(0.0, 'none'): [0.96]}, defence='mean', f=0, partition='sorted'),
]


@pytest.fixture
def found():
  every = tables.choices(PLACES)
  attacked = [c for c in every if c.num_byzantine]
  return attacked, [c for c in every if not c.num_byzantine]


def cells(line):
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_the_worst_case_table(found):
  def command(choice, attack):
    return f'train {choice.setting}; {attack}, {choice.num_byzantine}'

  text = tables.worst_case(*found, command)
  first = text.split('## ')[1].splitlines()
  assert first[0] == 'iid, 2 Byzantine'
  table = [cells(line) for line in first if line.startswith('|')]
  chosen = 'momentum 0, learning rate 0.1'
  assert table[2:6] == [
    ['krum', '60.0 ± 0.0', 'alie', '90.0 ± 0.0', f'krum; {chosen}'],
    ['mean', '10.0 ± 0.0', 'alie', '95.0 ± 0.0', f'mean; {chosen}'],
    # Best of all, but it did not meet every attack.
    ['bulyan', '99.0 ± 0.0', 'none (of 1 attacks only)', '99.0 ± 0.0',
     f'bulyan; {chosen}'],
    ['*mean, all honest*', '', '', '97.0 ± 0.0', f'mean; {chosen}'],
  ]  # fmt: skip
  assert table[6] == ['defence', 'none', 'alie']
  assert table[8] == ['krum', '90.0 ± 0.0', '60.0 ± 0.0']
  assert table[10] == ['bulyan', '99.0 ± 0.0', '-']
  # Every accuracy has its command, and the control has one.
  commands = [line for line in first if line.startswith('train ')]
  assert commands == [
    f'train krum; {chosen}; none, 2',
    f'train krum; {chosen}; alie, 2',
    f'train mean; {chosen}; none, 2',
    f'train mean; {chosen}; alie, 2',
    f'train bulyan; {chosen}; none, 2',
    f'train mean; {chosen}; none, 0',
  ]
  assert first.index('<details>') < first.index(commands[0])


def test_the_leaderboard_is_in_the_order_of_the_mean_worst_case(found):
  lines = tables.leaderboard(*found).splitlines()
  table = [cells(line) for line in lines if line.startswith('|')]
  assert lines[0] == '2 Byzantine:'
  assert [len(line) for line in table] == [7] * 6
  assert table[2:] == [
    ['krum', '60.0 ± 0.0', 'alie', '90.0', '50.0 ± 0.0', 'alie', '80.0'],
    ['mean', '10.0 ± 0.0', 'alie', '95.0', '70.0 ± 0.0', 'none', '70.0'],
    ['bulyan', '99.0 ± 0.0', 'none (of 1 attacks only)', '99.0', '-', '-', '-'],
    ['*mean, all honest*', '', '', '97.0', '', '', '96.0'],
  ]


def test_pictures_are_of_the_same_numbers(found):
  attacked, _ = found
  by_attack = tables.by_attack(attacked, 'sorted', 2)
  assert list(by_attack) == [
    ('mean', 'none'),
    ('mean', 'alie'),
    ('krum', 'none'),
    ('krum', 'alie'),
  ]
  np.testing.assert_allclose(by_attack['krum', 'alie'], [50])
  accuracy, notes = tables.by_place(attacked)
  np.testing.assert_allclose(accuracy['mean', 'sorted, f=2'], [70])
  assert notes['mean', 'sorted, f=2'] == 'none'
  assert notes['krum', 'iid, f=2'] == 'alie'
