"""Two processes of four devices: one run, and both end when one is killed."""

import csv
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.harness import distributed, output
from tests.experiments.calls import call_train, words

ROOT = pathlib.Path(__file__).parents[2]
RUN = {
  'num_workers': 8,
  'num_byzantine': 2,
  'aggregator': 'coordinate_median',
  'rounds': 60,
  'eval_every': 10,
  'num_seeds': 1,
  'num_devices': 8,
}


@pytest.fixture(autouse=True, scope='module')
def _parsed_flags():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['distributed_test'])


def free_port():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    return server.getsockname()[1]


@pytest.fixture
def start():
  """Starts both; what they say goes to files beside the folder."""
  started = []

  def start_both(folder, *more):
    port = free_port()
    own = [*words(folder, **RUN), f'--coordinator_address=127.0.0.1:{port}']
    own += ['--num_processes=2', '--heartbeat_seconds=10', *more]
    for i in range(2):
      command = [sys.executable, '-m', 'experiments.train', *own]
      with folder.with_suffix(f'.{i}').open('w') as file:
        started.append(
          subprocess.Popen(
            [*command, f'--process_id={i}'],
            cwd=ROOT,
            env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
            stdout=file,
            stderr=subprocess.STDOUT,
          )
        )
    return started[-2:]

  yield start_both
  for process in started:
    process.kill()
    process.wait()


def metrics(folder):
  with (folder / 'metrics.csv').open() as file:
    columns, *rows = csv.reader(file)
  return columns, np.array(rows, float)


@pytest.mark.parametrize(
  ('victim', 'how'),
  [
    pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
  ],
)
def test_a_killed_process_ends_both_and_they_resume(
  victim, how, start, tmp_path
):
  call_train(*words(tmp_path / 'one', **RUN))
  folder = tmp_path / 'two'
  processes = start(folder)
  deadline = time.monotonic() + 300
  while not (folder / 'checkpoints/00000010').exists():
    assert time.monotonic() < deadline
    assert all(p.poll() is None for p in processes)
    time.sleep(0.02)
  processes[victim].send_signal(how)
  assert processes[victim].wait(timeout=60) == -how
  other = 1 - victim
  assert processes[other].wait(timeout=120) == 1
  said = folder.with_suffix(f'.{other}').read_text()
  *_, last = said.strip().splitlines()
  assert last.startswith(f'process {other} of 2: ')
  assert 'another process is gone' in last and '--resume' in last
  done = {path.name for path in (folder / 'checkpoints').iterdir()}
  assert '00000060' not in done  # It was killed before its end.

  processes = start(folder, '--resume')
  assert [p.wait(timeout=300) for p in processes] == [0, 0]
  printed = [folder.with_suffix(f'.{i}').read_text() for i in range(2)]
  assert ['class-balanced' in text for text in printed] == [True, False]
  columns, rows = metrics(folder)
  expected_columns, expected = metrics(tmp_path / 'one')
  assert columns == expected_columns
  np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


REFUSED = {
  'who am I': (
    {'num_processes': 2, 'coordinator_address': 'localhost:1'},
    'several processes need --process_id, too',
  ),
  'how many are we': (
    {'process_id': 0},
    'need --coordinator_address and --num_processes, too',
  ),
  'a process too many': (
    {
      'num_processes': 2,
      'process_id': 2,
      'coordinator_address': 'localhost:1',
    },
    '--process_id=2 must be less than --num_processes=2',
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refuses(case):
  given, message = REFUSED[case]
  with flagsaver.flagsaver(**given):
    with pytest.raises(ValueError, match=message):
      distributed.initialize()


def test_every_process_needs_the_flags_and_the_folder_of_process_0(
  tmp_path, monkeypatch
):
  output.open_folder(tmp_path / 'run', {'rounds': 2})
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  output.open_folder(tmp_path / 'run', {'rounds': 2})
  with pytest.raises(
    ValueError, match='every process .*rounds is 2 there and 3 here'
  ):
    output.open_folder(tmp_path / 'run', {'rounds': 3})
  with pytest.raises(ValueError, match='all processes need the same --output'):
    output.open_folder(tmp_path / 'other', {'rounds': 2})
  assert not (tmp_path / 'other').exists()


def test_one_process_joins_nobody():
  assert not distributed.initialize()
  with flagsaver.flagsaver(num_processes=1, process_id=0):
    assert not distributed.initialize()


def test_a_mesh_of_some_devices():
  assert distributed.make_mesh(1) is None
  mesh = distributed.make_mesh(3)
  assert dict(mesh.shape) == {'workers': 3}
  assert mesh.devices.tolist() == jax.devices()[:3]
  with pytest.raises(ValueError, match='more than the 8 devices of this mach'):
    distributed.make_mesh(9)
