"""`.. names:: GROUP`: documents every public name of a group, from docstrings.

And code that is the name of something public links to it, on every page.
"""

import inspect
import itertools

import groups
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective


class Names(SphinxDirective):
  """A table of the names of a group, and then all of each."""

  required_arguments = 1

  def run(self):
    """Called by Sphinx."""
    group = self.arguments[0]
    if group not in groups.groups():
      raise self.error(f'names: docs/groups.py has no group {group}')
    names = groups.groups()[group]
    lines = ['.. autosummary::', '   :nosignatures:', '']
    lines += [f'   {name}' for name in names if name not in groups.ALIASES]
    for name in names:
      lines += ['', *_entry(name)]
    return self.parse_text_to_nodes('\n'.join(lines))


def _entry(name: str) -> list[str]:
  if text := groups.ALIASES.get(name):
    return [f'.. py:type:: {name}', '', f'   {text}']
  is_class = inspect.isclass(groups.value_of(name))
  return [f'.. {"autoclass" if is_class else "autofunction"}:: {name}']


class LinkNames(SphinxTransform):
  """Links `krum`, `byzjax.krum` and `theory.kappa_bound` to their entries."""

  default_priority = 500

  def apply(self, **kwargs):
    """Called by Sphinx."""
    del kwargs
    full = {}
    for name in itertools.chain(*groups.groups().values()):
      full[name] = full[name.removeprefix('byzjax.')] = name
    for literal in list(self.document.findall(nodes.literal)):
      target = full.get(literal.astext())
      if target is None or _is_inside(literal, _NO_PROSE):
        continue
      reference = addnodes.pending_xref(
        '',
        refdomain='py',
        reftype='obj',
        reftarget=target,
        refdoc=self.env.docname,
        refwarn=True,
      )
      literal.replace_self(reference)
      reference += literal


class CheckBlocks(SphinxTransform):
  """Warns of formulas in docstrings that would be set as running text."""

  default_priority = 500

  def apply(self, **kwargs):
    """Called by Sphinx."""
    del kwargs
    for entry in self.document.findall(addnodes.desc_content):
      for quote in entry.findall(nodes.block_quote):
        logging.getLogger(__name__).warning(
          'an indented block of a docstring needs `::` before it: %s',
          quote.astext(),
          location=quote,
        )


_NO_PROSE = (
  nodes.title,
  nodes.reference,
  addnodes.pending_xref,
  addnodes.desc_signature,
)


def _is_inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
  while node is not None and not isinstance(node, kinds):
    node = node.parent
  return node is not None


def check(app, env) -> None:
  """Warns of public names that no page documents."""
  del app
  documented = env.get_domain('py').objects
  for group, names in groups.groups().items():
    for name in set(names) - set(documented):
      logging.getLogger(__name__).warning(
        '%s is on no page: which one has `.. names:: %s`?', name, group
      )


def setup(app) -> dict:
  """Called by Sphinx."""
  # Types have the names that users import, so that signatures link to them.
  for name in itertools.chain(*groups.groups().values()):
    value = groups.value_of(name)
    if inspect.isclass(value):
      value.__module__ = name.rpartition('.')[0]
  app.add_directive('names', Names)
  app.add_transform(CheckBlocks)
  app.add_transform(LinkNames)
  app.connect('env-check-consistency', check)
  return {'parallel_read_safe': True}
