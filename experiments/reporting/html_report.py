r"""One HTML file about any output folders: curves, tables, configurations.

  python -m experiments.report runs/krum runs/wafl --output=report.html

Finds what `experiments.train`, studies and grids leave below the folders:
`metrics.csv`, `results.csv` and other tables, `config.json`, pictures. The file
needs nothing else, no network either. `--tensorboard=DIR` also writes the
curves as event files (`pip install byzjax[tensorboard]`).
"""

import base64
import html
import json
import pathlib
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from experiments import event_files, folders, svg
from experiments.folders import Found, Rows, Table

FLAGS = flags.FLAGS
flags.DEFINE_string('output', 'report.html', 'The file to write.')
flags.DEFINE_string('title', 'Results', 'Of the page.')
flags.DEFINE_string('tensorboard', None, 'A new folder for event files.')

_MAX_LINES = 10  # In a chart, if its labels can be divided.
_SHOWN = 3  # Metrics that are not folded.
_MAX_ROWS = 200  # Of a file that is shown as it is.


def line(name: str, seeds: Mapping[Any, Rows], x: str, metric: str) -> svg.Line:
  """Mean, lowest and highest over the seeds at each evaluation.

  Seeds need not have the same x, such as a simulated time: it is averaged too.
  A seed that has not come as far as another counts where it has been.
  """
  length = max(map(len, seeds.values()))

  def grid(column):
    columns = [folders.values(rows, column) for rows in seeds.values()]
    pad = [np.full(length - len(column), np.nan) for column in columns]
    return np.array([np.r_[c, p] for c, p in zip(columns, pad, strict=True)])

  y = grid(metric)
  there = ~np.isnan(grid(x))
  with np.errstate(invalid='ignore', over='ignore'):  # Seeds that diverged.
    mean = np.where(there, y, 0).sum(0) / there.sum(0)
  return svg.Line(
    name,
    np.nanmean(grid(x), axis=0),
    mean,
    np.where(there, y, np.inf).min(axis=0),
    np.where(there, y, -np.inf).max(axis=0),
  )


def facets(table: Table) -> dict[str, dict[str, tuple]]:
  """Series by chart and by line: labels from the left name charts.

  As few of them as leave at most 10 lines in each; the last stays in the chart.
  """
  keys = list(table.series)
  varying = [
    i for i in range(len(table.labels)) if len({key[i] for key in keys}) > 1
  ]
  for cut in range(max(len(varying), 1)):
    charts: dict[str, dict[str, tuple]] = {}
    for key in keys:
      outer = _describe(table, key, varying[:cut])
      names = charts.setdefault(outer, {})
      inner = _describe(table, key, varying[cut:]) or table.title
      # What a name leaves out may be all that differs.
      names[', '.join(map(str, key)) if inner in names else inner] = key
    if max(map(len, charts.values())) <= _MAX_LINES:
      break
  return charts


def _describe(table: Table, key: tuple, places: Iterable[int]) -> str:
  parts = []
  for i in places:
    number = not isinstance(key[i], str)
    if key[i] != '-':
      parts.append(f'{table.labels[i]} {key[i]:g}' if number else key[i])
  return ', '.join(parts)


def _charts(table: Table) -> str:
  if table.x is None:
    return ''
  parts = []
  charts_of = facets(table)
  for number, (title, names) in enumerate(charts_of.items()):
    charts = {}
    for metric in table.metrics:
      lines = [
        line(name, table.series[key], table.x, metric)
        for name, key in names.items()
      ]
      if max(len(one.x) for one in lines) > 1:
        charts[metric] = svg.chart(metric, table.x, lines)
    shown = [charts.pop(m) for m in list(charts)[:_SHOWN]]
    if not any(shown):
      continue
    legend = ''.join(
      f'<button type="button" aria-pressed="true" data-line="{i}">'
      f'<svg class="{svg.style(i)}" viewBox="0 0 24 8">'
      f'<path class="curve" d="M0 4H24"/></svg>{html.escape(name)}</button>'
      for i, name in enumerate(names)
    )
    text = f'<div class="legend">{legend}</div>{_grid(shown)}'
    if any(charts.values()):
      text += _folded(f'{len(charts)} more', _grid(charts.values()))
    text = f'<div class="facet">{text}</div>'
    parts.append(_folded(title, text, open=number < 4) if title else text)
  seeds = _num_seeds(table)
  note = f'<p>Lines: mean over seeds ({seeds}); bands: worst to best seed.</p>'
  return note + ''.join(parts) if parts else ''


def _grid(charts: Iterable[str]) -> str:
  return f'<div class="charts">{"".join(charts)}</div>'


def _folded(title: str, text: str, open: bool = False) -> str:
  return (
    f'<details{" open" if open else ""}><summary>{html.escape(title)}</summary>'
    f'{text}</details>'
  )


def _num_seeds(table: Table) -> str:
  counts = sorted({len(seeds) for seeds in table.series.values()})
  return ' to '.join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))


def summary(table: Table) -> list[list[str]]:
  """Heads, then a row per series: its labels, and mean ± std over the seeds.

  Of the last evaluation; without an x axis, of the mean of all rows of a seed.
  """
  lines = [[*table.labels, *table.metrics]]
  for key, seeds in table.series.items():
    cells = [f'{v:g}' if not isinstance(v, str) else v for v in key]
    for metric in table.metrics:
      runs = [folders.values(rows, metric) for rows in seeds.values()]
      last = np.array([r[-1] if table.x else r.mean() for r in runs])
      with np.errstate(invalid='ignore', over='ignore'):
        cells.append(f'{last.mean():.4g} ± {last.std():.2g}')
    lines.append(cells)
  return lines


def _html_table(lines: Sequence[Sequence[Any]], num_labels: int) -> str:
  def row(tag, cells):
    number = f'<{tag} class="number">'
    return ''.join(
      f'{f"<{tag}>" if i < num_labels else number}{html.escape(str(cell))}'
      f'</{tag}>'
      for i, cell in enumerate(cells)
    )

  body = ''.join(f'<tr>{row("td", cells)}</tr>' for cells in lines[1:])
  head = f'<thead><tr>{row("th", lines[0])}</tr></thead>'
  return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _results(table: Table) -> str:
  if table.plain:
    rows = table.plain[:_MAX_ROWS]
    lines = [table.metrics, *(list(row.values()) for row in rows)]
    more = len(table.plain) - len(rows)
    note = f'<p>{more} more rows in the file.</p>' if more else ''
    return _html_table(lines, 0) + note
  lines = summary(table)
  what = 'the last evaluation' if table.x else 'each seed'
  title = (
    f'Final numbers: mean ± standard deviation over {_num_seeds(table)} seeds,'
    f' of {what}; {len(lines) - 1} rows'
  )
  text = _html_table(lines, len(table.labels))
  return _folded(title, text, open=len(lines) <= 30)


def _configs(configs: Mapping[str, Mapping[str, Any]]) -> str:
  """A table for all folders with the same keys; what differs comes first."""
  groups: dict[tuple, list[str]] = {}
  for folder, config in configs.items():
    groups.setdefault(tuple(sorted(config)), []).append(folder)
  parts = []
  for keys, names in groups.items():
    texts = {key: [json.dumps(configs[f][key]) for f in names] for key in keys}
    order = sorted(keys, key=lambda key: len(set(texts[key])) == 1)
    rows = []
    for key in order:
      differs = len(set(texts[key])) > 1
      cells = ''.join(
        f'<td class="value">{html.escape(t)}</td>' for t in texts[key]
      )
      rows.append(
        f'<tr{" class=differs" if differs else ""}><th>{html.escape(key)}'
        f'{" ≠" if differs else ""}</th>{cells}</tr>'
      )
    heads = ''.join(f'<th>{html.escape(folder)}</th>' for folder in names)
    parts.append(
      f'<div class="wide"><table><tr><th></th>{heads}</tr>{"".join(rows)}'
      '</table></div>'
    )
  return ''.join(parts)


def page(results: Found, title: str = 'Results') -> str:
  """The whole page."""
  sections = [(t.title, _charts(t) + _results(t)) for t in results.tables]
  if results.pictures:
    pictures = (
      '<figure><img alt="" src="data:image/png;base64,'
      f'{base64.b64encode(content).decode()}"><figcaption>{html.escape(name)}'
      '</figcaption></figure>'
      for name, content in results.pictures.items()
    )
    grid = f'<div class="pictures">{"".join(pictures)}</div>'
    sections.append(('Pictures', grid))
  if results.configs:
    note = '<p>Marked (≠): what differs between the folders of a table.</p>'
    sections.append(('Configurations', note + _configs(results.configs)))
  links = ''.join(
    f'<a href="#s{i}">{html.escape(name)}</a>'
    for i, (name, _) in enumerate(sections)
  )
  body = ''.join(
    f'<section id="s{i}"><h2>{html.escape(name)}</h2>{text}</section>'
    for i, (name, text) in enumerate(sections)
  )
  template = pathlib.Path(__file__).with_suffix('.html').read_text()
  return string.Template(template).substitute(
    title=html.escape(title), body=f'<nav>{links}</nav>{body}'
  )


def main(argv: Sequence[str]) -> None:
  """Writes the report of the folders that are named."""
  path = pathlib.Path(FLAGS.output)
  if not argv[1:]:
    raise app.UsageError('name one or more folders with results')
  try:
    if path.suffix != '.html':
      raise ValueError(f'--output={path} must end in .html')
    results = folders.find(argv[1:])
    if FLAGS.tensorboard:
      event_files.write(results.tables, pathlib.Path(FLAGS.tensorboard))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results, FLAGS.title))
  except (OSError, ValueError) as error:
    sys.exit(f'report: {error}')
  print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')
