import re

import pytest

from benchmarks import goals, records, tables
from tests.benchmarks import quick_test

RESULTS = sorted(records.RESULTS.glob('*.json'))


def _figure(name, critical=None, ratio=1.0, **values):
  return records.Figure(name, 1.0, 1.0, 1.0, ratio, critical, 1, values)


def _record(name, *runs):
  load = [0.0, 0.0, 0.0]
  return records.Record(
    name, 'python', 'abc', False, '2026-01-01', 'cpu',
    {'cpu': 'x', 'cores': 2, 'caches': {}}, {'jax': '1'}, load, load, 1.0,
    list(runs),
  )  # fmt: skip


def test_the_page_is_what_the_records_say():
  text = tables.README.read_text()
  assert tables.page(text) == text


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.stem)
def test_a_committed_record(path):
  record = records.read(path)
  assert record.benchmark == path.stem
  quick_test.check(record)


def test_every_record_is_on_the_page_with_its_picture():
  text = tables.README.read_text()
  named = re.findall(r'<!-- (\w+) -->', text)
  assert {path.stem for path in RESULTS} == set(named) - {'goals', 'end'}
  pictures = re.findall(r'\(results/(\w+\.png)\)', text)
  assert len(pictures) == len(RESULTS) + 1  # Memory has one of its own.
  for name in pictures:
    assert (records.RESULTS / name).exists(), name


def test_a_table_shows_what_figures_have():
  run = records.Run(
    'a title',
    'F',
    [_figure('F', 1.0), _figure('krum', 4.25, 8.0, temporary_share=0.5)],
    notes={'a note': 0.123456},
  )
  assert tables.table('rules', run).splitlines() == [
    'a title',
    '      x wall  x crit   temp',
    'F        1.0     1.0      -',
    'krum     8.0     4.2  50.0%',
    'a note: 0.1235',
  ]


def test_records_come_back_with_four_digits(tmp_path):
  run = records.Run('t', 'F', [_figure('F', 1.23456789, x=1e-9 / 3, n=123456)])
  path = records.write(_record('rules', run), tmp_path)
  (figure,) = records.read(path).runs[0].figures
  assert figure.critical_ratio == 1.235
  assert figure.values == {'x': 3.333e-10, 'n': 123456}


def test_a_block_says_where_it_comes_from(tmp_path):
  assert 'Not measured yet' in tables.block('rules', tmp_path)
  run = records.Run('t', 'F', [_figure('F')])
  records.write(_record('rules', run), tmp_path)
  page = tables.page('a\n<!-- rules -->\nold\n<!-- end -->\nb', tmp_path)
  assert 'commit abc' in page and 'old' not in page
  assert page.startswith('a\n<!-- rules -->\n')
  assert page.endswith('<!-- end -->\nb')
  assert tables.page(page, tmp_path) == page


def test_goals_are_met_missed_or_not_measured(tmp_path):
  n20 = records.Run(
    'n=20 d=1000000 f=4',
    'F',
    [
      _figure('mean', 1.25),
      _figure('mean_around_median', 9.0),
      _figure('krum', 9.0, 8.0),
      _figure('mixing + coordinate_median', 10.0, temporary_share=0.04),
    ],
  )
  records.write(_record('rules', n20), tmp_path)
  peer = {'peer_wall_median': 2.0, 'peer_ratio': 1.9}
  slow = {'peer_wall_median': 3.0, 'peer_ratio': 3.0}
  rounds = [
    records.Run('default', 'the peer', [_figure('Average X', **peer)]),
    records.Run('passive', 'the peer', [_figure('Average X', **slow)]),
  ]
  records.write(_record('byzfl_rounds', *rounds), tmp_path)
  table = {row.what: row for row in goals.rows(tmp_path)}
  mean, krum = table['mean, n=20, over F'], table['krum, n=20, over F']
  assert mean == goals.Row(
    'mean, n=20, over F', '<= 1.30', '1.25 (wall 1.00)', 'met'
  )
  assert krum.measured == '9.00 (wall 8.00)'
  assert krum.verdict == 'missed by 50%'
  assert table['krum, n=50, over F'].verdict == 'not measured'
  share = table['mixing + coordinate_median, n=20, temporaries as a share of X']
  assert (share.measured, share.verdict) == ('4.0%', 'met')
  # ByzFL in the setting of its threads in which it is faster.
  (over,) = [row for what, row in table.items() if 'Average X' in what]
  assert (over.measured, over.verdict) == ('1.90', 'met')
  toy = _record('rules', n20)._replace(quick=True)
  records.write(toy, tmp_path)
  table = {row.what: row for row in goals.rows(tmp_path)}
  assert table['mean, n=20, over F'].verdict == 'not measured'
