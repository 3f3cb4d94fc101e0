"""Every benchmark at toy size: it measures, and what it writes can be read."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import (
  __main__,
  asynchronous,
  convex,
  devices,
  gradients,
  growth,
  guard,
  local_rounds,
  pictures,
  program,
  records,
  rounds,
  rules,
  tables,
)

MODULES = {
  'asynchronous': asynchronous,
  'convex': convex,
  'devices': devices,
  'gradients': gradients,
  'growth': growth,
  'guard': guard,
  'local_rounds': local_rounds,
  'rounds': rounds,
  'rules': rules,
}


# The others compile for longer; growth runs below, in a process of its own.
QUICKEST = ('asynchronous', 'rounds', 'rules')


def check(record: records.Record) -> None:
  """What is true of every record."""
  assert {'cpu', 'cores', 'caches'} <= set(record.machine)
  assert record.versions['jax'] and record.versions['python']
  assert len(record.load_before) == len(record.load_after) == 3
  assert record.commit and record.command and record.runs
  for run in record.runs:
    assert run.title and run.figures
    for figure in run.figures:
      for seconds in figure[1:4]:
        assert seconds is None or seconds >= 0
      if figure.wall_median is not None and figure.wall_minimum is not None:
        assert figure.wall_minimum <= figure.wall_median
    text = tables.table(record.benchmark, run)
    assert all(figure.name in text for figure in run.figures)


def test_none_is_missing():
  names = {each.name for each in __main__.BENCHMARKS if not each.is_peer}
  assert names == set(MODULES)
  assert {each.name for each in __main__.BENCHMARKS} <= set(tables.COLUMNS)


def test_a_flipped_bit_harms_a_mean_and_no_guard():
  (run,) = guard.measure(guard.QUICK)
  losses = {f.name: f.values['loss_broken'] for f in run.figures}
  floor = losses.pop(guard.FLOOR)
  assert not floor < 1e3
  assert all(loss < 10 for name, loss in losses.items() if 'finite' not in name)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICKEST else pytest.mark.slow)
    for name in MODULES
  ],
)
def test_it_measures_at_toy_size(name, tmp_path):
  module = MODULES[name]
  program.record(
    name,
    module.measure(module.QUICK),
    tmp_path,
    command=f'python -m benchmarks.{name} --quick',
    quick=True,
  )
  record = records.read(tmp_path / f'{name}.json')
  check(record)
  for run in record.runs:
    floors = [f for f in run.figures if f.name == run.floor]
    assert all(f.ratio == 1 for f in floors)
  for path in pictures.draw(record, tmp_path):
    assert path.stat().st_size > 1000


def test_every_rule_takes_the_messages():
  x = jax.ShapeDtypeStruct((15, 50), jnp.float32)
  made = rules.rules(15)
  assert len(made) > 20
  for rule in made.values():
    state = jax.eval_shape(rule.init, jax.ShapeDtypeStruct((50,), x.dtype))
    aggregate, _ = jax.eval_shape(rules.update(rule), x, state)
    assert aggregate.shape == (50,)


def _run(*command: str, **kwargs) -> subprocess.CompletedProcess:
  return subprocess.run(
    command, cwd=records.ROOT, capture_output=True, text=True, **kwargs
  )


def test_all_of_them_run_one_after_the_other(tmp_path):
  done = _run(
    sys.executable,
    *('-m', 'benchmarks', '--quick', '--only=growth,byzpy_rules'),
    *(f'--output_dir={tmp_path}', '--peer_python=/bin/false'),
  )
  # One that fails is said to, and costs no other.
  assert done.returncode == 1
  assert 'failed: byzpy_rules (status 1)' in done.stderr
  record = records.read(tmp_path / 'growth.json')
  check(record)
  assert record.quick
  assert record.command == 'python -m benchmarks.growth --quick'
  assert (tmp_path / 'growth.png').exists()


def test_settings_are_flags(tmp_path):
  done = _run(
    sys.executable,
    *('-m', 'benchmarks.rules', '--quick', '--sizes=6x50,7x50'),
    *('--only=phocas', '--nonumpy', f'--output_dir={tmp_path}'),
  )
  assert done.returncode == 0, done.stderr
  runs = records.read(tmp_path / 'rules.json').runs
  assert [run.title for run in runs] == ['n=6 d=50 f=1', 'n=7 d=50 f=1']
  names = [figure.name for figure in runs[0].figures]
  assert names == ['F', 'phocas']


def test_a_budget_cuts_repeats_and_not_what_is_compiled(tmp_path):
  rules_of = __main__.BENCHMARKS[0]
  whole = __main__.command(rules_of, tmp_path, 1.0, False, 'peer')
  half = __main__.command(rules_of, tmp_path, 0.5, False, 'peer')
  compiling = rules_of.seconds - rules_of.repeating
  assert half[:-1] == whole
  assert half[-1] == f'--seconds={rules_of.seconds / 2 - compiling:.0f}'
  peer = __main__.command(
    __main__.BENCHMARKS[-1], tmp_path, 0.5, False, 'python-of-peers'
  )
  assert peer[0] == 'python-of-peers' and peer[-1] == '--row_seconds=3.0'


@pytest.mark.slow
def test_the_script_for_a_gpu(tmp_path):
  bash = {**os.environ, 'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu'}
  script = 'benchmarks/gpu.sh'
  done = _run('bash', script, env=bash)
  assert done.returncode == 2 and 'usage' in done.stderr
  done = _run('bash', script, str(tmp_path), '--quick', env=bash)
  assert done.returncode == 1 and 'jax sees no GPU' in done.stderr
  flags = ('--quick', '--allow_cpu', '--budget=300')
  done = _run('bash', script, str(tmp_path / 'new'), *flags, env=bash)
  assert done.returncode == 0, done.stderr
  for name in ('rules', 'rounds', 'resnet'):
    check(records.read(tmp_path / f'new/{name}.json'))
  found = json.loads((tmp_path / 'new/resnet.json').read_text())
  assert 'random images: speed only' in found['runs'][0]['title']
  assert found['runs'][0]['settings'] == {'data': 'random'}
