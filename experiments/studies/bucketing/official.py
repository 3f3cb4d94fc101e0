"""The logs of the authors, and our runs beside them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...harness.cells import Rows
from ...reporting import logs, tables

FOLDER = pathlib.Path(__file__).parent


def last_five(rows: Rows) -> np.ndarray:
  """Per seed, the mean of the last five evaluations, in percent."""
  return np.array(
    [
      100 * np.mean(tables.column(of_seed[-5:], 'accuracy'))
      for of_seed in tables.split(rows, 'seed').values()
    ]
  )


def comparisons(ours: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  """A line for every cell that was run and has an official number."""
  lines = []
  for name, values in ours.items():
    if name not in (published := logs.means(FOLDER)):
      continue
    mean = float(published[name]['last5_mean'])
    deviation = float(published[name]['last5_std'])
    difference = values.mean() - mean
    within = abs(difference) <= 3 * deviation + 2
    lines.append(
      {
        'cell': name,
        'official': f'{mean:.2f} ± {deviation:.2f}',
        'ours': f'{values.mean():.2f}',
        'seeds': len(values),
        'difference': f'{difference:+.2f}',
        'within': 'yes' if within else 'NO',
      }
    )
  return lines


def outside(rows: Rows) -> list[dict[str, Any]]:
  """How far each of our curves leaves the band of the official seeds."""
  lines = []
  for (name, seed), run in tables.split_by(rows, 'cell', 'seed'):
    values = logs.curves(FOLDER).get(name)
    if values is None or len(run) != values.shape[1]:
      continue
    ours = 100 * tables.column(run, 'accuracy')
    below, above = values.min(axis=0) - ours, ours - values.max(axis=0)
    points = np.maximum(np.maximum(below, above), 0)
    lines.append(
      {
        'cell': name,
        'seed': seed,
        'evaluations': len(run),
        'outside': int((points > 0).sum()),
        'by points at most': f'{points.max():.2f}',
      }
    )
  return lines
