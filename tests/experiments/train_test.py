"""The binary as its users meet it: results, resuming, and what it refuses."""

import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.harness import output
from experiments.reporting import tables
from tests.experiments.calls import call_train, words

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
  'num_workers': 8,
  'num_byzantine': 2,
  'aggregator': 'coordinate_median',
  'rounds': 6,
  'eval_every': 2,
  'num_seeds': 2,
}


def run(output_dir, **changed):
  return call_train(*words(output_dir, **changed))


def rows_of(folder):
  return output.numbers(output.read_rows(folder / 'metrics.csv'))


def accuracy(folder):
  """Mean over seeds of the last row of each."""
  return tables.percent(rows_of(folder)).mean()


def last_state(folder):
  newest = sorted((folder / 'checkpoints').iterdir())[-1]
  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.leaves(checkpointer.restore(newest.absolute()))


# Handwritten digits, MLP 64-32-10, n = 25, 400 rounds, 3 seeds: the defaults.
CLAIMS = {
  'a small push backwards ruins distances': (
    {'momentum': 0.0, 'attack': 'inner_product_manipulation(epsilon=0.1)'},
    {
      'krum': (0, 20),
      'geometric_median': (0, 20),
      'centered_clipping(radius=1.0)': (92, 100),
    },
  ),
  'momentum repairs coordinates': (
    {'momentum': 0.9, 'attack': 'inner_product_manipulation(epsilon=0.1)'},
    {'coordinate_median': (88, 100), 'trimmed_mean': (88, 100)},
  ),
  'loud attackers ruin the mean only': (
    {
      'momentum': 0.0,
      'attack': 'sign_flip(scale=10.0)',
      'num_byzantine': 5,
    },
    {
      'mean': (0, 15),
      'coordinate_median': (85, 100),
      'centered_clipping(radius=0.1)': (85, 100),
    },
  ),
}


@pytest.mark.parametrize(
  'claim',
  [
    pytest.param(
      claim, marks=() if str(claim).startswith('momentum') else pytest.mark.slow
    )
    for claim in CLAIMS
  ],
)
def test_handwritten_digits(claim, tmp_path):
  changed, bounds = CLAIMS[claim]
  run(tmp_path, aggregator='; '.join(bounds), eval_every=200, **changed)
  folders = {rule: tmp_path / output.slug(rule) for rule in bounds}
  measured = {rule: accuracy(folder) for rule, folder in folders.items()}
  for rule, (low, high) in bounds.items():
    assert low <= measured[rule] <= high, measured
  assert (tmp_path / 'curve.png').stat().st_size > 10_000


def test_a_run_leaves_its_files(tmp_path):
  printed = run(tmp_path, **SMALL)
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['aggregator'] == 'coordinate_median'
  assert config['num_workers'] == 8 and config['learning_rate'] == 0.5
  rows = rows_of(tmp_path)
  assert [(r['round'], r['seed']) for r in rows] == [
    (done, seed) for done in (0, 2, 4, 6) for seed in (0, 1)
  ]
  assert all(0 <= r['balanced_accuracy'] <= 1 for r in rows)
  # Before the first round nothing of it can be averaged.
  columns = ('train_loss', 'aggregation_error', 'num_nonfinite')
  for row in rows:
    assert all((row[k] != row[k]) == (row['round'] == 0) for k in columns)
  assert 'validation_accuracy' not in rows[0]
  assert (tmp_path / 'curve.png').exists()
  assert 'class-balanced' in printed and 'coordinate_median' in printed


def test_every_rule_meets_every_attack_and_the_command_of_each_is_printed(
  tmp_path,
):
  rules = ('mean', 'bucketing(bucket_size=2), coordinate_median')
  attacks = ('sign_flip(scale=10.0)', 'alie(z=1.5)')
  several = {'aggregator': '; '.join(rules), 'attack': '; '.join(attacks)}
  changed = {**SMALL, **several, 'rounds': 2}
  printed = run(tmp_path / 'all', **changed, validation=True)
  for attack in attacks:
    assert f'2 of 8 workers send {attack}; 2 rounds, 2 seeds' in printed
  lines = [line for line in printed.splitlines() if 'python -m' in line]
  commands = [shlex.split(line) for line in lines]
  pairs = list(itertools.product(attacks, rules))
  for command, (attack, rule) in zip(commands, pairs, strict=True):
    assert command[:3] == ['python', '-m', 'experiments.train']
    assert {f'--attack={attack}', f'--aggregator={rule}'} <= {*command}
  folders = [tmp_path / 'all' / output.slug('; '.join(pair)) for pair in pairs]
  assert len({rows_of(folder)[-1]['loss'] for folder in folders}) == 4
  call_train(*commands[-1][3:], f'--output_dir={tmp_path / "alone"}')
  for file in ('metrics.csv', 'config.json'):
    alone = (tmp_path / 'alone' / file).read_bytes()
    assert alone == (folders[-1] / file).read_bytes()
  assert 0 < rows_of(folders[-1])[-1]['validation_accuracy'] < 1


def test_seeds_in_one_program_equal_seeds_alone(tmp_path):
  run(tmp_path / 'both', **SMALL)
  run(tmp_path / 'second', **{**SMALL, 'seed': 1, 'num_seeds': 1})
  both = last_state(tmp_path / 'both')
  alone = last_state(tmp_path / 'second')
  for x, y in zip(both, alone):
    np.testing.assert_allclose(x[1], y[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'num_local_steps', [0, pytest.param(2, marks=pytest.mark.slow)]
)
def test_devices_agree(tmp_path, num_local_steps):
  changed = {**SMALL, 'num_local_steps': num_local_steps, 'rounds': 4}
  changed['method'] = 'fed_opt' if num_local_steps else 'robust'
  for num_devices in (1, 8):
    run(tmp_path / str(num_devices), **changed, num_devices=num_devices)
  for name in ('loss', 'train_loss', 'aggregation_error'):
    one, eight = (
      tables.column(rows_of(tmp_path / devices), name) for devices in '18'
    )
    np.testing.assert_allclose(one, eight, rtol=1e-5)


@pytest.mark.parametrize(
  'changed',
  [
    {'attack': 'label_flip', 'partition': 'dirichlet_by_worker(alpha=0.5)'},
    {'attack': 'constant(value=nan)', 'partition': 'iid(long_tail=0.6)'},
    {
      'attack': 'none',
      'pre_aggregators': 'bucketing(bucket_size=2)',
      'optimizer': 'normalized_sgd',
      'redraw_byzantine': True,
      'partition': 'label_sorted',
    },
    pytest.param(
      {
        'model': 'dropout_cnn',
        'schedule': 'cosine',
        'optimizer': 'adam',
        'rounds': 2,
      },
      marks=pytest.mark.slow,
    ),
    {
      'attack': 'alie(z=1.0)',
      'search': 'strength, gradient(num_steps=2)',
      'augment': True,
      'worker_map': '4',
    },
  ],
)
def test_flags_combine(changed, tmp_path):
  run(tmp_path, **{**SMALL, 'rounds': 2, 'num_seeds': 1, **changed})
  assert np.isfinite(accuracy(tmp_path))


LONG = {
  **SMALL,
  'rounds': 3000,
  'eval_every': 500,
  'aggregator': 'centered_clipping(radius=0.1)',
}


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
  folder = tmp_path / 'killed'
  killed = subprocess.Popen(
    [sys.executable, '-m', 'experiments.train', *words(folder, **LONG)],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 300
  while not (folder / 'checkpoints/00001000').exists():
    assert killed.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  done = {path.name for path in (folder / 'checkpoints').iterdir()}
  assert '00003000' not in done  # It was killed before its end.
  run(folder, resume=True)
  run(tmp_path / 'straight', **LONG)
  files = [tmp_path / name / 'metrics.csv' for name in ('straight', 'killed')]
  assert files[0].read_bytes() == files[1].read_bytes()
  for x, y in zip(
    last_state(tmp_path / 'straight'), last_state(tmp_path / 'killed')
  ):
    np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_dropout_is_the_same_after_a_stop(tmp_path):
  small = {**SMALL, 'model': 'dropout_cnn', 'num_seeds': 1, 'rounds': 4}
  run(tmp_path / 'straight', **small)
  run(tmp_path / 'stopped', **{**small, 'rounds': 2, 'schedule_rounds': 4})
  run(tmp_path / 'stopped', **small, resume=True)
  both = last_state(tmp_path / 'straight'), last_state(tmp_path / 'stopped')
  for x, y in zip(*both):
    np.testing.assert_array_equal(x, y)


REFUSED = {
  'krum with too few workers': (
    {'aggregator': 'krum', 'num_byzantine': 3},
    r'krum needs num_workers >= 2 \* num_byzantine \+ 3, got 8 and 3',
  ),
  'no honest majority': (
    {'num_byzantine': 4},
    r'num_workers > 2 \* num_byzantine, got 8 and 4',
  ),
  'a rule that nobody knows': (
    {'aggregator': 'krumm'},
    "--aggregator: unknown name 'krumm', did.*; known are .*centered_clipping",
  ),
  'workers that do not fit the devices': (
    {'num_devices': 3},
    'num_workers to be a multiple of the 3 devices',
  ),
  'an empty shard': (
    {'partition': 'dirichlet_by_class(alpha=0.001)', 'num_workers': 100},
    'every worker must have an example, got none for worker',
  ),
  'a missing data set': (
    {'dataset': 'mnist', 'data_dir': 'nowhere'},
    'nowhere',
  ),
  'a network that nobody knows': (
    {'model': 'mlpp'},
    "--model: unknown name 'mlpp', did you mean 'mlp'",
  ),
  'a method that is no call': (
    {'method': 'fed_prox(0.1)'},
    r'--method=fed_prox\(0.1\): expected name',
  ),
  'crops of what workers draw': (
    {'augment': True, 'num_local_steps': 2, 'method': 'fed_opt'},
    '--augment is not for --method=fed_opt',
  ),
  'participants of a round that sends gradients': (
    {'num_participants': 3},
    '--num_participants is not for --method=robust',
  ),
  'a method that nobody knows': ({'method': 'sgd'}, "unknown name 'sgd'"),
  'a graph without gossip': (
    {'topology': 'complete'},
    '--topology is not for --method=robust',
  ),
  'speeds that are none': (
    {'method': 'fedbuff', 'speeds': '1,-2'},
    "--speeds must be numbers above zero, .* got '1,-2'",
  ),
  'resuming from nowhere': (
    {'resume': True, 'output_dir': ''},
    '--resume needs --output_dir',
  ),
  'resuming what never began': (
    {'resume': True},
    r'there is no config\.json',
  ),
  'the same rule twice': (
    {'aggregator': 'mean; krum; mean'},
    'names the same rule twice',
  ),
  'the same attack twice': (
    {'attack': 'none; none'},
    'names the same attack twice',
  ),
  'no rule': ({'aggregator': ';'}, '--aggregator names no rule'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refuses(case, tmp_path):
  changed, message = REFUSED[case]
  with pytest.raises(SystemExit, match=message):
    run(**{'output_dir': tmp_path / 'new', **SMALL, 'num_seeds': 1, **changed})
  assert not (tmp_path / 'new').exists()


def test_never_overwrites(tmp_path):
  (tmp_path / 'precious').write_text('data')
  with pytest.raises(SystemExit, match='is not empty'):
    run(tmp_path, **SMALL)
  with pytest.raises(SystemExit, match=r'no config\.json'):
    run(tmp_path, **SMALL, resume=True)
  assert [p.name for p in tmp_path.iterdir()] == ['precious']
  assert (tmp_path / 'precious').read_text() == 'data'


def test_attackers_that_change_are_drawn_per_seed(tmp_path):
  changed = {**SMALL, 'redraw_byzantine': True, 'rounds': 4}
  run(tmp_path / 'both', **changed)
  run(tmp_path / 'second', **{**changed, 'seed': 1, 'num_seeds': 1})
  both, alone = (last_state(tmp_path / name) for name in ('both', 'second'))
  for x, y in zip(both, alone):
    np.testing.assert_allclose(x[1], y[0], rtol=1e-5, atol=1e-6)


def test_resumes_only_the_same_run_from_a_sound_checkpoint(tmp_path):
  run(tmp_path, **SMALL)
  before = (tmp_path / 'metrics.csv').read_bytes()
  with pytest.raises(
    SystemExit, match='--learning_rate is 0.5 there and 0.1 here'
  ):
    run(tmp_path, **SMALL, resume=True, learning_rate=0.1)
  run(tmp_path, **SMALL, resume=True)  # Nothing is left to do.
  assert (tmp_path / 'metrics.csv').read_bytes() == before
  (tmp_path / 'metrics.csv').rename(tmp_path / 'kept.csv')
  with pytest.raises(SystemExit, match=r'metrics\.csv has no rows of it'):
    run(tmp_path, **SMALL, resume=True)
  (tmp_path / 'kept.csv').rename(tmp_path / 'metrics.csv')
  newest = sorted((tmp_path / 'checkpoints').iterdir())[-1]
  for file in newest.rglob('*'):
    if file.is_file():
      file.write_bytes(b'garbage')
  with pytest.raises(SystemExit, match='cannot be read; delete that folder'):
    run(tmp_path, **SMALL, resume=True)
  assert (tmp_path / 'metrics.csv').read_bytes() == before


def test_local_steps_go_further_in_a_round(tmp_path):
  shared = SMALL | {'momentum': 0.0, 'learning_rate': 1.0}
  ends = {}
  for steps in (1, 10):
    folder = tmp_path / str(steps)
    run(
      folder,
      **shared,
      method='fed_opt',
      num_local_steps=steps,
      num_participants=4,
      local_learning_rate=0.3,
    )
    ends[steps] = accuracy(folder)
  assert ends[10] > ends[1] + 20
