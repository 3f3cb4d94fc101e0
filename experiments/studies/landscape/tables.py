"""Tables and the picture of the study, from its rows."""

import numpy as np
from matplotlib import pyplot as plt

from experiments import report

WAYS = ('constructed', 'straight', 'matched')


def values(rows: report.Rows, what: str, name: str = 'above') -> np.ndarray:
  """Of each seed."""
  return report.column(report.select(rows, what=what), name)


def widths_of(rows: report.Rows) -> list[int]:
  return sorted({row['width'] for row in rows})


def by_width(rows: report.Rows):
  """Trained loss, its change at half the units, and how far it rises."""
  table = {}
  for width in widths_of(rows):
    mine = report.select(rows, width=width)
    half = report.select(mine, count=width // 2)
    table[f'width {width}', 'trained'] = values(mine, 'trained', 'loss')
    table[f'width {width}', 'half kept'] = values(half, 'dropped')
    for way in WAYS:
      table[f'width {width}', way] = values(mine, way)
  return table


def by_kept(rows: report.Rows):
  """The change of the loss, by width and by how many units are kept."""
  dropped = report.select(rows, what='dropped')
  return {
    (f'width {width}', f'{count} kept'): values(
      report.select(dropped, width=width, count=count), 'dropped'
    )
    for count in sorted({row['count'] for row in dropped})
    for width in widths_of(report.select(dropped, count=count))
  }


def by_attack(rows: report.Rows, starts):
  table = {}
  for number, start in enumerate(starts):
    for attack in dict.fromkeys(row['variant'] for row in rows):
      mine = report.select(rows, variant=attack, count=number)
      at = f'{attack}, {start} start'
      table[at, 'robust loss'] = values(mine, 'trained', 'loss')
      for way in WAYS:
        table[at, way] = values(mine, way)
  return table


def by_steps(rows: report.Rows):
  table = {}
  for start in dict.fromkeys(row['variant'] for row in rows):
    for steps in sorted({row['count'] for row in rows}):
      mine = report.select(rows, variant=start, count=steps)
      at = f'{start} start, {steps} steps'
      table[at, 'mean loss'] = values(mine, 'trained', 'loss')
      for what in (*WAYS, 'average', 'matched average'):
        table[at, what] = values(mine, what)
  return table


def curve(row) -> np.ndarray:
  return np.array([float(text) for text in row['curve'].split()])


def excess(rows: report.Rows, points: int) -> float:
  """The most by which a path is above its breakpoints, over all rows."""
  barriers = []
  for row in report.select(rows, what='constructed'):
    losses = curve(row).reshape(-1, points)
    barriers.append(losses.max() - max(losses[:, 0].max(), losses[-1, -1]))
  return max(barriers)


def picture(rows: report.Rows, path) -> None:
  """Changes by units kept, rises by width, and the loss along paths."""
  figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(15, 4), layout='constrained'
  )
  rows = report.select(rows, scaling='mean-field')
  one = report.select(rows, depth=1)
  dropped = report.select(one, what='dropped')
  for width in widths_of(one):
    mine = report.select(dropped, width=width)
    kept = sorted({row['count'] for row in mine})
    means = [
      values(report.select(mine, count=m), 'dropped').mean() for m in kept
    ]
    left.plot(kept, means, marker='.', label=f'width {width}')
  left.set(yscale='log', xlabel='units kept')
  left.set(ylabel='|change of the loss|')
  for axes, numbers in (
    (left, sorted({row['count'] for row in dropped})),
    (middle, widths_of(one)),
  ):
    axes.set_xscale('log')
    axes.set_xticks(numbers, map(str, numbers))
    axes.minorticks_off()
  for depth, style in ((1, '-'), (2, '--')):
    of_depth = report.select(rows, depth=depth)
    widths = widths_of(of_depth)
    for number, way in enumerate(WAYS):
      means = [
        values(report.select(of_depth, width=w), way).mean() for w in widths
      ]
      label = f'{way}, {depth} hidden'
      middle.plot(widths, means, f'C{number}{style}', marker='.', label=label)
  middle.set(yscale='log', xlabel='width')
  middle.set(ylabel='rise of the loss on the way')
  for number, width in enumerate(widths_of(one)[::2]):
    mine = report.select(one, width=width, seed=0)
    for way, style in (('constructed', '-'), ('straight', ':')):
      losses = curve(report.select(mine, what=way)[0])
      place = np.linspace(0, 1, len(losses))
      label = f'width {width}, {way}'
      right.plot(place, losses, f'C{number}{style}', label=label)
  right.set(yscale='log', xlabel='place on the way', ylabel='training loss')
  for axes in (left, middle, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  report.save(figure, path, dpi=80)
  plt.close(figure)
