"""The logs of the authors, and our runs beside them."""

import pathlib
from typing import Any

import numpy as np

from ...harness.cells import Rows
from ...reporting import logs, tables

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
