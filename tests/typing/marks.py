"""Which lines of `wrong.py` mypy is to report, and which it does."""

import pathlib
import re

FOLDER = pathlib.Path(__file__).parent
FILES = ('right.py', 'wrong.py')


def marked() -> set[tuple[str, int]]:
  """The lines of both files with the mark `# error`."""
  return {
    (name, i)
    for name in FILES
    for i, line in enumerate((FOLDER / name).read_text().splitlines(), 1)
    if '# error' in line
  }


def reported(output: str) -> set[tuple[str, int]]:
  """The lines that mypy found wrong, from what it prints."""
  found = re.findall(r'(\w+\.py):(\d+): error', output)
  return {(name, int(line)) for name, line in found}
