"""The table and the picture at the end of a run."""

import pathlib

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

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
  figure.savefig(path, dpi=150)
  plt.close(figure)
