"""The page about folders: what it finds, what it computes, how it behaves."""

import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
from html import parser

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from experiments import event_files, folders, html_report, output, svg

CHROMIUM = next(
  filter(
    None,
    map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')),
  ),
  None,
)
NASTY = '<script>alert("&")</script>'


def curve(seed, good, rounds=(0, 10, 20)):
  return [
    {'round': t, 'seed': seed, 'loss': 2.0 - t / 20, 'accuracy': good + t / 100}
    for t in rounds
  ]


@pytest.fixture
def folder(tmp_path):
  """Two runs of `train` and a study with a nasty name in it."""
  for rule, good in (('krum', 0.5), ('mean', 0.1)):
    rows = [*curve(0, good), *curve(1, good + 0.2)]
    rows.sort(key=lambda row: row['round'])
    run = tmp_path / 'train' / rule
    output.open_folder(run, {'rule': rule, 'rounds': 20})
    output.write_metrics(run, rows)
  study = tmp_path / 'study'
  output.open_folder(study, {'note': NASTY})
  rows = [
    {'attack': attack, 'rate': rate, **row}
    for attack in (NASTY, 'none')
    for rate in (0.1, 0.5)
    for seed in (0, 1, 2)
    for row in curve(seed, rate)
  ]
  output.write_rows(study / 'results.csv', [_seed_first(row) for row in rows])
  Image.new('RGB', (3, 2)).save(study / 'curve.png')
  (study / 'unfinished').mkdir()
  (study / 'unfinished' / 'rows.csv').write_text('not,to be\nread')
  (study / 'results.1.csv').write_text('not,to be\nread')
  return tmp_path


def _seed_first(row):
  first = {key: row[key] for key in ('attack', 'rate', 'seed', 'round')}
  return first | row


def page_of(*paths):
  return html_report.page(folders.find(paths), title=NASTY)


class _Check(parser.HTMLParser):
  """Counts tags, and that every one that opens is closed in order."""

  def __init__(self, text):
    super().__init__()
    self.open, self.counts, self.links = [], {}, []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.counts[tag] = self.counts.get(tag, 0) + 1
    self.links += [v for k, v in attrs if k in ('src', 'href')]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_page_is_well_formed_escaped_and_needs_no_other_file(folder):
  text = page_of(folder)
  check = _Check(text)
  assert check.open == []
  assert check.counts['script'] == 1
  assert NASTY not in text
  assert all(link.startswith(('#', 'data:image/png;')) for link in check.links)
  assert check.counts['img'] == 1
  assert not re.search(r'https?:|url\(|@import', text)
  # Two metrics of two runs, and of four cells.
  assert text.count('class="line ') == 2 * (2 + 4)


def test_find_tells_runs_studies_and_their_columns(folder):
  found = folders.find([folder, folder / 'train'])
  study, runs = sorted(found.tables, key=lambda table: len(table.series))[::-1]
  assert runs.labels == ['run']
  assert set(runs.series) == {('krum',), ('mean',)}
  assert study.labels == ['attack', 'rate']
  assert study.x == runs.x == 'round'
  assert study.metrics == runs.metrics == ['accuracy', 'loss']
  assert len(found.configs) == 3
  assert {len(seeds) for seeds in study.series.values()} == {3}


def test_summary_is_of_the_last_evaluation_over_seeds(folder):
  (runs,) = folders.find([folder / 'train']).tables
  # 0.5 + 0.2 and 0.7 + 0.2; half of their distance is the deviation.
  assert html_report.summary(runs) == [
    ['run', 'accuracy', 'loss'],
    ['krum', '0.8 ± 0.1', '1 ± 0'],
    ['mean', '0.4 ± 0.1', '1 ± 0'],
  ]


def test_line_counts_seeds_where_they_have_been():
  seeds = {0: curve(0, 0.1), 1: curve(1, 0.5, rounds=(0, 10))}
  seeds[0][0]['accuracy'] = float('nan')
  seeds[0][1]['accuracy'] = float('inf')
  line = html_report.line('a', seeds, 'round', 'accuracy')
  np.testing.assert_array_equal(line.x, [0, 10, 20])
  np.testing.assert_allclose(line.mean, [np.nan, np.inf, 0.3])
  np.testing.assert_allclose(line.low, [np.nan, 0.6, 0.3])
  np.testing.assert_allclose(line.high, [np.nan, np.inf, 0.3])


def test_columns_without_a_round():
  rows = [
    {'cell': 'a', 'seed': s, 'what': w, 'count': c, 'loss': 3.0 * c + s}
    for s in (0, 2)
    for w in ('x', 'y')
    for c in (1, 2)
  ]
  table = folders.make_table('t', rows)
  assert table.labels == ['cell', 'what']
  assert (table.x, table.metrics) == ('count', ['loss'])
  # One row per seed is no curve; a column of nothing is no metric.
  short = [{**row, 'none': '-'} for row in rows if row['count'] == 1]
  table = folders.make_table('t', short)
  assert (table.x, table.metrics) == (None, ['loss', 'count'])
  assert html_report.summary(table)[1] == ['a', 'x', '4 ± 1', '1 ± 0']
  assert 'class="line ' not in html_report.page(folders.Found([table], {}, {}))
  # Runs need not have the same metrics.
  table = folders.make_table(
    't', [{'seed': 0, 'loss': 1}, {'seed': 1, 'loss': 3, 'more': 2}]
  )
  assert html_report.summary(table)[1] == ['2 ± 1', 'nan ± nan']
  # No seeds: the file as it is.
  table = folders.make_table('t', [{'rule': 'krum', 'alie': '9'}])
  text = html_report.page(folders.Found([table], {}, {}))
  assert '<td class="number">krum</td>' in text


def test_charts_are_divided_by_labels_from_the_left():
  rows = [
    {'part': p, 'rate': r, 'seed': 0, 'round': t, 'loss': 1.0}
    for p in ('a', 'b')
    for r in range(6)
    for t in (0, 1)
  ]
  found = html_report.facets(folders.make_table('t', rows))
  assert list(found) == ['a', 'b']
  assert list(found['a']) == [f'rate {r}' for r in range(6)]
  few = [row for row in rows if row['rate'] < 5]
  (names,) = html_report.facets(folders.make_table('t', few)).values()
  assert list(names)[-1] == 'b, rate 4'


def test_no_series_is_lost_to_a_name():
  rows = [
    {'one': a, 'two': b, 'seed': 0, 'round': t, 'loss': 1.0}
    for a, b in (('x', '-'), ('-', 'x'), (float('nan'), '-'))
    for t in (0, 1)
  ]
  (names,) = html_report.facets(folders.make_table('t', rows)).values()
  assert set(names.values()) == {('x', '-'), ('-', 'x'), ('nan', '-')}


def _heights(text):
  """The points of the curves of a chart, as (points, 2)."""
  (path,) = re.findall(r'class="curve" d="M([^"]*)"', text)
  return np.array([p.split() for p in path.split('L')], float)


def _chart(title, values):
  y = np.array(values)
  one = svg.Line('a', np.arange(len(y)), y, y, y)
  return svg.chart(title, 'round', [one])


def test_chart_scales():
  # 0 and 1 are the ends of every accuracy; x runs from edge to edge.
  points = _heights(_chart('accuracy', [0.0, 0.5, 1.0]))
  np.testing.assert_allclose(points, [[48, 194], [218, 109], [388, 24]])
  half = _heights(_chart('accuracy', [0.5, 0.5]))
  np.testing.assert_allclose(half[:, 1], [109, 109])
  # Three decades: equal factors are equal steps.
  steps = np.diff(_heights(_chart('loss', [1e-4, 1e-2, 1.0]))[:, 1])
  np.testing.assert_allclose(steps, [-85, -85])
  texts = re.findall('class="end"[^>]*>([^<]*)<', _chart('x', [1e5, 1e5 + 1]))
  assert len(set(texts)) == len(texts) > 2
  for extreme in ([5e-324, 1.7e308], [0.0, 1e-300], [-5.0, -5.0]):
    assert np.isfinite(_heights(_chart('loss', extreme))).all()
  # Neither a constant nor one point breaks it.
  assert _heights(_chart('loss', [3.0, 3.0])).shape == (2, 2)
  assert _chart('loss', [3.0]).count('<circle') == 1


def test_chart_has_gaps_where_a_run_diverged():
  text = _chart('loss', [1.0, 2.0, np.nan, 3.0, np.inf, 2.0, 1.0])
  assert text.count('class="curve"') == 2
  assert text.count('<circle') == 1
  assert not re.search(r'\b(nan|inf)\b', text)
  assert _chart('loss', [np.nan, np.inf]) == ''


def test_configurations_mark_what_differs(folder):
  text = page_of(folder / 'train')
  marked = re.findall(r'<tr class=differs><th>(\w+) ≠</th>', text)
  assert marked == ['rule']
  assert '<tr><th>rounds</th>' in text


@pytest.mark.parametrize(
  ('files', 'match'),
  [
    ({}, 'holds no'),
    ({'notes.txt': ''}, 'holds no'),
    ({'config.json': '{'}, r'config\.json is damaged'),
    ({'config.json': '[]'}, 'not a JSON object'),
    ({'results.csv': 'a,seed\n1\n'}, r'results\.csv is damaged'),
    ({'metrics.csv': 'round,seed\n1,2,3\n'}, r'metrics\.csv is damaged'),
  ],
)
def test_find_names_what_is_wrong(tmp_path, files, match):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=match):
    folders.find([tmp_path])


def test_find_needs_folders(tmp_path):
  with pytest.raises(ValueError, match='there is no folder'):
    folders.find([tmp_path / 'nothing'])


def test_command(folder, tmp_path):
  path = tmp_path / 'new' / 'page.html'
  command = [sys.executable, '-m', 'experiments.report', str(folder)]
  done = subprocess.run(
    [*command, f'--output={path}', '--title=Mine'],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(html_report.__file__).parents[1],
  )
  assert done.returncode == 0, done.stderr
  assert '<h1>Mine</h1>' in path.read_text()


def test_command_exits_with_what_is_wrong(folder):
  html_report.FLAGS.mark_as_parsed()
  for name, value, argument, message in (
    ('output', 'a.html', folder / 'nothing', 'report: there is no folder'),
    ('output', 'results.csv', folder, 'report: --output=.* must end in .html'),
    ('tensorboard', str(folder), folder, 'is not a new folder'),
  ):
    with (
      flagsaver.flagsaver(**{name: value}),
      pytest.raises(SystemExit, match=message),
    ):
      html_report.main(['report', str(argument)])


def test_event_files_hold_the_curves(folder, tmp_path):
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  (runs,) = folders.find([folder / 'train']).tables
  root = tmp_path / 'events'
  event_files.write([runs], root)
  (path,) = (root / 'training_runs' / 'krum' / 'seed=1').iterdir()
  # Of every record: length, its checksum, the event, its checksum.
  content, scalars = path.read_bytes(), []
  while content:
    (length,) = struct.unpack('<Q', content[:8])
    event = event_pb2.Event.FromString(content[12 : 12 + length])
    scalars += [
      (v.tag, event.step, v.simple_value) for v in event.summary.value
    ]
    content = content[16 + length :]
  accuracy = [(step, y) for tag, step, y in scalars if tag == 'accuracy']
  np.testing.assert_allclose(accuracy, [(0, 0.7), (10, 0.8), (20, 0.9)])
  assert len(list(root.rglob('events.*'))) == 4
  with pytest.raises(ValueError, match='not a new folder'):
    event_files.write([runs], root)


# Before the page: all that goes wrong in it. After it: a click on a line of the
# first legend and, where there is one, on another twice.
BEFORE = """<script>
window.wrong = [];
addEventListener('error', e => wrong.push(String(e.message)), true);
addEventListener('securitypolicyviolation', e => wrong.push(e.blockedURI));
</script>"""
AFTER = """<script>
const buttons = document.querySelectorAll('.facet button');
buttons[0].click(); buttons[1].click(); buttons[1].click();
const lines = [...document.querySelectorAll('.line')];
const shown = line => getComputedStyle(line).display !== 'none';
const curves = [...document.querySelectorAll('.line .curve')];
const report = {
  wrong, lines: lines.length, counted: +document.documentElement.dataset.lines,
  hidden: lines.filter(line => !shown(line)).map(line => line.dataset.line),
  pressed: [...buttons].map(b => b.getAttribute('aria-pressed')),
  pictures: [...document.images].map(i => i.naturalWidth),
  drawn: curves.filter(c => c.getTotalLength() > 100).length,
  overflow: document.documentElement.scrollWidth - innerWidth,
};
document.title = JSON.stringify(report);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium or chrome on PATH')
def test_page_in_a_browser(folder, tmp_path):
  text = page_of(folder)
  text = text.replace('<head>', f'<head>{BEFORE}', 1)
  path = tmp_path / 'page.html'
  path.write_text(text.replace('</body>', f'{AFTER}</body>'))
  flags = (
    'headless no-sandbox disable-gpu disable-quic no-first-run'
    ' disable-background-networking disable-component-update disable-sync'
    ' dump-dom virtual-time-budget=2000 window-size=900,900'
  )
  done = subprocess.run(
    [
      CHROMIUM,
      *(f'--{flag}' for flag in flags.split()),
      f'--user-data-dir={tmp_path / "browser"}',
      path.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  (title,) = re.findall('<title>({.*})</title>', done.stdout)
  found = json.loads(title)
  assert found == {
    'wrong': [],
    'lines': 12,
    'counted': 12,
    # The first line in both charts of the first legend, and nothing else.
    'hidden': ['0', '0'],
    'pressed': ['false', *['true'] * 5],
    'pictures': [3],
    'drawn': 12,
    'overflow': found['overflow'],
  }
  assert found['overflow'] <= 0
