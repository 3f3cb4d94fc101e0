"""Who installed the library alone is told what the binaries need."""

import importlib.util
import pathlib
import runpy

import pytest

import experiments


def test_says_what_is_missing(monkeypatch):
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'orbax' else name
  )
  (folder,) = map(pathlib.Path, experiments.__path__)
  with pytest.raises(ImportError, match=r'need orbax-checkpoint, too: pip'):
    runpy.run_path(str(folder / '__init__.py'))
