"""Claims, their verdicts, and pages."""

import numpy as np
import pytest

from experiments.reporting import summary
from experiments.reporting.summary import Check, Claim, Summary, Table

PAGE = """# A study

<!-- claims -->
what was there
<!-- end of claims -->
between
<!-- tables --><!-- end of tables -->
the end
"""


def claim(*values, **more):
  checks = [Check('points', value, at_least=1) for value in values]
  about = {'method': 'QSR', 'says': 'it | gains', 'paper': 'Gu 2023'}
  return Claim(**about, data='digits', checks=checks, **more)


@pytest.mark.parametrize(
  ('values', 'verdict'),
  [
    ((), summary.NOT_TESTED),
    ((1, 2), summary.REPRODUCED),
    ((1, 0.9), summary.PARTLY),
    ((0.9, float('nan')), summary.NOT_REPRODUCED),
  ],
)
def test_verdicts_follow_from_checks_alone(values, verdict):
  assert claim(*values).verdict == verdict


def test_a_check_holds_at_its_threshold_and_never_without_a_number():
  assert Check('a', 2.0, at_least=2).holds
  assert Check('a', 2.0, at_most=2).holds
  assert not Check('a', 1.99, at_least=2).holds
  assert not Check('a', 2.01, at_most=2).holds
  # A threshold of zero is one.
  assert not Check('a', -0.1, at_least=0).holds
  assert not Check('a', 0.1, at_most=0).holds
  for bound in ({'at_least': 0}, {'at_most': 0}):
    assert not Check('a', float('nan'), **bound).holds


def test_a_check_says_why_only_if_it_fell_short():
  good = Check('points', 95.678, at_least=90, why='of the rate')
  assert str(good) == 'points: 95.7, predicted at least 90: holds'
  bad = Check('rounds', 1234.5, at_most=1000, why='of the rate')
  assert str(bad) == (
    'rounds: 1234, predicted at most 1000: **FELL SHORT** (of the rate)'
  )


def test_claims_are_a_table_with_the_paper_and_its_evidence():
  said = Summary(
    [claim(2.0, published='+1 point', evidence='P'), claim()], [], {}
  )
  head, _, first, second, _, *notes = summary.claims_block(said).splitlines()
  assert head == '| claim | verdict | paper | ours |'
  assert first == (
    r'| it \| gains | **reproduced** | +1 point [P] | digits: points: 2,'
    ' predicted at least 1: holds |'
  )
  assert (
    second == r'| it \| gains | **not tested here** | no number | digits: - |'
  )
  assert notes == ['[P]: read in the paper.', 'Paper: Gu 2023.']
  assert [check.value for check in said.checks] == [2.0]


def test_claims_about_a_paper_differ_in_what_is_given():
  of = summary.claims_about('QSR', 'Gu 2023', 'digits')
  check = Check('points', 2.0, at_least=1)
  assert of('it gains', check, published='+1', evidence='P') == Claim(
    'QSR', 'it gains', 'Gu 2023', 'digits', (check,), '+1', 'P'
  )
  assert of('so do we', **summary.OURS) == Claim(
    '', 'so do we', 'not in the paper', 'digits'
  )
  assert of('elsewhere', data='mnist').data == 'mnist'


def test_of_cells_that_were_not_run_nothing_is_said():
  ran = summary.Check('points', 3.0, at_least=2)
  other = summary.Check('points', float('nan'), at_least=2)
  claim = summary.Claim('rule', 'it holds', 'A 2020', 'digits', [ran, other])
  half, nothing = summary.of_what_ran(
    [claim, claim._replace(checks=[other, other])]
  )
  assert half.checks[0] == ran and half.checks[1].why == summary.NOT_RUN
  assert str(half.checks[1]) == 'points: not run yet, predicted at least 2'
  assert half.verdict == summary.PARTLY
  assert nothing.verdict == summary.NOT_TESTED


def test_tables_of_nothing_are_left_out():
  cells = {('a', 'points'): np.array([1.26])}
  found = summary.pivots([('A', cells, 2), ('B', {}, 2), ('C', cells)])
  assert [table.title for table in found] == ['A', 'C']
  assert [table.text.split()[-1] for table in found] == ['1.26', '1.3']


def test_a_page_has_its_blocks_between_its_marks_and_stays_as_it_is():
  said = Summary([claim(2.0)], [Table('A title', r'1 \1 2')], {})
  page = summary.page(PAGE, said)
  assert 'what was there' not in page
  assert '\nbetween\n' in page and page.endswith('\nthe end\n')
  # Whatever a table has in it.
  tables = (
    '<!-- tables -->\n\nA title\n\n```\n1 \\1 2\n```\n\n<!-- end of tables -->'
  )
  assert tables in page
  assert summary.page(page, said) == page


def test_a_page_without_marks_is_refused():
  said = Summary([claim(2.0)], [], {})
  with pytest.raises(
    ValueError, match='no <!-- claims -->.*no <!-- tables -->'
  ):
    summary.page('# A study', said)
  with pytest.raises(ValueError, match='no <!-- tables -->'):
    summary.page(PAGE.replace('<!-- end of tables -->', ''), said)


def test_a_variant_has_marks_of_its_own_and_needs_one_pair():
  said = Summary([claim(2.0)], [], {})
  with pytest.raises(ValueError, match='no <!-- claims mnist -->'):
    summary.page(PAGE, said, 'mnist')
  more = '<!-- claims mnist --><!-- end of claims mnist -->\n'
  page = summary.page(PAGE + more, said, 'mnist')
  assert page.startswith(PAGE)
  assert 'predicted at least 1' in page[len(PAGE) :]


def test_a_command_can_be_pasted():
  found = summary.command('studies', '--only=vote, invert')
  assert found == "python -m experiments.studies '--only=vote, invert'"
