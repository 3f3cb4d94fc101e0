"""What training runs say: a row and a line for each rule."""

import pathlib
from collections.abc import Mapping

from . import pictures, tables
from .tables import Rows


def table(results: Mapping[str, Rows]) -> str:
  """Test accuracy at the end: mean over seeds, and from worst to best."""
  width = max(map(len, results))
  heads = ['test accuracy (%)', 'class-balanced (%)']
  lines = ['  '.join([f'{"rule":{width}}', *(f'{h:>20}' for h in heads)])]
  for rule, rows in results.items():
    cells = [f'{rule:{width}}']
    for name in ('accuracy', 'balanced_accuracy'):
      last = tables.percent(rows, name)
      span = f'({last.min():.1f} to {last.max():.1f})'
      cells.append(f'{last.mean():5.1f} {span:>14}')
    lines.append('  '.join(cells))
  return '\n'.join(lines)


def picture(
  results: Mapping[str, Mapping[str, Rows]], title: str, path: pathlib.Path
) -> None:
  """Accuracy over rounds: a panel per attack, a line per rule, a band of seeds.

  A band is from the worst seed to the best.
  """
  several = len(results) > 1
  size = (5.5 * len(results) if several else 7, 4)
  figure, (row,) = pictures.panels(1, len(results), figsize=size)
  for axes, (attack, of_rules) in zip(row, results.items()):
    pictures.curves(axes, of_rules, scale=100)
    axes.set(xlabel='round', ylabel='test accuracy (%)', ylim=(0, 100))
    axes.set_title(attack if several else f'{title}: {attack}', fontsize=10)
  if several:
    figure.suptitle(title)
  row[0].legend(loc='best')
  pictures.save(figure, path, dpi=150)
