"""Defences that were handed in: a file each, `NAME.py` with a function NAME."""

import pathlib

FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
  """All of them, as flags have them."""
  found = sorted(path.stem for path in FOLDER.glob('*.py'))
  return [f'{__name__}.{n}:{n}' for n in found if n != '__init__']
