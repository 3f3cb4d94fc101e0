"""All methods on one page, with their sources, read from the docstrings.

  python docs/catalogue.py    # writes docs/guides/catalogue.md, and counts

States, types and helpers are on the pages of the API alone.
"""

import inspect
import pathlib
import re
import typing
from typing import Any

import groups

import byzjax

PAGE = pathlib.Path(__file__).parent / 'guides' / 'catalogue.md'
# Title and introduction by group, in the order of the page.
SECTIONS = {
  'rules': ('Rules', 'Messages `[n, ...]` to one aggregate `[...]`.'),
  'pre_aggregators': (
    'In front of a rule',
    'Put together by `pre_aggregate(stage, ..., rule)`.',
  ),
  'attacks': ('Attacks', 'What Byzantine workers send, or learn from.'),
  'codecs': (
    'Codecs',
    'How messages are sent, up (`codec=`) and down (`server_codec=`).',
  ),
  'transforms': (
    'Transforms',
    'Of workers or of the server, as optax transformations.',
  ),
  'gradients': (
    'Gradients',
    'In the place of `jax.value_and_grad`, by `value_and_grad=`.',
  ),
  'rounds': ('Rounds', 'One step of training: `init` and `step`.'),
  'schedules': ('Schedules', 'How long rounds are, and who takes part.'),
  'objectives': ('Objectives', 'Losses that workers descend.'),
  'asynchrony': ('Without a barrier', 'Events, buffers and clocks.'),
  'gossip': ('Without a centre', 'What a node makes of its neighbours.'),
  'topology': ('Graphs', 'Who talks to whom, with which weights.'),
  'data': ('Data', 'Sets, how they are divided, and how batches are drawn.'),
  'models': ('Models', 'Flax nnx modules, and what trains them.'),
  'analysis': ('Analysis', 'Coefficients, certificates and landscapes.'),
  'theory': ('Theory', 'Published bounds, as functions.'),
  'convex': ('Convex training', 'Two-layer ReLU networks, to the optimum.'),
}
# What the README counts: by group, what its functions return.
COUNTED = {
  'rules': ('rules', byzjax.Aggregator),
  'pre_aggregators': ('pre-aggregators', byzjax.PreAggregator),
  'attacks': ('attacks', byzjax.Attack | byzjax.DataAttack),
  'codecs': ('codecs', byzjax.Codec),
  'rounds': ('rounds', byzjax.Round),
}


def methods(group: str) -> list[str]:
  """The functions of a group; in `models` its modules, too."""
  return [
    name
    for name in groups.groups()[group]
    if group == 'models' or inspect.isfunction(groups.value_of(name))
  ]


def source(text: str) -> str:
  """The references of a docstring on one line, with links to arXiv."""
  found = re.search(r'\nReferences:\n(.*?)(?=\n\S|\Z)', text, re.DOTALL)
  if not found:
    return ''
  line = ' '.join(found[1].split()).rstrip('.')
  line = re.sub(
    r'arXiv[: ](\d{4}\.\d{4,5}(?:v\d+)?)',
    r'[\1](https://arxiv.org/abs/\1)',
    line,
  )
  return line.replace('|', r'\|')


def row(name: str) -> str:
  """A line of the table."""
  text = inspect.getdoc(groups.value_of(name)) or ''
  first = text.partition('\n')[0].replace('|', r'\|')
  return f'| `{name.removeprefix("byzjax.")}` | {first} | {source(text)} |'


def page() -> str:
  """All of `catalogue.md`."""
  lines = [
    '# All methods',
    '',
    'One line for each public function, and where it is from. The pages of the'
    ' API have formulas, shapes, errors and examples. `python'
    ' docs/catalogue.py` makes this page of the docstrings.',
  ]
  for group, (title, what) in SECTIONS.items():
    lines += ['', f'## {title}', '', what, '']
    lines += ['| name | what it is | source |', '|---|---|---|']
    lines += map(row, methods(group))
  return '\n'.join(lines) + '\n'


def _is_of(returned: Any, kind: Any) -> bool:
  """Whether a type is one of those of a union, or a union of them."""
  members = typing.get_args(returned) or (returned,)
  return set(members) <= set(typing.get_args(kind) or (kind,))


def counts() -> str:
  """How many there are of what the README names."""
  texts = []
  for group, (title, kind) in COUNTED.items():
    returned = [
      typing.get_type_hints(groups.value_of(name)).get('return')
      for name in methods(group)
    ]
    texts.append(f'{sum(_is_of(each, kind) for each in returned)} {title}')
  return ', '.join(texts[:-1]) + f' and {texts[-1]}'


if __name__ == '__main__':
  PAGE.write_text(page())
  print(counts())
