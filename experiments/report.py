r"""One HTML file about any output folders: curves, tables, configurations.

  python -m experiments.report runs/krum runs/wafl --output=report.html

Finds what `experiments.train`, studies and grids leave below the folders:
`metrics.csv`, `results.csv` and other tables, `config.json`, pictures. The file
needs nothing else, no network either. `--tensorboard=DIR` also writes the
curves as event files (`pip install byzjax[tensorboard]`).
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from .reporting import event_files, folders, html_report

FLAGS = flags.FLAGS
flags.DEFINE_string('output', 'report.html', 'The file to write.')
flags.DEFINE_string('title', 'Results', 'Of the page.')
flags.DEFINE_string('tensorboard', None, 'A new folder for event files.')


def main(argv: Sequence[str]) -> None:
  """Writes the report of the folders that are named."""
  path = pathlib.Path(FLAGS.output)
  if not argv[1:]:
    raise app.UsageError('name one or more folders with results')
  try:
    if path.suffix != '.html':
      raise ValueError(f'--output={path} must end in .html')
    found = folders.find(argv[1:])
    if FLAGS.tensorboard:
      event_files.write(found.tables, pathlib.Path(FLAGS.tensorboard))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_report.page(found, FLAGS.title))
  except (OSError, ValueError) as error:
    sys.exit(f'report: {error}')
  print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
  app.run(main)
