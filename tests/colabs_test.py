"""The notebooks run, at toy size, and end in assertions of their own."""

import importlib.util
import re
import shutil

import jax
import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests import notebooks

PATHS = notebooks.paths()
SETUP = notebooks.cells(PATHS[0])[0]
each_notebook = pytest.mark.parametrize('path', PATHS, ids=lambda p: p.stem)


@pytest.fixture
def quickly_compiled():
  """Programs that are run once: less optimised, they take half the time."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def shown(monkeypatch):
  """The numbers of figures that were shown, each time."""
  matplotlib.use('Agg')
  counts = []

  def show():
    counts.append(len(plt.get_fignums()))
    plt.close('all')

  monkeypatch.setattr(plt, 'show', show)
  return counts


# These call what the others call; they run in slow tests.
@pytest.mark.parametrize(
  'path',
  [
    pytest.param(
      path,
      id=path.stem,
      marks=pytest.mark.slow if path.stem[0] in '2367' else (),
    )
    for path in PATHS
  ],
)
def test_a_notebook_runs(path, shown, quickly_compiled, monkeypatch):
  monkeypatch.setenv('BYZJAX_TOY', '1')
  scope = notebooks.run(path)
  assert scope['mesh'].size == jax.device_count()
  assert shown and set(shown) == {1}


@each_notebook
def test_a_notebook_is_kept_without_what_it_printed(path):
  assert path.read_text() == notebooks.stripped(path), (
    'python -m tests.notebooks'
  )


@each_notebook
def test_notebooks_begin_alike_and_name_what_exists(path):
  first = notebooks.cells(PATHS[0])[:2]
  assert notebooks.cells(path)[:2] == first
  for name in re.findall(r'\]\((?!https:)([^)]+)\)', path.read_text()):
    assert (path.parent / name).exists(), name


@pytest.mark.parametrize('in_clone', [True, False])
@pytest.mark.parametrize('has_gpu', [True, False])
def test_the_first_cell_installs_what_the_machine_needs(
  in_clone, has_gpu, monkeypatch, tmp_path
):
  calls = []

  class Shell:
    def run_line_magic(self, name, line):
      calls.append((name, line))

  monkeypatch.chdir(notebooks.FOLDER if in_clone else tmp_path)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(shutil, 'which', lambda name: name if has_gpu else None)
  scope = {'get_ipython': Shell}
  exec(SETUP, scope)
  (name, line), *others = calls
  assert name == 'pip' and not others
  installed = re.findall('"(.*?)"', line.format(**scope))
  source = ('..' if in_clone else 'byzjax') + '[experiments]'
  assert installed[0].startswith(source)
  assert (installed[1] == 'jax[cuda12]') == has_gpu


def test_the_first_cell_installs_nothing_twice():
  exec(SETUP, {})  # Without an interactive shell a magic would fail.
