"""The leaderboard: which defences stand, from rows that are committed.

  python -m experiments.leaderboard

writes `experiments/LEADERBOARD.md`, its pictures and the table of the guide.
Nothing is run. `python -m experiments.grid --suite=leaderboard --publish` runs
the cells and puts their rows into `experiments/grid/boards` first. With
`--run=FOLDER`, those are put there which such a grid has so far.
"""

import pathlib
import sys

from absl import app, flags

from .grid import board_page, board_store

FLAGS = flags.FLAGS


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    if FLAGS.run:
      board_store.publish_folder(pathlib.Path(FLAGS.run))
  except (OSError, ValueError) as error:
    sys.exit(f'leaderboard: {error}')
  board_page.write()


if __name__ == '__main__':
  flags.DEFINE_string('run', None, 'The folder of a grid that may go on.')
  app.run(main)
