import re

import pytest

import byzjax
from byzjax import __main__ as cli


def test_doctor_says_what_is_here_and_that_it_works(capsys):
  cli.main(['doctor'])
  printed = capsys.readouterr().out
  assert f'byzjax {byzjax.__version__}, Python 3.' in printed
  assert 'extra [data]: complete' in printed
  assert re.search(r'cpu: \d+ x cpu', printed)
  assert re.search(r'trimmed_mean ends \S+ from the truth', printed)
  assert printed.rstrip().endswith('well')


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(cli.EXTRAS, 'data', ('no-such-package', 'numpy'))
  assert '  extra [data]: without no-such-package' in cli.installed()


def test_a_rule_that_fails_is_an_error(monkeypatch):
  monkeypatch.setattr(cli, 'distance', lambda rule: 1.0)
  with pytest.raises(RuntimeError, match='krum ends 1 from the truth'):
    cli.self_test()


def test_a_command_is_needed(capsys):
  with pytest.raises(SystemExit):
    cli.main([])
  assert 'doctor' in capsys.readouterr().err
