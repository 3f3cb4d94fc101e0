"""The logs of the authors, and our runs beside them."""

import pathlib
from typing import Any

import numpy as np

from ...harness.cells import Rows
from ...reporting import logs, pictures, tables

FOLDER = pathlib.Path(__file__).parent


def compared(rows: Rows) -> list[dict[str, Any]]:
  """A line for every epoch that was run and is in the official curves."""
  known, lines = logs.curves(FOLDER), []
  for (name, epoch), runs in tables.split_by(rows, 'cell', 'epoch'):
    if name not in known or epoch > known[name].shape[1]:
      continue
    official = known[name][:, int(epoch) - 1]
    ours = 100 * tables.column(runs, 'accuracy').mean()
    lines.append(
      {
        'cell': name,
        'epoch': int(epoch),
        'official': f'{official.mean():.2f}',
        'lowest': f'{official.min():.2f}',
        'highest': f'{official.max():.2f}',
        'ours': f'{ours:.2f}',
        'difference': f'{ours - official.mean():+.2f}',
      }
    )
  return lines


def at_the_end(rows: Rows) -> list[dict[str, Any]]:
  """A line for every cell that was run for 100 epochs and has a number."""
  known, lines = logs.means(FOLDER), []
  for name, runs in tables.split(rows, 'cell').items():
    last = [row for row in runs if 95 < row['epoch'] <= 100]
    if name not in known or len(last) < 5:
      continue
    mean, deviation = (known[name][k] for k in ('last5_mean', 'last5_std'))
    ours = 100 * tables.column(last, 'accuracy').mean()
    lines.append(
      {
        'cell': name,
        'official': f'{mean} ± {deviation}',
        'ours': f'{ours:.2f}',
        'difference': f'{ours - float(mean):+.2f}',
      }
    )
  return lines


def difference(rows: Rows, name: str) -> float:
  """How far the mean over epochs is from the official one, in points."""
  points = [
    float(line['difference']) for line in compared(rows) if line['cell'] == name
  ]
  return abs(float(np.mean(points or [np.nan])))


def figure(rows: Rows):
  """Ours, a line per seed, over the band and the mean of the official ones."""
  known = logs.curves(FOLDER)
  of_cells = {k: v for k, v in tables.split(rows, 'cell').items() if k in known}
  columns = max(min(4, len(of_cells)), 1)
  drawing, axes = pictures.panels(
    -(-len(of_cells) // columns), columns, sharex=True, sharey=True
  )
  for place, (name, of_cell) in zip(axes.flat, of_cells.items()):
    epochs = int(tables.column(of_cell, 'epoch').max())
    values = known[name][:, :epochs]
    at = 1 + np.arange(values.shape[1])
    place.fill_between(
      at, values.min(0), values.max(0), color='0.5', alpha=0.3, linewidth=0
    )
    place.plot(at, values.mean(0), '--', color='0.3', label='official')
    for seed, of_seed in tables.split(of_cell, 'seed').items():
      place.plot(
        tables.column(of_seed, 'epoch'),
        100 * tables.column(of_seed, 'accuracy'),
        label=f'ours, seed {seed}',
      )
    place.set_title(name)
  axes[0, 0].legend()
  for place in axes[-1]:
    place.set_xlabel('epoch')
  for place in axes[:, 0]:
    place.set_ylabel('test accuracy (%)')
  return drawing
