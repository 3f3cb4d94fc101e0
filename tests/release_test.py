"""What is released, as a stranger has it: installed, and far from the clone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import byzjax
from tests.typing import marks

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow


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


@pytest.fixture(scope='module')
def with_experiments(dist, installed, tmp_path_factory):
  """The same with what the programs need."""
  folder = tmp_path_factory.mktemp('far')
  (wheel,) = dist.glob('*.whl')
  call(installed, '-m', 'pip', 'install', '--quiet', f'{wheel}[experiments]',
       cwd=folder)  # fmt: skip
  return installed


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
  tracked = call('git', 'ls-files', 'byzjax', 'experiments', cwd=ROOT)
  there = {
    name.replace('experiments/', 'byzjax/experiments/', 1)
    for name in tracked.splitlines()
    if not name.endswith('.png')
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
  for name in marks.FILES:
    shutil.copy(ROOT / 'tests/typing' / name, tmp_path)
  found = call(installed, '-m', 'mypy', '--strict', '--ignore-missing-imports',
               *marks.FILES, cwd=tmp_path, fails=True)  # fmt: skip
  assert marks.reported(found) == marks.marked(), found


def test_the_programs_run_without_a_clone(with_experiments, tmp_path):
  byzjax_ = with_experiments.with_name('byzjax')
  call(byzjax_, 'doctor', cwd=tmp_path)
  found = call(byzjax_, 'train', '--rounds=2', '--aggregator=krum',
               '--output_dir=krum', cwd=tmp_path)  # fmt: skip
  (line,) = [x for x in found.splitlines() if x.startswith('python -m ')]
  module, *rest = line.removeprefix('python -m ').split()
  assert module == 'byzjax.experiments.train'
  call(with_experiments, '-m', module, *rest, cwd=tmp_path)
  call(byzjax_, 'grid', '--suite=leaderboard', '--quick', cwd=tmp_path)
  call(byzjax_, 'report', 'krum', cwd=tmp_path)
  assert (tmp_path / 'report.html').is_file()
  assert '# Scorecard' in call(byzjax_, 'scorecard', cwd=tmp_path)
