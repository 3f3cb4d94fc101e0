"""The studies as a user starts them, each in a process of its own.

Flags of the studies share names, so that no two can be in one process.
"""

import csv
import subprocess
import sys
import time

import pytest

# A cell of every study, small.
CELLS = {
  'learning_from_history': (
    '--parts=radius',
    '--only=radius, iid, ipm 5, centered',
    '--rounds=3',
    '--radii=1,10',
  ),
  'batch_size': (
    '--only=alie, 3, krum, nm, 2',
    '--batch_sizes=2',
    '--num_gradients=560',
  ),
  'detox': ('--parts=training', '--only=alie, worst, bulyan, D', '--rounds=3'),
  'sign_majority': ('--only=vote, omniscient, 3', '--rounds=3'),
  'magnitude_sign': (
    '--only=local steps',
    '--rounds=3',
    '--batch_size=2',
    '--num_workers=10',
    '--alpha=10',
    '--participation=0.5',
  ),
  'fedbr': (
    '--only=attacks, 0.1, fedbr, alie, nnm',
    '--rounds=3',
    '--local_steps=2',
    '--learning_rates=0.3',
    '--pseudo_weights=0.1',
  ),
  'entropy_sgd': (
    '--only=methods, entropy 5',
    '--gradients=20',
    '--entropy_rates=1',
  ),
  'noisy_softmax': (
    '--only=attacks, annealed, alie',
    '--rounds=3',
    '--attacked_squares=0.1',
    '--examples=5',
  ),
  'wafl': (
    '--only=attacks, wafl, alie, nnm',
    '--rounds=3',
    '--local_steps=2',
    '--ascent_steps=2',
    '--learning_rates=0.3',
  ),
  'qsr': (
    '--only=qsr 2.12, alie, centered',
    '--total_steps=40',
    '--radii=0.1',
  ),
  'delta_sgd': ('--only=delta-sgd, D', '--rounds=3', '--local_steps=2'),
  'savic': (
    '--only=ill, adam, global, messages',
    '--rounds=3',
    '--local_steps=2',
    '--lower_bounds=0.1',
  ),
  'async_byzantine': (
    '--only=fast attackers, alie, places, clipping',
    '--seconds=4',
    '--learning_rates=0.1',
  ),
  'gossip': (
    '--only=bridge, share 0.25, clipped',
    '--rounds=3',
    '--learning_rates=0.1',
  ),
  'curriculum': (
    '--parts=clients',
    '--only=claims, pool 4f',
    '--rounds=3',
    '--local_steps=2',
    '--learning_rates=0.03',
  ),
  'tpsgd': (
    '--only=mlp 2, l2, alie, nnm',
    '--attacked_rounds=3',
    '--learning_rates=0.1',
    '--shares=0.1',
  ),
}


def study(name, *arguments):
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{name}.run', *arguments],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def results(folder):
  with (folder / 'results.csv').open() as file:
    return list(csv.DictReader(file))


# Those whose cells are no images: a loss in every row.
TEXTS_AND_MIXTURES = {
  'ordered_momentum': (
    '--only=16, equal; none; naive',
    '--num_messages=160',
    '--num_evals=2',
    '--rates=0.01',
  ),
  'sharpness': (
    '--only=along, transformer, sgd',
    '--steps=2,3',
    '--fractions=0,.1',
    '--width=8',
  ),
  'landscape': (
    '--only=local, 1, mean-field, 60, own',
    '--worker_width=60',
    '--local_steps=2',
    '--num_workers=4',
    '--partition=iid',
    '--points=2',
  ),
  'async_local': (
    '--tasks=mixture',
    '--only=very, DN + DyLU',
    '--mixture_phases=2',
    '--rates=0.7',
    '--num_evals=2',
  ),
  'dipaco': (
    '--only=paths, DiPaCo, discriminative',
    '--text=sonnets',
    '--num_documents=120',
    '--few_documents=20,40,60',
    '--pretraining_steps=20',
    '--rounds=2',
    '--num_local_steps=2',
    '--num_evals=2',
    '--learning_rates=0.01',
    '--width=8',
  ),
}


# Together the others use all that studies share.
SLOW = {
  'async_local', 'batch_size', 'curriculum', 'delta_sgd', 'detox', 'dipaco',
  'entropy_sgd', 'fedbr', 'gossip', 'landscape', 'learning_from_history',
  'magnitude_sign', 'noisy_softmax',
  'qsr', 'savic', 'sharpness', 'tpsgd', 'wafl',
}  # fmt: skip


def named(cells):
  return [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in cells
  ]


@pytest.mark.parametrize('name', named(CELLS))
def test_a_cell_runs(name, tmp_path):
  folder = tmp_path / 'out'
  found = study(name, *CELLS[name], '--num_seeds=2', f'--output_dir={folder}')
  assert found.returncode == 0, found.stderr
  rows = results(folder)
  assert {row['seed'] for row in rows} == {'0', '1'}
  for row in rows:
    assert 0 <= float(row['accuracy']) <= 1
    assert float(row['bits_up']) > 0
  if name == 'sign_majority':
    # 64-32-10: every worker sends a bit for each of 2410 coordinates.
    assert {float(row['bits_up']) for row in rows} == {7.0 * 2410}


@pytest.mark.parametrize('name', named(TEXTS_AND_MIXTURES))
def test_a_cell_without_images_runs(name, tmp_path):
  folder = tmp_path / 'out'
  found = study(
    name,
    *TEXTS_AND_MIXTURES[name],
    '--num_seeds=2',
    f'--output_dir={folder}',
  )
  assert found.returncode == 0, found.stderr
  rows = results(folder)
  assert {row['seed'] for row in rows} == {'0', '1'}
  assert all(0 < float(row['loss']) < 100 for row in rows)


@pytest.mark.slow
def test_a_cell_of_the_convex_study_runs(tmp_path):
  folder = tmp_path / 'out'
  found = study(
    'convex',
    '--only=box, convex',
    '--num_examples=40',
    '--num_samples=8',
    '--num_iterations=200',
    '--num_seeds=2',
    f'--output_dir={folder}',
  )
  assert found.returncode == 0, found.stderr
  rows = results(folder)
  assert {row['method'] for row in rows} == {'convex', 'convex robust'}
  for row in rows:
    assert 0 <= float(row['pgd']) <= float(row['clean']) <= 100


def test_a_study_that_was_cut_off_goes_on_to_the_same_numbers(tmp_path):
  small = ('--rounds=2', '--num_seeds=1', '--num_workers=3')
  whole = (*small, '--only=vote, invert')
  cut = tmp_path / 'cut'
  one = (*small, '--only=vote, invert, 1', f'--output_dir={cut}')
  assert study('sign_majority', *one).returncode == 0
  again = study('sign_majority', *whole, f'--output_dir={cut}')
  assert again.returncode != 0
  assert 'is not empty' in again.stderr
  other = study(
    'sign_majority', *whole, f'--output_dir={cut}', '--resume', '--momentum=0.5'
  )
  assert other.returncode != 0
  assert '--momentum is 0.9 there and 0.5 here' in other.stderr
  # A row that was torn costs its cell, and no flag is given again.
  text = (cut / 'results.csv').read_text()
  (cut / 'results.csv').write_text(text[:-3])
  resumed = study(
    'sign_majority', '--only=vote, invert', f'--output_dir={cut}', '--resume'
  )
  assert resumed.returncode == 0, resumed.stderr
  straight = tmp_path / 'straight'
  assert (
    study('sign_majority', *whole, f'--output_dir={straight}').returncode == 0
  )

  def sorted_rows(folder):
    return sorted(tuple(row.values()) for row in results(folder))

  assert sorted_rows(cut) == sorted_rows(straight)
  assert len(sorted_rows(cut)) == 3 * 2


def test_a_killed_cell_goes_on_to_the_same_bits(tmp_path):
  cell = (
    '--only=vote, random, 3',
    '--num_seeds=1',
    '--rounds=400',
    '--checkpoint_seconds=0',
  )
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  found = study('sign_majority', *cell, f'--output_dir={straight}')
  assert found.returncode == 0, found.stderr
  command = [sys.executable, '-m', 'experiments.sign_majority.run', *cell]
  with subprocess.Popen([*command, f'--output_dir={killed}']) as process:
    deadline = time.monotonic() + 300
    checkpoints = 'unfinished/*/checkpoints/00000040'
    while not [*killed.glob(checkpoints)] and time.monotonic() < deadline:
      time.sleep(0.01)
    process.kill()
  assert not (killed / 'results.csv').exists()
  assert [*killed.glob('unfinished/*/checkpoints/*')]
  # The rows of the newest checkpoint are torn: the one before it counts.
  (torn,) = killed.glob('unfinished/*/rows.csv')
  torn.write_text(torn.read_text()[:-3])
  resumed = study(
    'sign_majority', cell[0], f'--output_dir={killed}', '--resume'
  )
  assert resumed.returncode == 0, resumed.stderr
  assert results(killed) == results(straight)
  assert len(results(killed)) == 20


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('detox', ('--group_size=7',), 'group_size to divide num_workers'),
    ('batch_size', ('--num_gradients=10',), 'no multiple of 1 x 8'),
    ('learning_from_history', ('--parts=nothing',), 'nothing is none of'),
    ('sign_majority', ('--only=nobody',), 'matches no cell'),
  ],
)
def test_refuses_up_front(name, arguments, message, tmp_path):
  folder = tmp_path / 'out'
  found = study(name, *arguments, f'--output_dir={folder}')
  assert found.returncode != 0
  assert message in found.stdout + found.stderr
  assert not folder.exists()
