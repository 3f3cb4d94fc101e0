"""Pictures of rows, for files: a server has no screen."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from ..harness import output
from . import palette, tables
from .tables import Pivot, Rows

# Not in a notebook, which has chosen how to show them.
if matplotlib.get_backend(auto_select=False) is None:
  matplotlib.use('agg')


def save(figure: plt.Figure, path: pathlib.Path, dpi: int = 100) -> None:
  """The whole picture in one step; closes it."""
  with output.replacing(path) as temporary:
    # Without the version of the library, files change when pictures do.
    figure.savefig(
      temporary, dpi=dpi, format=path.suffix[1:], metadata={'Software': None}
    )
  plt.close(figure)


def panels(rows: int = 1, columns: int = 1, **options):
  """A figure and its axes `[rows, columns]`, with room for their labels."""
  size = options.pop('figsize', (4.5 * columns, 3.6 * rows))
  figure, axes = plt.subplots(
    rows, columns, figsize=size, layout='constrained', squeeze=False, **options
  )
  for each in axes.flat:
    each.grid(alpha=0.3)
  return figure, axes


def curves(
  axes: plt.Axes,
  series: Mapping[str, Rows],
  x: str = 'round',
  y: str = 'accuracy',
  *,
  scale: float = 1.0,
  styles: Mapping[str, str] | None = None,
) -> None:
  """A line per series: the mean over seeds, a band from worst to best."""
  colours = palette.colours(list(series))
  for name, rows in series.items():
    if not rows:
      continue
    at = tables.split(rows, 'round').values()
    places = [np.mean(tables.column(group, x)) for group in at]
    values = [scale * tables.column(group, y) for group in at]
    style = (styles or {}).get(name, '-')
    means = [v.mean() for v in values]
    axes.plot(places, means, style, color=colours[name], label=name)
    axes.fill_between(
      places,
      [v.min() for v in values],
      [v.max() for v in values],
      alpha=0.15,
      color=colours[name],
      linewidth=0,
    )


def heatmap(
  cells: Pivot,
  title: str,
  notes: Mapping[tuple[str, str], str] | None = None,
) -> plt.Figure:
  """Mean accuracies (%) of a table, as colours; notes stand below them."""
  rows, columns = tables.axes(cells)
  # Inches: labels of rows lie, those of columns nearly lie.
  margin = max(2, 1.2 + 0.08 * max(map(len, rows)))
  notes = notes or {}
  each = max(0.9, 0.07 * max(map(len, notes.values()), default=0))
  height = 1.2 + 0.4 * len(rows) + 0.03 * max(map(len, columns))
  # A long title is broken, and never clipped.
  width = max(margin + each * len(columns), 4.0)
  figure, axes = plt.subplots(figsize=(width, height), layout='constrained')
  nothing = np.array(np.nan)
  means = np.array(
    [[cells.get((r, c), nothing).mean() for c in columns] for r in rows]
  )
  image = axes.imshow(means, vmin=0, vmax=100, cmap='viridis', aspect='auto')
  axes.set_xticks(range(len(columns)), columns, rotation=20, ha='right')
  axes.set_yticks(range(len(rows)), rows)
  for (i, j), value in np.ndenumerate(means):
    if not np.isnan(value):
      color = 'black' if value > 60 else 'white'
      note = notes.get((rows[i], columns[j]), '')
      style: dict = {'ha': 'center', 'color': color}
      place = 'bottom' if note else 'center'
      axes.text(j, i, f'{value:.0f}', va=place, **style)
      axes.text(j, i, note, va='top', fontsize=7, **style)
  figure.suptitle(_broken(title, int(10 * width)), fontsize='large')
  figure.colorbar(image, label='test accuracy (%)')
  return figure


def _broken(text: str, width: int) -> str:
  lines: list[str] = ['']
  for word in text.split():
    if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
      lines.append(word)
    else:
      lines[-1] = f'{lines[-1]} {word}'.strip()
  return '\n'.join(lines)


def bars(
  axes: plt.Axes, cells: Mapping[str, np.ndarray], label: str = ''
) -> None:
  """A bar per name: the mean over seeds, a line from worst to best.

  A word in place of the bar where a value is infinite.
  """
  names = list(cells)
  drawn = [
    np.zeros(1) if np.isinf(cells[name]).any() else cells[name]
    for name in names
  ]
  means = np.array([np.mean(values) for values in drawn])
  low = means - [np.min(values) for values in drawn]
  high = [np.max(values) for values in drawn] - means
  colours = [palette.colours(names)[name] for name in names]
  axes.barh(names, means, xerr=np.array([low, high]), color=colours)
  for i, name in enumerate(names):
    if np.isinf(cells[name]).any():
      axes.text(0, i, ' infinite', va='center')
  axes.invert_yaxis()
  axes.set_xlabel(label)


def spread_over(
  axes: plt.Axes, x: Sequence[float], series: Mapping[str, Sequence[np.ndarray]]
) -> None:
  """Means of series over numbers, with standard deviations as error bars."""
  colours = palette.colours(list(series))
  for name, values in series.items():
    axes.errorbar(
      x,
      [np.mean(v) for v in values],
      [np.std(v) for v in values],
      marker='o',
      capsize=3,
      label=name,
      color=colours[name],
    )
