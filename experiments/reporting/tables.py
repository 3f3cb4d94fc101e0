"""Tables and pictures of results; as a program, a page about folders of them.

  python -m experiments.report runs/krum runs/wafl --output=report.html

`experiments/html_report.py` says what it finds there.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt

from experiments import output

Rows = list[dict[str, Any]]

matplotlib.use('agg')  # Files only: a server has no screen.


def column(rows: list[dict], name: str) -> np.ndarray:
  """One column of `metrics.csv` as floats."""
  return np.array([float(row[name]) for row in rows])


def table(results: dict[str, list[dict]], num_seeds: int) -> str:
  """Test accuracy at the end: mean over seeds, and from worst to best."""
  width = max(map(len, results))
  heads = ['test accuracy (%)', 'class-balanced (%)']
  lines = ['  '.join([f'{"rule":{width}}', *(f'{h:>20}' for h in heads)])]
  for rule, rows in results.items():
    cells = [f'{rule:{width}}']
    for name in ('accuracy', 'balanced_accuracy'):
      last = 100 * column(rows[-num_seeds:], name)
      span = f'({last.min():.1f} to {last.max():.1f})'
      cells.append(f'{last.mean():5.1f} {span:>14}')
    lines.append('  '.join(cells))
  return '\n'.join(lines)


def picture(
  results: dict[str, list[dict]],
  num_seeds: int,
  title: str,
  path: pathlib.Path,
) -> None:
  """Accuracy over rounds: a line per rule, a band from worst to best seed."""
  figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
  for rule, rows in results.items():
    accuracy = 100 * column(rows, 'accuracy').reshape(-1, num_seeds)
    rounds = column(rows, 'round')[::num_seeds]
    (line,) = axes.plot(rounds, accuracy.mean(axis=1), label=rule)
    low, high = accuracy.min(axis=1), accuracy.max(axis=1)
    axes.fill_between(rounds, low, high, alpha=0.2, color=line.get_color())
  axes.set(xlabel='round', ylabel='test accuracy (%)', ylim=(0, 100))
  axes.set_title(title)
  axes.grid(alpha=0.3)
  axes.legend(loc='best')
  save(figure, path, dpi=150)
  plt.close(figure)


def save(figure: plt.Figure, path: pathlib.Path, dpi: int) -> None:
  """The whole picture in one step."""
  with output.replacing(path) as temporary:
    figure.savefig(temporary, dpi=dpi, format=path.suffix[1:])


def final(rows: Rows, column: str = 'accuracy', tail: int = 3) -> np.ndarray:
  """Per seed, the mean of a column over the last evaluations."""
  seeds = sorted({row['seed'] for row in rows})
  per_seed = [[r[column] for r in rows if r['seed'] == s] for s in seeds]
  return np.array([np.mean(values[-tail:]) for values in per_seed])


def select(rows: Rows, **labels: Any) -> Rows:
  """The rows with these values."""
  return [
    row
    for row in rows
    if all(row[key] == value for key, value in labels.items())
  ]


def tuned(rows: Rows, name: str) -> Rows:
  """The rows of the value of a grid that is best on the validation split."""
  values = dict.fromkeys(row[name] for row in rows)
  by_value = {value: select(rows, **{name: value}) for value in values}
  best = max(
    values, key=lambda v: final(by_value[v], 'validation_accuracy').mean()
  )
  return by_value[best]


def pivot(cells: Mapping[tuple[str, str], np.ndarray], digits: int = 1) -> str:
  """A table of mean and standard deviation over seeds, by (row, column)."""
  rows, columns = _axes(cells)
  width = max(map(len, rows))
  lines = ['  '.join([' ' * width, *(f'{c:>12}' for c in columns)])]
  for row in rows:
    line = [f'{row:{width}}']
    for column in columns:
      cell = cells.get((row, column))
      text = (
        '-'
        if cell is None
        else f'{cell.mean():.{digits}f} ± {cell.std():.{digits}f}'
      )
      line.append(f'{text:>12}')
    lines.append('  '.join(line))
  return '\n'.join(lines)


def heatmap(
  cells: Mapping[tuple[str, str], np.ndarray],
  title: str,
  path: pathlib.Path,
  notes: Mapping[tuple[str, str], str] | None = None,
) -> None:
  """The means of a table from 0 to 100, as colours; notes stand below them."""
  rows, columns = _axes(cells)
  # Inches: labels of rows lie, those of columns nearly lie.
  margin = max(2, 1.2 + 0.08 * max(map(len, rows)))
  notes = notes or {}
  each = max(0.9, 0.07 * max(map(len, notes.values()), default=0))
  height = 1.2 + 0.4 * len(rows) + 0.03 * max(map(len, columns))
  size = (margin + each * len(columns), height)
  figure, axes = plt.subplots(figsize=size, layout='constrained')
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
  axes.set_title(title)
  figure.colorbar(image, label='test accuracy (%)')
  save(figure, path, dpi=120)
  plt.close(figure)


def _axes(cells):
  rows = list(dict.fromkeys(row for row, _ in cells))
  return rows, list(dict.fromkeys(column for _, column in cells))


if __name__ == '__main__':
  from experiments import html_report  # Its flags are not for studies.

  flags.adopt_module_key_flags(html_report)
  app.run(html_report.main)
