"""The tasks that are data sets: one is tuned on, all are trained on."""

import functools

from byzjax import data

from ...harness.cells import Rows
from .. import pooling

PARTITION = 'dirichlet_by_worker(alpha={})'


@functools.cache
def load(name: str, data_dir: str | None) -> data.Dataset:
  """Colours at half the size: a network of one size does for all sets."""
  dataset = data.load(name, data_dir)
  if dataset.train_images.shape[-1] == 1:
    return dataset
  return dataset._replace(
    train_images=pooling.pooled(dataset.train_images, 2),
    test_images=pooling.pooled(dataset.test_images, 2),
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
