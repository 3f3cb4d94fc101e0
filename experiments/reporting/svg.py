"""Line charts as SVG text, for pages that must stand alone."""

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import ticker

_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 388, 24, 194
_COLORS = 8  # Classes c0, c1, ... of the page; then dashed ones.
_DECADES = 3  # From so many on, a positive quantity has a logarithmic axis.


class Line(NamedTuple):
  """One curve: at `x[k]` the mean, lowest and highest of the seeds."""

  name: str
  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def chart(title: str, x_name: str, lines: Sequence[Line]) -> str:
  """An `<svg>` with a line and a band for each; gaps where not finite.

  Line `i` is `<g class="line cK" data-line="i">`, which styles and scripts of
  the page use. Empty text if nothing is finite.
  """
  finite = np.concatenate([y[np.isfinite(y)] for s in lines for y in s[2:]])
  if not finite.size:
    return ''
  low, high = finite.min(), finite.max()
  log = bool(low > 0 and high >= 10**_DECADES * low)
  fraction = title.endswith('accuracy') and low >= 0 and high <= 1
  y_ticks, y_range = _axis((0, 1) if fraction else (low, high), log)
  xs = np.concatenate([line.x for line in lines])
  x_ticks, x_range = _axis((xs.min(), xs.max()), tight=True)

  def px(x):
    return _scale(x, x_range, (_LEFT, _RIGHT))

  def py(y):
    # A logarithmic axis has no place for zero of another seed; a gap.
    with np.errstate(divide='ignore', invalid='ignore'):
      y = np.log10(y) if log else y
    return _scale(y, y_range, (_BOTTOM, _TOP))

  parts = [
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    f' aria-label="{html.escape(title)}">',
    f'<text class="title" x="{_LEFT}" y="14">{html.escape(title)}</text>',
  ]
  for tick, text in zip(y_ticks, _texts(y_ticks), strict=True):
    y = float(py(np.asarray(tick)))
    parts.append(
      f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
      f'<text class="end" x="{_LEFT - 5}" y="{y + 3.5:.1f}">{text}</text>'
    )
  for tick, text in zip(x_ticks, _texts(x_ticks), strict=True):
    x = float(px(np.asarray(tick)))
    parts.append(
      f'<text class="middle" x="{x:.1f}" y="{_BOTTOM + 15}">{text}</text>'
    )
  middle = (_LEFT + _RIGHT) / 2
  parts.append(
    f'<text class="middle" x="{middle}" y="{_HEIGHT - 5}">'
    f'{html.escape(x_name)}</text>'
  )
  for i, line in enumerate(lines):
    x = px(line.x)
    parts.append(
      f'<g class="line {style(i)}" data-line="{i}">'
      f'<title>{html.escape(line.name)}</title>'
      f'{_band(x, py(line.low), py(line.high))}{_curve(x, py(line.mean))}</g>'
    )
  return ''.join((*parts, '</svg>'))


def style(index: int) -> str:
  """The classes of a line's colour, and of its dashes when colours run out."""
  round_ = min(index // _COLORS, 2)
  return f'c{index % _COLORS}' + (f' dash{round_}' if round_ else '')


def _axis(span, log=False, tight=False):
  """Ticks, and the ends of the axis in the units in which it is linear."""
  low, high = span
  if log:
    # Powers of ten that a float has: not those of its smallest and largest.
    first = max(int(np.floor(np.log10(low))), -307)
    last = min(int(np.ceil(np.log10(high))), 308)
    stride = -(-(last - first) // 5)
    return 10.0 ** np.arange(first, last + 1, stride), (first, last)
  if low == high:
    low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
  ticks = ticker.MaxNLocator(5).tick_values(low, high)
  if tight:
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    return ticks, (low, high)
  return ticks, (ticks[0], ticks[-1])


def _scale(values, ends, pixels):
  (low, high), (start, end) = ends, pixels
  return start + (values - low) / (high - low) * (end - start)


def _texts(ticks):
  """With as many digits as tell the ticks apart."""
  for digits in (4, 6, 9):
    texts = [f'{tick:.{digits}g}' for tick in ticks]
    if len(set(texts)) == len(texts):
      break
  return texts


def _runs(*columns):
  """The stretches in which all columns are finite, as (points, columns)."""
  points = np.stack(columns, axis=1)
  good = np.isfinite(points).all(axis=1)
  edges = np.flatnonzero(np.diff(np.r_[False, good, False].astype(int)))
  return [points[a:b] for a, b in edges.reshape(-1, 2)]


def _path(points):
  return 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)


def _curve(x, y):
  parts = []
  for run in _runs(x, y):
    if len(run) == 1:
      parts.append(f'<circle cx="{run[0, 0]:.1f}" cy="{run[0, 1]:.1f}" r="3"/>')
    else:
      parts.append(f'<path class="curve" d="M{_path(run)}"/>')
  return ''.join(parts)


def _band(x, low, high):
  there = [r for r in _runs(x, low, high) if (r[:, 1] != r[:, 2]).any()]
  return ''.join(
    f'<path class="band" d="M{_path(r[:, :2])}L{_path(r[::-1, ::2])}Z"/>'
    for r in there
  )
