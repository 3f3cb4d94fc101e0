"""The scorecard: every method is on it, and it is what the studies say."""

import re

import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

from experiments import scorecard
from experiments.reporting import summary
from experiments.reporting.summary import Check, Claim
from tests import markdown


def claim(method, says='it gains', value=1.0, data='digits'):
  checks = [Check('points', value, at_least=1, why='of the rate')]
  return Claim(method, says, 'Gu 2023', data, checks)


def test_the_main_claim_is_the_first_of_the_study_it_is_nearest_the_top_of():
  said = {
    'a': [[claim(''), claim('QSR', 'beside')]],
    'b': [[claim('QSR', 'mainly'), claim('QSR', 'too')]],
    'c': [[claim('QSR', 'later')]],
  }
  entry = scorecard.entry_of('QSR', said)
  assert (entry.study, entry.claim.says) == ('b', 'mainly')


def test_other_data_add_their_predictions():
  said = {'b': [[claim('QSR')], [claim('QSR', value=0.5, data='mnist')]]}
  entry = scorecard.entry_of('QSR', said)
  assert entry.claim.verdict == summary.PARTLY
  assert entry.claim.data == 'digits, mnist'
  assert list(map(str, entry.claim.checks)) == [
    'digits: points: 1, predicted at least 1: holds',
    'mnist: points: 0.5, predicted at least 1: **FELL SHORT**',
  ]


def test_a_method_without_a_study_is_not_tested():
  entry = scorecard.entry_of('QSR', {'b': [[claim('SAVIC')]]})
  assert entry.study == ''
  assert (entry.claim.method, entry.claim.verdict) == (
    'QSR',
    summary.NOT_TESTED,
  )


def test_every_method_has_a_study():
  assert len(set(scorecard.METHODS)) == 22
  entries = {e.claim.method: e for e in scorecard.entries()}
  assert list(entries) == list(scorecard.METHODS)
  without = [method for method, entry in entries.items() if not entry.study]
  assert len(without) <= len(scorecard.pending()), without


def test_a_number_that_was_published_says_how_it_is_known():
  for entry in scorecard.entries():
    assert entry.claim.evidence in ('', *summary.EVIDENCE)
    if re.search(r'\d', entry.claim.published):
      assert entry.claim.evidence, entry.claim.method


def test_a_method_that_is_not_on_the_list_is_an_error(monkeypatch):
  monkeypatch.setattr(scorecard, 'METHODS', ('QSR',))
  with pytest.raises(ValueError, match='no method is called'):
    scorecard.entries.__wrapped__()


def test_what_is_committed_is_what_the_studies_say():
  committed = (scorecard.ROOT / 'SCORECARD.md').read_text()
  assert committed == scorecard.page(), 'python -m experiments.scorecard'
  readme = (markdown.ROOT / 'README.md').read_text()
  put = summary.put(readme, 'scorecard', scorecard.block())
  assert readme == put, 'python -m experiments.scorecard'
  for name in re.findall(r'\]\((\S+?)\)', committed):
    assert (scorecard.ROOT / name).exists(), name


def test_the_picture_has_a_row_of_its_colour_for_every_method():
  (axes,) = scorecard.picture().axes
  names = [label.get_text() for label in axes.get_yticklabels()]
  assert names == list(scorecard.METHODS)
  assert len(axes.patches) == len(axes.texts) == 22
  for entry, bar, text in zip(
    scorecard.entries(), axes.patches, axes.texts, strict=True
  ):
    verdict = entry.claim.verdict
    assert text.get_text().startswith(verdict)
    assert bar.get_facecolor() == colors.to_rgba(scorecard.COLOURS[verdict])
  plt.close('all')
