"""What is released, as a stranger has it: installed, and far from the clone."""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import byzjax

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# What an editor and mypy say of the public names. All of it is checked, and
# nothing here is run.
TYPED = """
from typing import assert_type

import byzjax
import jax
import jax.numpy as jnp
import optax

rule = byzjax.krum(num_byzantine=2)
assert_type(rule, byzjax.Aggregator)
assert_type(byzjax.alie(z=1.5), byzjax.Attack)
assert_type(byzjax.sign_codec(), byzjax.Codec)
assert_type(
  byzjax.pre_aggregate(byzjax.bucketing(bucket_size=2), rule), byzjax.Aggregator
)
training = byzjax.robust_round(
  lambda params, batch: jnp.sum(params * batch),
  num_workers=8,
  worker=byzjax.worker_momentum(0.9),
  byzantine=2,
  attack=byzjax.alie(z=1.5),
  aggregator=rule,
  optimizer=optax.sgd(0.1),
)
assert_type(training, byzjax.Round)
state = training.init(jnp.zeros(3))
assert_type(state, byzjax.RoundState)
state, info = training.step(state, jnp.ones([8, 3]), jax.random.key(0))
assert_type(info, byzjax.RoundInfo)
assert_type(info.loss, jax.Array)
assert_type(state.params, object)  # error: parameters are any pytree
byzjax.krum(num_byzantines=2)  # error: no such argument
byzjax.krumm  # error: no such name
"""


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
  """The folder with both archives."""
  folder = tmp_path_factory.mktemp('dist')
  call(sys.executable, '-m', 'build', f'--outdir={folder}', ROOT, cwd=folder)
  return folder


@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
  """The Python of an empty environment with the wheel and what it needs."""
  folder = tmp_path_factory.mktemp('venv')
  venv.create(folder, with_pip=True)
  python = folder / 'bin/python'
  (wheel,) = dist.glob('*.whl')
  call(python, '-m', 'pip', 'install', '--quiet', wheel, 'mypy', cwd=folder)
  return python


def call(*command, cwd, fails=False):
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment |= {
    'JAX_PLATFORMS': 'cpu',
    'PIP_CONSTRAINT': str(ROOT / 'constraints.txt'),
    'PIP_DISABLE_PIP_VERSION_CHECK': '1',
  }
  done = subprocess.run(
    [str(word) for word in command],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert (done.returncode != 0) == fails, done.stdout + done.stderr
  return done.stdout


def test_the_wheel_is_the_library_and_nothing_else(dist):
  (wheel,) = dist.glob('*.whl')
  names = zipfile.ZipFile(wheel).namelist()
  version = byzjax.__version__
  assert {name.split('/')[0] for name in names} == {
    'byzjax',
    f'byzjax-{version}.dist-info',
  }
  there = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'byzjax').rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  assert there == {name for name in names if name.startswith('byzjax/')}
  assert 'byzjax/py.typed' in there


def test_the_source_archive_makes_the_same_wheel(dist, tmp_path):
  (archive,) = dist.glob('*.tar.gz')
  with tarfile.open(archive) as file:
    file.extractall(tmp_path, filter='data')
  (source,) = tmp_path.iterdir()
  for name in ('README.md', 'CHANGELOG.md', 'LICENSE', 'pyproject.toml'):
    assert (source / name).is_file()
  call(sys.executable, '-m', 'build', '--wheel', source, cwd=tmp_path)
  (again,) = (source / 'dist').glob('*.whl')
  (wheel,) = dist.glob('*.whl')
  assert again.read_bytes() == wheel.read_bytes()


def test_the_first_example_of_the_readme_runs(installed, tmp_path):
  readme = (ROOT / 'README.md').read_text()
  example = re.search(r'^```python\n(.*?)^```', readme, re.M | re.S)
  (tmp_path / 'example.py').write_text(example[1])
  call(installed, 'example.py', cwd=tmp_path)
  where = 'import byzjax; print(byzjax.__version__, byzjax.__file__)'
  version, file = call(installed, '-c', where, cwd=tmp_path).split()
  assert version == byzjax.__version__ and not file.startswith(str(ROOT))


def test_types_are_shipped(installed, tmp_path):
  (tmp_path / 'typed.py').write_text(TYPED)
  found = call(installed, '-m', 'mypy', '--strict', '--ignore-missing-imports',
               'typed.py', cwd=tmp_path, fails=True)  # fmt: skip
  lines = [int(n) for n in re.findall(r'^typed\.py:(\d+): error', found, re.M)]
  expected = [
    i for i, line in enumerate(TYPED.splitlines(), 1) if '# error' in line
  ]
  assert lines == expected, found
