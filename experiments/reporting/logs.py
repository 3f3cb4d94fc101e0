"""Logs of authors that are committed beside a study: by cell and by seed."""

import csv
import pathlib

import numpy as np


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
