"""The notebooks of `colabs/`: their code, run as one program; and as kept.

`python -m tests.notebooks` strips outputs and execution counts from all files,
and numbers their cells.
"""

import json
import pathlib
import re

from tests import markdown

FOLDER = markdown.ROOT / 'colabs'
_MAGIC = re.compile(r'^(\s*)%(\w+) (.*)$', re.MULTILINE)


def paths() -> list[pathlib.Path]:
  return sorted(FOLDER.glob('*.ipynb'))


def cells(path: pathlib.Path) -> list[str]:
  """The code cells, magics written as the function calls that they are."""
  sources = [
    ''.join(cell['source'])
    for cell in json.loads(path.read_text())['cells']
    if cell['cell_type'] == 'code'
  ]
  return [_MAGIC.sub(_as_call, source) for source in sources]


def _as_call(match: re.Match) -> str:
  """What IPython makes of a line magic."""
  indent, name, line = match.groups()
  return f'{indent}get_ipython().run_line_magic({name!r}, {line!r})'


def run(path: pathlib.Path) -> dict:
  """Runs all cells in order; returns the variables that they leave."""
  scope = {'__name__': '__main__'}
  for number, source in enumerate(cells(path)):
    exec(compile(source, f'{path.name}, code cell {number}', 'exec'), scope)
  return scope


def stripped(path: pathlib.Path) -> str:
  """The file as it should be kept: what was written, and nothing that ran."""
  notebook = json.loads(path.read_text())
  for number, cell in enumerate(notebook['cells']):
    # A cell has an id since version 4.5 of the format.
    cell['id'] = f'cell-{number:02}'
    cell['metadata'] = {}
    if cell['cell_type'] == 'code':
      cell |= {'execution_count': None, 'outputs': []}
  return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


if __name__ == '__main__':
  for path in paths():
    path.write_text(stripped(path))
