import importlib.util

import numpy as np
import pytest

from benchmarks import byzfl_rounds, byzfl_rules, byzpy_rules, peers
from tests.benchmarks import fake_peer


def test_a_row_that_hangs_or_dies_costs_no_other_row():
  names = ['first', 'hangs', 'second', 'dies']
  figures = peers.rows_in_children(
    'tests.benchmarks.fake_peer', names, fake_peer.Settings(answer=7)
  )
  assert [(f.name, f.values) for f in figures] == [
    ('first', {'answer': 7}),
    ('hangs', {'failed': 'hung'}),
    ('second', {'answer': 7}),
    ('dies', {'failed': 'ended with status 3'}),
  ]


def test_a_row_has_both_times():
  settings = byzfl_rules.Settings(repeats=2)
  figure = peers.row('x', lambda: None, lambda: 1, settings, differs=0.5)
  values = figure.values
  assert figure.repeats == 2 and values['differs'] == 0.5
  assert values['peer_ratio'] > 0 and values['peer_best'] > 0


def test_the_difference_is_a_share():
  theirs, ours = np.array([1.0, -10.0]), np.array([2.0, -10.0])
  assert peers.difference(theirs, ours) == pytest.approx(0.1)


@pytest.mark.parametrize('module', [byzfl_rules, byzfl_rounds, byzpy_rules])
def test_without_the_peer_it_says_how_to_install_it(module, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit, match='requirements-peers.txt'):
    next(module.measure(module.QUICK))


def test_every_row_has_a_rule_of_ours():
  assert len(byzfl_rules.pairs(20, 4)) == 11
  assert len(byzfl_rounds.rows()) == 9
  assert len(byzpy_rules.cases(byzpy_rules.Settings())) == 10
