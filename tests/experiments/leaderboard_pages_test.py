"""The pages of the leaderboard: they are what its rows say."""

import dataclasses
import re
import shlex

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from matplotlib import pyplot as plt

from experiments.grid import (
  board,
  board_page,
  board_store,
  predictions,
  settings,
)
from experiments.grid import cells as grid_cells
from experiments.harness import output
from experiments.reporting import summary
from tests.experiments.boards import SKEWED, SUITE, made, raw, text
from tests.experiments.calls import call_grid


def test_the_table():
  of = board.board_of(made(), 10)
  timed = [{'defence': 'krum', 'milliseconds': '2.345'}]
  lines = board_page.lines(of, timed, 4)
  cells = {line.name: [text for text, _ in line.cells] for line in lines}
  attack = 'alie, strength'
  assert list(cells)[-1] == 'mean'
  assert cells['krum'] == [
    '1', 'krum', '65.3 ± 0.5', '70.3 ± 0.5', attack, '60.3 ± 0.5', attack,
    '72.3', '11.7', '45.3', '64.3', '-', '0 of 12', '2.3',
  ]  # fmt: skip
  assert cells['flame'][0] == '1'
  assert cells['flame'][9:11] == ['same', 'same']
  assert cells['mean'][0] == '3' and cells['mean'][-1] == '-'
  assert len(board_page.HEADS) == len(cells['mean'])


def test_a_backdoor_is_told_by_kind_of_data_and_differences_by_interval():
  (krum,) = [s for s in board.board_of(made(), 10).told(4) if s.name == 'krum']
  won = krum._replace(success={'iid': 3.21, SKEWED: 82.44})
  assert board_page._success(won) == ('3.2 / 82.4', 82.44)
  mean, half = board.difference(np.array([3.0, 5, 7]), np.array([1.0, 2, 3]))
  # By hand: gaps 2, 3, 4, deviation 1, and t(0.975, 2) = 4.3027.
  assert mean == 3 and half == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


def test_names_without_numbers_are_short():
  text = 'alie(z=1.5), strength(strengths=(0.5, 2.0), num_refinements=0)'
  assert board_page.short(text) == 'alie, strength'
  assert board_page.short('none') == 'none'


def test_who_did_not_meet_all_has_no_rank():
  rows = made() + text(
    board.chosen(raw({'none': [0.99] * 3}, defence='clustering'), 10)
  )
  of = board.board_of(rows, 10)
  lines = board_page.lines(of, [], 4)
  ranks = {line.name: line.cells[0][0] for line in lines}
  assert ranks == {'krum': '1', 'flame': '1', 'mean': '3', 'clustering': '-'}
  assert list(ranks)[-1] == 'clustering'


def test_a_table_that_can_be_sorted():
  page = board_page.wide(board_page.lines(board.board_of(made(), 10), [], 4))
  assert '\n\n' not in page  # An empty line would end the HTML.
  rows = re.findall('<tr>(.*?)</tr>', page)
  assert [row.count('<th') + row.count('<td') for row in rows] == [
    len(board_page.HEADS)
  ] * (1 + 3)
  krum = next(row for row in rows if '>krum<' in row)
  keys = re.findall('data-by="(.*?)"', krum)
  assert keys[:3] == ['1', 'krum', '65.3333']
  assert keys[-1] == ''
  script = board_page.GUIDE.read_text().split('<script>')[1]
  assert "querySelectorAll('table.board th')" in script
  assert '\n\n' not in script.split('</script>')[0]


def test_predictions_are_measured_as_they_are_written():
  attacks = ('none', 'alie(z=1.5), strength')
  rows = made(attacks)
  for label in ('label_flip', 'label_poison', 'backdoor'):
    more = made((label, 'min_max'))
    for row in more:
      if label == 'backdoor' and row['attack'] == label:
        row['attack_success_rate'] = '80.0 80.0 20.0'
    rows += [r for r in more if r['attack'] == label]
  of = board.board_of(rows, 10)
  found = [round(check.value, 2) for check in predictions.checks(of, 4)]
  # Ahead of krum's 74 and flame's 78, at four labels alike.
  assert found == [4, 4, 4, 2, 20, 1, 100, 2, 100, 0, 1.0]
  thresholds = [
    check.at_least if check.at_least is not None else -check.at_most
    for check in predictions.checks(of, 4)
  ]
  assert thresholds == [2, 2, 2, 1, 5, -3, 50, 3, 50, -3, -0.8]


def test_rows_that_are_run_again_take_the_place_of_the_old():
  old = [
    {'defence': 'mean', 'num_byzantine': f, 'attack': a, 'accuracy': '1'}
    for f, a in ((4, 'none'), (4, 'alie'), (0, 'none'))
  ]
  new = [old[0] | {'accuracy': '2'}]
  assert board.merged(old, new) == [old[2], *new]


def test_a_defence_does_not_lose_attacks_that_are_on_the_board():
  old = [
    {
      'defence': 'mean',
      'num_byzantine': '4',
      'attack': attack,
      'partition': 'iid',
    }
    for attack in ('none', 'alie')
  ]
  new = [row | {'num_byzantine': 4} for row in old]
  board.check_keeps(old, [*new, new[0] | {'defence': 'krum'}])
  with pytest.raises(ValueError, match='under alie, iid, which was not run'):
    board.check_keeps(old, new[:1])
  board.check_keeps(old, [row | {'num_byzantine': 0} for row in new[:1]])


def test_quick_and_onto_a_board(tmp_path, monkeypatch):
  quick = dataclasses.replace(
    SUITE,
    **{
      key: '; '.join(value)
      if key in ('aggregators', 'attacks')
      else tuple(value)
      if isinstance(value, list)
      else value
      for key, value in settings.QUICK.items()
    },
  )
  monkeypatch.setattr(board_store, 'suite', lambda: quick)
  monkeypatch.setattr(board, 'FOLDER', tmp_path / 'boards')
  monkeypatch.setattr(board_page, 'ROOT', tmp_path)
  monkeypatch.setattr(
    predictions,
    'checks',
    lambda of, f: [summary.Check('told', f, at_least=0)],
  )
  for name in ('PAGE', 'GUIDE'):
    copy = tmp_path / getattr(board_page, name).name
    copy.write_text(getattr(board_page, name).read_text())
    monkeypatch.setattr(board_page, name, copy)
  call_grid(
    '--suite=leaderboard',
    '--quick',
    '--publish',
    f'--output_dir={tmp_path / "run"}',
  )
  rows = output.read_rows(board.path_of('mlp'))
  assert len(rows) == 2 * (2 * 2 + 1)
  assert {row['attack'] for row in rows} == {'none', 'sign_flip(scale=10.0)'}
  assert all(row['jax'] != 'unknown' for row in rows)
  page = board_page.PAGE.read_text()
  assert 'The whole board was run.' in page
  assert '- told: 4, predicted' in page
  assert page == board_page.page(page)
  assert (tmp_path / 'leaderboard_mlp.png').exists()
  line = next(x for x in page.splitlines() if x.startswith('python -m exp'))
  assert '--aggregators=' in line and '--learning_rates=0.3' in line


def test_a_command_of_the_page_is_its_cell():
  choice = board.board_of(made(), 10).told(4)[1].choices[SKEWED]
  line = board_store.command(choice, 'mimic', 'cnn')
  *_, program, suite = (words := shlex.split(line))[:4]
  assert program == 'experiments.grid'
  with flagsaver.flagsaver():
    settings.define_flags()
    flags.FLAGS(words[2:])
    settings.adopt_suite(suite.split('=')[1])
    grid = settings.read()
  cell, control = grid_cells.make_cells(grid, 10)
  assert control.labels['num_byzantine'] == 0
  assert (grid.model, cell.partitions) == ('cnn', (SKEWED,))
  (values,) = cell.values
  described = cell.describe(values)
  assert described['defence'] == choice.defence == 'krum(num_byzantine=4)'
  assert described['attack'] == 'mimic'
  assert described['learning_rate'] == choice.learning_rate == 0.1


def test_a_grid_that_is_not_done_can_be_published(tmp_path, monkeypatch):
  monkeypatch.setattr(board, 'FOLDER', tmp_path / 'boards')
  run = tmp_path / 'run'
  output.open_folder(run, settings.of_folder(SUITE))
  with pytest.raises(ValueError, match='has ended yet'):
    board_store.publish_folder(run)
  output.write_rows(run / 'results.0.csv', raw({'none': [0.9, 0.8]}))
  output.write_rows(
    run / 'results.1.csv', raw({'none': [0.7, 0.8]}, partition=SKEWED)
  )
  board_store.publish_folder(run)
  of = board_store.read('mlp')
  np.testing.assert_allclose(of.told(4)[0].score, [80, 80])
  assert board_store.missing(of, [])[0] == board_store.missing(of, [])[1] - 1
  config = settings.of_folder(dataclasses.replace(SUITE, rounds=7))
  output.open_folder(tmp_path / 'other', config)
  with pytest.raises(ValueError, match='only --aggregators'):
    board_store.publish_folder(tmp_path / 'other')


def test_the_pages_are_what_the_committed_rows_say():
  page, guide = board_page.PAGE.read_text(), board_page.GUIDE.read_text()
  assert page == board_page.page(page), 'python -m experiments.leaderboard'
  assert guide == board_page.guide(guide), 'python -m experiments.leaderboard'
  for model in board_store.models():
    of = board_store.read(model)
    # Who changes the suite makes a board of another version.
    suite = dataclasses.replace(SUITE, model=model)
    about = board_store.about(model)
    assert about['settings'] == settings.of_folder(suite)
    assert about['version'] == board.VERSION
    assert (board_page.ROOT / f'leaderboard_{model}.png').exists()
    figure = board_page.picture(of, 4)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert set(names) == {s.name for s in of.told(4)}
    plt.close(figure)
    lacking, lacking_here = (
      board_store.missing(of, about['refused'], assumed)[0]
      for assumed in (None, 4)
    )
    assert ('Not run whole' in page) == (lacking_here > 0)
    assert ('are missing' in page) == (lacking > lacking_here == 0)
    # What was chosen is the best of what was tried.
    tried = output.read_rows(board.path_of(model, 'tuning'))
    best = {}
    for row in tried:
      key = row['defence'], row['partition'], row['num_byzantine']
      best[key] = max(best.get(key, 0), float(row['validation_accuracy']))
    for row in tried:
      key = row['defence'], row['partition'], row['num_byzantine']
      picked = any(
        (r['defence'], r['partition'], r['num_byzantine']) == key
        and r['learning_rate'] == row['learning_rate']
        and r['rule'] == row['rule']
        for r in of.rows
      )
      if picked:
        assert float(row['validation_accuracy']) == best[key]
