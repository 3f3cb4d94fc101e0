r"""Says in all files where the repository is, once it has an address.

  python docs/address.py https://github.com/OWNER/byzjax

Writes it into README, CITATION.cff, pyproject.toml and the guides, and gives
every notebook a badge that opens it in Colab, and the address to install from
there. A second call replaces the address.
"""

import json
import pathlib
import re
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
# What is cloned, in the README and in two guides.
CLONED = re.compile(r'git clone (<this repository>|https://\S+)')
PAGES = (
  'README.md',
  'docs/guides/install.md',
  'docs/guides/several_hosts.md',
)
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
# In the cell of a notebook that installs byzjax where there is no clone.
SOURCE = re.compile(r"(if is_clone else) 'byzjax\[experiments\].*'")


def in_page(text: str, url: str) -> str:
  """A page of Markdown that tells how to clone."""
  return CLONED.sub(f'git clone {url}', text)


def in_citation(text: str, url: str) -> str:
  """CITATION.cff."""
  kept = re.sub(r'^repository-code: .*\n', '', text, flags=re.MULTILINE)
  return f'{kept}repository-code: "{url}"\n'


def in_project(text: str, url: str) -> str:
  """pyproject.toml: a table of its own before the scripts."""
  kept = re.sub(r'\[project\.urls\]\nRepository = .*\n\n', '', text)
  table = f'[project.urls]\nRepository = "{url}"\n\n[project.scripts]'
  return kept.replace('[project.scripts]', table)


def in_notebook(text: str, url: str, name: str) -> str:
  """A notebook: a badge below its title, and where to install from."""
  notebook = json.loads(text)
  title, install = notebook['cells'][:2]
  heading, *rest = [
    line
    for line in ''.join(title['source']).split('\n\n')
    if not line.startswith('[![')
  ]
  place = url.removeprefix('https://github.com/')
  opened = f'https://colab.research.google.com/github/{place}'
  badge = f'[![Open in Colab]({BADGE})]({opened}/blob/main/colabs/{name})'
  title['source'] = _lines('\n\n'.join([heading, badge, *rest]))
  install['source'] = _lines(
    SOURCE.sub(
      rf"\1 'byzjax[experiments] @ git+{url}'", ''.join(install['source'])
    )
  )
  return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


def _lines(text: str) -> list[str]:
  return text.splitlines(keepends=True)


def write(url: str, root: pathlib.Path = ROOT) -> None:
  """Into all files below the root.

  Raises:
    ValueError: if it is no address of a repository on GitHub.
  """
  if not re.fullmatch(r'https://github\.com/[\w.-]+/[\w-]+', url):
    raise ValueError(
      f'an address such as https://github.com/OWNER/byzjax is needed, got {url}'
    )
  for page in PAGES:
    _change(root / page, in_page, url)
  _change(root / 'CITATION.cff', in_citation, url)
  _change(root / 'pyproject.toml', in_project, url)
  for path in sorted((root / 'colabs').glob('*.ipynb')):
    _change(path, in_notebook, url, path.name)


def _change(path: pathlib.Path, how: Callable[..., str], *given: str) -> None:
  path.write_text(how(path.read_text(), *given))


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  write(sys.argv[1])
