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
from bokeh import resources
from PIL import Image

from experiments import report
from experiments.harness import output
from experiments.reporting import event_files, folders, html_report, palette

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
    {'seed': seed, 'round': t, 'loss': 2.0 - t / 20, 'accuracy': good + t / 100}
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
    output.write_rows(run / 'metrics.csv', rows)
  study = tmp_path / 'study'
  output.open_folder(study, {'note': NASTY})
  rows = [
    {'attack': attack, 'rate': rate, **row}
    for attack in (NASTY, 'none')
    for rate in (0.1, 0.5)
    for seed in (0, 1, 2)
    for row in curve(seed, rate)
  ]
  output.write_rows(study / 'results.csv', rows)
  Image.new('RGB', (3, 2)).save(study / 'curve.png')
  (study / 'unfinished').mkdir()
  (study / 'unfinished' / 'rows.csv').write_text('not,to be\nread')
  (study / 'results.1.csv').write_text('not,to be\nread')
  return tmp_path


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


def charts_of(text):
  found = re.findall(r'<script type="application/json">(.*?)</script>', text)
  return [json.loads(chart) for chart in found]


def test_page_is_well_formed_escaped_and_needs_no_other_file(folder):
  text = page_of(folder)
  bokeh = resources.Resources('inline', components=['bokeh', 'bokeh-api'])
  for script in bokeh.js_raw:
    text = text.replace(script, '')
  check = _Check(text)
  assert check.open == []
  assert NASTY not in text
  assert all(link.startswith(('#', 'data:image/png;')) for link in check.links)
  assert check.counts['img'] == 1
  assert not re.search(r'https?:|url\(|@import', text)
  assert len(page_of(folder)) < 2e6
  # Two metrics of two runs, and of four cells.
  assert sum(len(chart['lines']) for chart in charts_of(text)) == 2 * (2 + 4)


def test_find_tells_runs_studies_and_their_columns(folder):
  found = folders.find([folder, folder / 'train'])
  study, runs = sorted(found.tables, key=lambda table: len(table.series))[::-1]
  assert runs.labels == ['run']
  assert set(runs.series) == {('train/krum',), ('train/mean',)}
  assert study.title == 'study/results.csv'
  assert set(found.pictures) == {'study/curve.png'}
  assert set(found.configs) == {'study', 'train/krum', 'train/mean'}
  assert study.labels == ['attack', 'rate']
  assert study.x == runs.x == 'round'
  assert study.metrics == runs.metrics == ['accuracy', 'loss']
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
  line = html_report.line(seeds, 'round', 'accuracy')
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
  assert charts_of(html_report.page(folders.Found([table], {}, {}))) == []
  # Runs need not have the same metrics.
  table = folders.make_table(
    't', [{'seed': 0, 'loss': 1}, {'seed': 1, 'loss': 3, 'more': 2}]
  )
  assert html_report.summary(table)[1] == ['2 ± 1', 'nan ± nan']
  # No seeds: the file as it is.
  table = folders.make_table('t', [{'rule': 'krum', 'alie': '9'}])
  text = html_report.page(folders.Found([table], {}, {}))
  assert '<td>krum</td>' in text


def test_no_name_is_empty_and_the_order_of_columns_does_not_count(tmp_path):
  for place, columns in (('', 'round,seed'), ('below', 'seed,round')):
    (tmp_path / 'run' / place).mkdir()
    path = tmp_path / 'run' / place / 'metrics.csv'
    path.write_text(f'{columns},loss\n' + '0,0,1\n')
  (table,) = folders.find([tmp_path / 'run']).tables
  assert (table.labels, table.metrics) == (['run'], ['loss'])
  assert set(table.series) == {('run',), ('run/below',)}
  (table,) = folders.find([tmp_path / 'run' / 'below']).tables
  assert list(table.series) == [('below',)]


def test_rows_that_a_study_keeps_are_a_table_without_curves(tmp_path):
  rows = [
    {'rule': rule, 'seed': seed, 'round': 20, 'accuracy': good + seed}
    for rule, good in (('krum', 0.5), ('mean', 0.1))
    for seed in (0, 1)
  ]
  output.write_rows(tmp_path / 'kept.csv', rows)
  (table,) = folders.find([tmp_path]).tables
  assert (table.x, table.metrics) == (None, ['accuracy'])
  assert html_report.summary(table)[1:] == [
    ['krum', '1 ± 0.5'],
    ['mean', '0.6 ± 0.5'],
  ]


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


def _chart(metric, values):
  y = np.array(values)
  x = np.arange(len(y), dtype=float)
  return html_report.chart(metric, 'round', {'a': html_report.Line(x, y, y, y)})


def test_chart_scales():
  # 0 and 1 are the ends of every accuracy.
  chart = _chart('accuracy', [0.001, 0.5, 1.0])
  assert (chart['axis'], chart['range']) == ('linear', [0, 1])
  assert chart['lines']['a']['x'] == [0, 1, 2]
  assert _chart('validation_accuracy', [0.5, 0.6])['range'] == [0, 1]
  assert _chart('accuracy', [50.0, 60.0])['range'] is None
  # Three decades are a logarithm, unless something is not positive.
  assert _chart('loss', [1e-4, 1.0])['axis'] == 'log'
  assert _chart('loss', [1e-2, 1.0])['axis'] == 'linear'
  assert _chart('loss', [0.0, 1e4])['axis'] == 'linear'
  # One evaluation is no curve.
  assert _chart('loss', [3.0]) == {}


def test_chart_has_gaps_where_a_run_diverged():
  chart = _chart('loss', [1.0, 2.0, np.nan, 3.0, np.inf, 1 / 3])
  assert chart['lines']['a']['mean'] == [1, 2, None, 3, None, 0.33333]
  assert _chart('loss', [np.nan, np.inf]) == {}


def test_a_rule_has_its_colour_in_every_chart(folder):
  text = page_of(folder / 'train')
  for rule in ('krum', 'mean'):
    assert f'data-colour="{palette.colour(rule)}"' in text


def test_configurations_mark_what_differs(folder):
  text = page_of(folder / 'train')
  marked = re.findall(r'<tr class="differs"><th>(\w+) ≠</th>', text)
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
    cwd=pathlib.Path(report.__file__).parents[1],
  )
  assert done.returncode == 0, done.stderr
  assert '<h1>Mine</h1>' in path.read_text()


def test_command_exits_with_what_is_wrong(folder):
  report.FLAGS.mark_as_parsed()
  for name, value, argument, message in (
    ('output', 'a.html', folder / 'nothing', 'report: there is no folder'),
    ('output', 'results.csv', folder, 'report: --output=.* must end in .html'),
    ('tensorboard', str(folder), folder, 'is not a new folder'),
  ):
    with (
      flagsaver.flagsaver(**{name: value}),
      pytest.raises(SystemExit, match=message),
    ):
      report.main(['report', str(argument)])


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


# Before the page: all that goes wrong in it. After it, when all charts are
# there: a click on a line of the first legend, and two on another.
BEFORE = """<script>
window.wrong = [];
addEventListener('error', e => wrong.push(String(e.message)), true);
addEventListener('unhandledrejection', e => wrong.push(String(e.reason)));
addEventListener('securitypolicyviolation', e => wrong.push(e.blockedURI));
</script>"""
AFTER = """<script>
const charts = [...document.querySelectorAll('.chart')];
const timer = setInterval(() => {
  if (charts.some(c => !c.querySelector('.bk-Figure'))) return;
  clearInterval(timer);
  const buttons = document.querySelectorAll('.legend button');
  buttons[0].click(); buttons[1].click(); buttons[1].click();
  const lines = [...figures.values()].flatMap(plot => plot.renderers);
  document.title = JSON.stringify({
    wrong, lines: lines.length / 3,
    hidden: lines.filter(line => !line.visible).map(line => line.name),
    points: lines.map(line => line.data_source.get_length()),
    pressed: [...buttons].map(b => b.getAttribute('aria-pressed')),
    pictures: [...document.images].map(i => i.naturalWidth),
    narrow: charts.filter(c => c.querySelector('.bk-Figure').clientWidth < 200),
    overflow: Math.max(document.documentElement.scrollWidth - innerWidth, 0),
  });
}, 100);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium or chrome on PATH')
@pytest.mark.parametrize('width', [500, 1280])
def test_page_in_a_browser(folder, tmp_path, width):
  text = page_of(folder)
  text = text.replace('<head>', f'<head>{BEFORE}', 1)
  path = tmp_path / 'page.html'
  begin, end = text.rsplit('</body>', 1)
  path.write_text(f'{begin}{AFTER}</body>{end}')
  flags = (
    'headless no-sandbox disable-gpu disable-quic no-first-run'
    ' disable-background-networking disable-component-update disable-sync'
    f' dump-dom virtual-time-budget=20000 window-size={width},3000'
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
  assert json.loads(title) == {
    'wrong': [],
    'lines': 12,
    # Curve, band and points of a line in both charts of the first legend.
    'hidden': ['train/krum'] * 6,
    'points': [3] * 36,
    'pressed': ['false', *['true'] * 5],
    'pictures': [3],
    'narrow': [],
    'overflow': 0,
  }
