"""The page about folders, as one file: bokeh draws its curves."""

import base64
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
from bokeh import resources

from . import folders, palette
from .folders import Found, Rows, Table

_MAX_LINES = 10  # In a chart, if its labels can be divided.
_SHOWN = 3  # Metrics that are not folded.
_OPEN = 4  # Groups of charts that are not folded.
_MAX_ROWS = 200  # Of a file that is shown as it is.
_DECADES = 3  # From so many on, a positive quantity has a logarithmic axis.


class Line(NamedTuple):
  """One curve: at `x[k]` the mean, lowest and highest of the seeds."""

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def line(seeds: Mapping[Any, Rows], x: str, metric: str) -> Line:
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
  return Line(
    np.nanmean(grid(x), axis=0),
    mean,
    np.where(there, y, np.inf).min(axis=0),
    np.where(there, y, -np.inf).max(axis=0),
  )


def facets(table: Table) -> dict[str, dict[str, tuple]]:
  """Series by group of charts and by line: labels from the left name groups.

  As few of them as leave at most 10 lines in each; the last stays in the chart.
  """
  keys = list(table.series)
  varying = [
    i for i in range(len(table.labels)) if len({key[i] for key in keys}) > 1
  ]
  for cut in range(max(len(varying), 1)):
    groups: dict[str, dict[str, tuple]] = {}
    for key in keys:
      outer = _describe(table, key, varying[:cut])
      names = groups.setdefault(outer, {})
      inner = _describe(table, key, varying[cut:]) or table.title
      # What a name leaves out may be all that differs.
      names[', '.join(map(str, key)) if inner in names else inner] = key
    if max(map(len, groups.values())) <= _MAX_LINES:
      break
  return groups


def _describe(table: Table, key: tuple, places: Iterable[int]) -> str:
  parts = []
  for i in places:
    number = not isinstance(key[i], str)
    if key[i] != '-':
      parts.append(f'{table.labels[i]} {key[i]:g}' if number else key[i])
  return ', '.join(parts)


def chart(metric: str, x: str, lines: Mapping[str, Line]) -> dict[str, Any]:
  """What the page draws a chart of; nothing if it would be empty.

  What is not finite is a gap.
  """
  values = np.concatenate([y for one in lines.values() for y in one[1:]])
  finite = values[np.isfinite(values)]
  if not finite.size or max(len(one.x) for one in lines.values()) < 2:
    return {}
  low, high = finite.min(), finite.max()
  share = metric.endswith('accuracy') and low >= 0 and high <= 1
  log = bool(low > 0 and high >= 10**_DECADES * low) and not share

  def numbers(y: np.ndarray) -> list[float | None]:
    return [float(f'{v:.5g}') if np.isfinite(v) else None for v in y]

  return {
    'metric': metric,
    'x': x,
    'axis': 'log' if log else 'linear',
    'range': [0, 1] if share else None,
    'lines': {
      name: {k: numbers(v) for k, v in one._asdict().items()}
      for name, one in lines.items()
    },
  }


def _groups(table: Table) -> list[dict[str, Any]]:
  """The groups of charts of a table: title, colours of lines, charts."""
  groups: list[dict[str, Any]] = []
  if table.x is None:
    return groups
  for title, names in facets(table).items():
    charts = []
    for metric in table.metrics:
      lines = {
        name: line(table.series[key], table.x, metric)
        for name, key in names.items()
      }
      charts.append(chart(metric, table.x, lines))
    if charts := list(filter(None, charts)):
      colours = palette.colours(list(names))
      groups.append({'title': title, 'colours': colours, 'charts': charts})
  return groups


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


def _section(table: Table) -> dict[str, Any]:
  """What the template says about a table."""
  if table.plain:
    rows = [list(row.values()) for row in table.plain[:_MAX_ROWS]]
    lines, seeds = [table.metrics, *rows], ''
  else:
    lines, seeds = summary(table), _num_seeds(table)
  return {
    'title': table.title,
    'groups': _groups(table),
    'lines': lines,
    'num_labels': len(table.labels),
    'more': max(len(table.plain) - _MAX_ROWS, 0),
    'seeds': seeds,
    'of': 'the last evaluation' if table.x else 'each seed',
  }


def _configs(configs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A table for all folders with the same keys; what differs comes first."""
  groups: dict[tuple, list[str]] = {}
  for folder, config in configs.items():
    groups.setdefault(tuple(sorted(config)), []).append(folder)
  found = []
  for keys, names in groups.items():
    texts = {key: [json.dumps(configs[f][key]) for f in names] for key in keys}
    rows = [(key, texts[key], len(set(texts[key])) > 1) for key in keys]
    found.append(
      {'folders': names, 'rows': sorted(rows, key=lambda r: not r[2])}
    )
  return found


def page(found: Found, title: str = 'Results') -> str:
  """The whole page."""
  template = pathlib.Path(__file__).with_suffix('.html').read_text()
  environment = jinja2.Environment(autoescape=True, trim_blocks=True)
  return environment.from_string(template).render(
    title=title,
    bokeh=resources.Resources(
      'inline', components=['bokeh', 'bokeh-api'], log_level='warn'
    ).render(),
    sections=[_section(table) for table in found.tables],
    pictures={
      name: base64.b64encode(content).decode()
      for name, content in found.pictures.items()
    },
    configs=_configs(found.configs),
    shown=_SHOWN,
    open=_OPEN,
  )
