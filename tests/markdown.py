"""The Python code of a Markdown page, for tests that run it."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)


def run(page: pathlib.Path) -> int:
  """Runs all code of a page as one program; returns the number of blocks."""
  text = page.read_text()
  blocks = list(_BLOCK.finditer(text))
  program = ''
  for block in blocks:
    # Line numbers in errors are those of the page.
    program += '\n' * (
      text.count('\n', 0, block.start(1)) - program.count('\n')
    )
    program += block[1]
  exec(compile(program, str(page), 'exec'), {})
  return len(blocks)
