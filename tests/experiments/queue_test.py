"""A queue that is killed anywhere loses nothing and does nothing twice."""

import pytest
from absl.testing import flagsaver

from experiments.harness import distributed, output, queue


def jobs_of(sizes, calls, *, killed_at=None):
  def run(i, folder, advance):
    if i == killed_at:
      raise KeyboardInterrupt
    calls.append((i, folder.name))
    advance(sizes[i])
    return [
      {'job': f'job {i}', 'value': value, 'loss': 0.1 * i}
      for value in (0.5, float('inf'))
    ]

  return [
    queue.Job(
      f'job {i}',
      {'job': f'job {i}', 'value': 0.5},
      size,
      lambda folder, advance, i=i: run(i, folder, advance),
    )
    for i, size in enumerate(sizes)
  ]


@pytest.mark.parametrize('killed_at', [0, 1, 3])
def test_a_killed_queue_goes_on_to_the_same_bytes(killed_at, tmp_path):
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  straight.mkdir()
  killed.mkdir()
  sizes = [1, 5, 2, 3]
  rows = queue.work(jobs_of(sizes, []), straight)
  calls = []
  with pytest.raises(KeyboardInterrupt):
    queue.work(jobs_of(sizes, calls, killed_at=killed_at), killed)
  assert [i for i, _ in calls] == list(range(killed_at))
  assert queue.left(jobs_of(sizes, []), killed) == [*range(killed_at, 4)]
  assert queue.work(jobs_of(sizes, calls), killed) == rows
  assert calls == [(i, f'job_{i}') for i in range(4)]
  files = [folder / 'results.csv' for folder in (straight, killed)]
  assert files[0].read_bytes() == files[1].read_bytes()


def test_the_bar_counts_sizes(tmp_path, capsys):
  queue.work(jobs_of([30, 70], []), tmp_path, 'rounds')
  queue.work(jobs_of([30, 70, 100], []), tmp_path, 'rounds')
  bars = capsys.readouterr().err.replace('\r', '\n').splitlines()
  assert any('100/100' in line for line in bars)
  # Of the second call a half is done when it begins.
  begun = next(line for line in bars if '/200' in line)
  assert begun.strip().startswith('50%') and '100/200' in begun


def test_numbers_are_numbers_again():
  row = {'a': '3', 'b': '-2', 'c': '0.1', 'd': 'inf', 'e': 'krum', 'f': '1e-05'}
  assert output.numbers([row]) == [
    {'a': 3, 'b': -2, 'c': 0.1, 'd': float('inf'), 'e': 'krum', 'f': 1e-05}
  ]


def test_processes_share_the_jobs_and_the_last_puts_them_together(tmp_path):
  straight, shared = tmp_path / 'straight', tmp_path / 'shared'
  straight.mkdir()
  shared.mkdir()
  sizes = [1, 5, 2, 3, 4]
  rows = queue.work(jobs_of(sizes, []), straight)
  calls = {0: [], 1: []}
  with flagsaver.flagsaver(num_processes=2, process_id=1):
    with pytest.raises(KeyboardInterrupt):
      queue.work(jobs_of(sizes, calls[1], killed_at=3), shared)
  with flagsaver.flagsaver(num_processes=2, process_id=0):
    with pytest.raises(SystemExit) as end:
      queue.work(jobs_of(sizes, calls[0]), shared)
  assert end.value.code == 0
  assert not (shared / 'results.csv').exists()
  with flagsaver.flagsaver(num_processes=2, process_id=1):
    assert queue.left(jobs_of(sizes, []), shared) == [3]
    assert queue.work(jobs_of(sizes, calls[1]), shared) == rows
  # Nothing is done twice, and nothing is left of the parts.
  assert [i for i, _ in calls[0]] == [0, 2, 4]
  assert [i for i, _ in calls[1]] == [1, 3]
  assert [path.name for path in shared.iterdir()] == ['results.csv']
  files = [folder / 'results.csv' for folder in (straight, shared)]
  assert files[0].read_bytes() == files[1].read_bytes()


def test_one_process_goes_on_where_several_were_killed(tmp_path):
  sizes, calls = [1, 5, 2, 3], []
  with flagsaver.flagsaver(num_processes=2, process_id=1):
    with pytest.raises(SystemExit):
      queue.work(jobs_of(sizes, calls), tmp_path)
  rows = queue.work(jobs_of(sizes, calls), tmp_path)
  assert [i for i, _ in calls] == [1, 3, 0, 2]
  assert [row['job'] for row in rows[::2]] == [f'job {i}' for i in range(4)]
  assert [path.name for path in tmp_path.iterdir()] == ['results.csv']


@pytest.mark.parametrize(
  'given',
  [
    {'num_processes': 2},
    {'process_id': 1},
    {'num_processes': 2, 'process_id': 2},
    {'num_processes': 2, 'process_id': 0, 'coordinator_address': 'host:1'},
    {'distributed': True},
  ],
)
def test_refuses_half_a_share(given):
  with flagsaver.flagsaver(**given):
    with pytest.raises(ValueError, match='process'):
      distributed.share()


def test_a_job_whose_last_row_is_torn_is_done_again(tmp_path):
  straight, torn = tmp_path / 'straight', tmp_path / 'torn'
  straight.mkdir()
  torn.mkdir()
  queue.work(jobs_of([1, 2], []), straight)
  queue.work(jobs_of([1, 2], []), torn)
  whole = (torn / 'results.csv').read_text()
  # A number that lost its last digits is still a number.
  assert whole.endswith(',0.1\n')
  (torn / 'results.csv').write_text(whole[:-2])
  calls = []
  queue.work(jobs_of([1, 2], calls), torn)
  assert [i for i, _ in calls] == [1]
  assert (torn / 'results.csv').read_text() == whole
  (torn / 'results.csv').write_text(whole.replace('job 0,inf', 'job 0'))
  with pytest.raises(SystemExit, match=r'results\.csv is damaged'):
    queue.work(jobs_of([1, 2], calls), torn)


def test_torn_rows_of_others_are_not_lost(tmp_path):
  queue.work(jobs_of([1, 2], [])[:1], tmp_path)
  text = (tmp_path / 'results.csv').read_text()
  (tmp_path / 'results.csv').write_text(text[:-2])
  with pytest.raises(SystemExit, match='first complete the cells'):
    queue.work(jobs_of([1, 2], [])[1:], tmp_path)
  assert (tmp_path / 'results.csv').read_text() == text[:-2]
