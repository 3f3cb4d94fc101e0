import importlib.util
import re
import subprocess
import sys

import pytest

import byzjax
from byzjax import __main__ as cli


def test_doctor_says_what_is_here_and_that_it_works(capsys):
  cli.main(['doctor'])
  printed = capsys.readouterr().out
  assert f'byzjax {byzjax.__version__}, Python 3.' in printed
  assert 'extra [data]: complete' in printed
  assert re.search(r'cpu: \d+ x cpu', printed)
  assert re.search(r'trimmed_mean ends \S+ from the true parameters', printed)
  assert re.search(r'passed in \S+ s$', printed.rstrip())


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(cli.EXTRAS, 'data', ('no-such-package', 'numpy'))
  assert '  extra [data]: without no-such-package' in cli.installed()


def test_a_rule_that_fails_is_an_error(monkeypatch):
  monkeypatch.setattr(cli, 'distance', lambda rule: 1.0)
  with pytest.raises(RuntimeError, match='krum ends 1 from the true'):
    cli.self_test()


def test_a_command_is_needed(capsys):
  with pytest.raises(SystemExit):
    cli.main([])
  assert 'doctor' in capsys.readouterr().err


@pytest.fixture
def command_line(monkeypatch):
  """Puts back what a program of the command line changes."""
  monkeypatch.setattr(sys, 'argv', [])
  monkeypatch.setattr(sys, 'path', sys.path[:])


def test_every_program_is_there(command_line, monkeypatch):
  ran = []
  monkeypatch.setattr(
    cli.runpy, 'run_module', lambda module, **_: ran.append((module, sys.argv))
  )
  for name in cli.PROGRAMS:
    cli.main([name, '--a_flag'])
  assert ran == [
    (f'experiments.{name}', [name, '--a_flag']) for name in cli.PROGRAMS
  ]
  assert all(importlib.util.find_spec(module) for module, _ in ran)


def test_a_program_runs_far_from_the_clone(tmp_path):
  # In a process of its own: the flags of a program are those of its process.
  printed = subprocess.run(
    [sys.executable, '-m', 'byzjax', 'studies', '--help'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert 'Studies: async_byzantine' in printed


def test_missing_packages_are_named(command_line, monkeypatch):
  def missing(name):
    raise ImportError("experiments need tqdm, too: pip install 'byzjax[x]'")

  monkeypatch.setattr(cli.importlib, 'import_module', missing)
  with pytest.raises(SystemExit, match='byzjax train: experiments need tqdm'):
    cli.main(['train'])
