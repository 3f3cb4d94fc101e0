"""The tasks that are data sets: one is tuned on, all are trained on."""

import functools
from typing import Any

import numpy as np

from byzjax import data

from ...harness import programs
from ...harness.cells import Cell, OwnCell, Rows

PARTITION = 'dirichlet_by_worker(alpha={})'


@functools.cache
def load(name: str, data_dir: str | None) -> data.Dataset:
  """Colours at half the size: a network of one size does for all sets."""
  dataset = data.load(name, data_dir)
  if dataset.train_images.shape[-1] == 1:
    return dataset
  return dataset._replace(
    train_images=halved(dataset.train_images),
    test_images=halved(dataset.test_images),
  )


def halved(images: np.ndarray) -> np.ndarray:
  """Means of 2 x 2 pixels, rounded."""
  count, height, width, channels = images.shape
  windows = images.reshape(count, height // 2, 2, width // 2, 2, channels)
  return np.round(windows.mean((2, 4))).astype(images.dtype)


def on(dataset: str, settings: Any, cell: Cell) -> OwnCell:
  """The cell on a data set that is not the one of the settings."""

  def make_program(seeds):
    options = programs.Options(settings.model, seeds)
    images = load(dataset, settings.data_dir)
    return programs.of_images(cell, images, options)

  runs = len(cell.partitions) * len(cell.values) * settings.num_seeds
  return OwnCell(
    labels=cell.labels, rounds=cell.rounds * runs, make_program=make_program
  )


def name(dataset: str, alpha: float) -> str:
  return f'{dataset}, alpha {alpha:g}'


def named(rows: Rows) -> Rows:
  """The rows with the mix of classes in the name of the task."""

  def task(row):
    _, _, alpha = row['partition'].rstrip(')').partition('alpha=')
    return name(row['task'], float(alpha))

  return [
    row | {'task': task(row)} if 'partition' in row else row for row in rows
  ]
