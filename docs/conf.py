"""The documentation: `make docs` builds it into `docs/_build/html`."""

import pathlib
import re
import sys

import byzjax

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

project = 'byzjax'
author = 'the authors of byzjax'
version = release = byzjax.__version__

extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.autosummary',
  'sphinx.ext.mathjax',
  'sphinx.ext.napoleon',
  'sphinx-mathjax-offline',  # No network is needed to read formulas.
  'names',
]
exclude_patterns = ['_build']
default_role = 'code'  # Docstrings write code in single backticks.
highlight_language = 'text'  # What has no language is mostly formulas.

html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['wide.css']
html_title = f'byzjax {version}'
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

autodoc_typehints_format = 'short'
autosummary_generate = False
maximum_signature_line_length = 72
python_use_unqualified_type_names = True
toc_object_entries_show_parents = 'hide'
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
# 'Returns' is plain text: "A rule: its weights" is no type with a description.
napoleon_custom_sections = [('Attributes', 'params_style'), 'Returns']

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3


def copy_pages() -> None:
  """Pages of `experiments` with what they show, to `docs/experiments`."""
  source, target = HERE.parent / 'experiments', HERE / 'experiments'
  kept = set()
  for file in source.rglob('*.*'):
    is_page = file.name in (
      'README.md',
      'SCORECARD.md',
      'LEADERBOARD.md',
      'adaptive.md',
    )
    if is_page or file.suffix in ('.png', '.csv'):
      content = file.read_bytes()
      if is_page:
        content = content.replace(b'](../README.md)', b'](../index.md)')
        content = re.sub(rb'\]\((?:\.\./)+docs/', b'](/', content)
      copy = target / file.relative_to(source)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(content)
      kept.add(copy)
  for file in target.rglob('*.*'):
    if file not in kept:
      file.unlink()


def link_pages(app, docname, source) -> None:
  """Links to `experiments`, which work in the repository, to the copies."""
  del app
  up = '../' * docname.count('/')
  source[0] = re.sub(
    r'\]\((?:\.\./)+experiments/', f']({up}experiments/', source[0]
  )


def setup(app) -> None:
  """Called by Sphinx."""
  copy_pages()
  app.connect('source-read', link_pages)
