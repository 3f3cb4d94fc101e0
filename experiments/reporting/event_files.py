"""The curves of a report as TensorBoard event files, without TensorFlow."""

import math
import pathlib
from collections.abc import Sequence

from ..harness import output
from . import folders


def write(tables: Sequence[folders.Table], folder: pathlib.Path) -> None:
  """A run per series and seed: `FOLDER/TABLE/LABELS/seed=S`.

  Steps are those of the x axis if they are integers, else evaluations.

  Raises:
    ValueError: if tensorboardX is not installed, or the folder is not empty.
  """
  try:
    import tensorboardX
  except ImportError as error:
    raise ValueError(
      f'--tensorboard needs `pip install byzjax[tensorboard]` ({error})'
    ) from error
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'--tensorboard={folder} is not a new folder')
  for table in tables:
    if table.x is None:
      continue
    for key, seeds in table.series.items():
      labels = ','.join(map(str, key))
      for seed, rows in seeds.items():
        run = [*map(output.slug, (table.title, labels)), f'seed={seed}']
        with tensorboardX.SummaryWriter(str(folder.joinpath(*run))) as writer:
          for k, row in enumerate(rows):
            x = row[table.x]
            step = x if isinstance(x, int) else k
            for metric in table.metrics:
              value = row.get(metric, '')
              missing = isinstance(value, str) or math.isnan(value)
              if not missing:
                writer.add_scalar(metric, value, step)
