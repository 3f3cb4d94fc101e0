"""Logs of authors that are committed beside a study: by cell and by seed."""

import csv
import pathlib

import numpy as np
from matplotlib import pyplot as plt

from . import pictures, tables


def means(folder: pathlib.Path) -> dict[str, dict[str, str]]:
  """The rows of `official.csv` by their cell: mean and deviation over seeds."""
  with (folder / 'official.csv').open() as file:
    return {row['cell']: row for row in csv.DictReader(file)}


def curves(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Of `official_curves.csv`, by cell: test accuracy (%) [seeds, times]."""
  found: dict[str, list] = {}
  with (folder / 'official_curves.csv').open() as file:
    for row in csv.DictReader(file):
      accuracies = list(map(float, row['accuracies'].split()))
      found.setdefault(row['cell'], []).append(accuracies)
  return {name: np.array(values) for name, values in found.items()}


def figure(
  rows: tables.Rows, folder: pathlib.Path, x: str, every: int = 1
) -> plt.Figure:
  """Ours, a line per seed, over the band and the mean of the official ones.

  Authors evaluated so often in x, a column of ours; their curves end with ours.
  """
  known = curves(folder)
  of_cells = {k: v for k, v in tables.split(rows, 'cell').items() if k in known}
  lines = max(-(-len(of_cells) // 3), 1)
  columns = max(-(-len(of_cells) // lines), 1)
  drawing, axes = pictures.panels(lines, columns, sharex=True, sharey=True)
  for place, (name, of_cell) in zip(axes.flat, of_cells.items()):
    last = int(tables.column(of_cell, x).max()) // every
    values = known[name][:, :last]
    at = every * (1 + np.arange(values.shape[1]))
    place.fill_between(
      at, values.min(0), values.max(0), color='0.5', alpha=0.3, linewidth=0
    )
    place.plot(at, values.mean(0), '--', color='0.3', label='official')
    for seed, of_seed in tables.split(of_cell, 'seed').items():
      place.plot(
        tables.column(of_seed, x),
        100 * tables.column(of_seed, 'accuracy'),
        label=f'ours, seed {seed}',
      )
    place.set_title(name)
  axes[0, 0].legend()
  axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
  for number in range(len(of_cells), axes.size):
    axes.flat[number].set_visible(False)
    axes.flat[number - columns].tick_params(labelbottom=True)
  drawing.supxlabel(x)
  drawing.supylabel('test accuracy (%)')
  return drawing
