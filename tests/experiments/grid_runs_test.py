"""Grids that train: killed, continued, and a row of one trained again."""

import pathlib
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.harness import output
from tests.experiments.calls import call_grid, call_train, words

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_command_of_a_row_trains_it_again(tmp_path):
  grid = {
    'attacks': 'none; alie(z=[0.5, 1.5]), strength',
    'aggregators': 'bucketing(bucket_size=2), centered_clipping(radius=[1, 5])',
    'partitions': 'iid; dirichlet_by_class(alpha=1.0, long_tail=0.9)',
    'schedule': 'step(at=0.5)',
    'optimizer': 'normalized_sgd',
    'num_workers': 6,
    'num_byzantine': 1,
    'num_seeds': 2,
    'rounds': 4,
    'num_evals': 2,
  }
  call_grid(*words(tmp_path / 'grid', **grid))
  text = (tmp_path / 'grid' / 'worst_case.md').read_text()
  lines = [line for line in text.splitlines() if line.startswith('python -m')]
  # Two partitions with three attacks and a control.
  assert len(set(lines)) == len(lines) == 2 * (3 + 1)
  line = next(line for line in lines if 'long_tail' in line and 'z=1.5' in line)
  *_, program = (command := shlex.split(line))[:3]
  assert program == 'experiments.train'
  call_train(*command[3:], f'--output_dir={tmp_path / "again"}')
  again = output.read_rows(tmp_path / 'again' / 'metrics.csv')
  given = dict(word[2:].split('=', 1) for word in command[3:])
  wanted = {
    'attack': 'alie(z=1.5), strength',
    'partition': given['partition'],
    'aggregator': given['aggregator'],
    'learning_rate': given['learning_rate'],
  }
  rows = [
    row
    for row in output.read_rows(tmp_path / 'grid' / 'results.csv')
    if wanted.items() <= row.items()
  ]
  names = sorted({*rows[0]} & {*again[0]})
  assert {'validation_accuracy', 'loss', 'train_loss', 'seed'} <= {*names}
  found, expected = (
    np.array([[row[name] for name in names] for row in there], float)
    for there in (again[2:], rows)  # Without round 0.
  )
  np.testing.assert_allclose(found, expected, atol=1e-4)


RUN = {
  'attacks': 'none; sign_flip(scale=[1.0, 5.0])',
  'aggregators': 'mean',
  'num_workers': 5,
  'num_byzantine': 1,
  'num_seeds': 2,
  'rounds': 600,
  'partitions': 'label_sorted',
}


def test_a_killed_grid_goes_on_to_the_same_bytes(tmp_path, capsys):
  straight, killed = tmp_path / 'a', tmp_path / 'b'
  call_grid(*words(straight, **RUN))
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'experiments.grid',
      *words(killed, **RUN, checkpoint_seconds=0),
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  # In the second program of three, after the first is in the results.
  deadline = time.monotonic() + 300
  while not [*killed.glob('unfinished/1_*/checkpoints/0*')]:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  process.kill()
  process.wait()
  kept = (killed / 'results.csv').read_bytes()
  rows = output.read_rows(killed / 'results.csv')
  assert {row['attack'] for row in rows} == {'none'}
  capsys.readouterr()
  call_grid(f'--output_dir={killed}', '--resume')
  bar = capsys.readouterr().err
  assert '1 of 3' not in bar and '2 of 3' in bar
  for name in ('results.csv', 'worst_case.md', 'leaderboard.md'):
    assert (killed / name).read_bytes() == (straight / name).read_bytes()
  assert (killed / 'results.csv').read_bytes().startswith(kept)
  pictures = ['heatmap_label_sorted_f=1.png', 'worst_case.png']
  assert sorted(path.name for path in killed.glob('*.png')) == pictures
