import pathlib
import re

README = pathlib.Path(__file__).parents[1] / 'README.md'


def test_the_code_in_the_readme_runs():
  blocks = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
  assert len(blocks) == 5
  exec('\n'.join(blocks), {})  # It ends in assertions of its own.
