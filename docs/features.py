"""Which round has which feature: a table, read from the signatures.

  python docs/features.py    # writes it into docs/guides/features.md

A hole has a reason here, or it is an error.
"""

import inspect
import pathlib

import byzjax

PAGE = pathlib.Path(__file__).parent / 'guides' / 'features.md'
BEGIN, END = '<!-- table -->', '<!-- end of table -->'
ROUNDS = (
  'robust_round',
  'local_round',
  'from_work',
  'asynchronous_round',
  'gossip_round',
  'modular_round',
  'parle',
  'elastic_averaging',
)
# The argument, or one of several, by which a round has the feature.
FEATURES = {
  'a rule': ('aggregator', 'rule'),
  'attack': ('attack',),
  'worker chain': ('worker',),
  'codec up': ('codec',),
  'codec down': ('server_codec',),
  'sampler': ('sampler',),
  'local steps': ('num_local_steps', 'local_optimizer'),
  'client sampling': ('participation',),
  'worker weights': ('worker_weights',),
  'own gradients': ('value_and_grad',),
  'loss with a key': ('needs_key',),
  'auxiliary output': ('has_aux',),
  'mesh': ('mesh',),
}
# By feature, and then by round.
HOLES = {
  'worker chain': {
    'from_work': 'part of the `Work`',
    'gossip_round': '`optimizer` runs at every node',
    'parle': 'replicas send parameters',
    'elastic_averaging': 'replicas send parameters',
  },
  'codec down': {
    'asynchronous_round': 'the codec would need a state for each worker',
    'gossip_round': 'there is no server',
  },
  'sampler': {
    'robust_round': 'a round is one batch: `local_round` with one step',
    'from_work': 'the `Work` samples its batches',
  },
  'local steps': {
    'robust_round': 'use `local_round`',
    'from_work': 'the `Work` runs them',
  },
  'client sampling': {
    'robust_round': '`worker_weights=random_participation(...)`',
    'asynchronous_round': 'the events define who sends',
    'gossip_round': 'every node takes part',
  },
  'worker weights': {
    'asynchronous_round': 'messages arrive one by one; buffers count them',
    'gossip_round': 'the mixing weights of the graph',
  },
  'own gradients': {'from_work': 'the `Work` computes them'},
  'loss with a key': {'from_work': 'the `Work` gets a key for each worker'},
  'auxiliary output': {'from_work': '`WorkerOutput.aux`'},
}


def table() -> str:
  """The table, with a number for every reason.

  Raises:
    ValueError: if a hole has no reason, or a reason has no hole.
  """
  has = {
    name: set(inspect.signature(getattr(byzjax, name)).parameters)
    for name in ROUNDS
  }
  lines = [
    '| | ' + ' | '.join(f'`{name}`' for name in ROUNDS) + ' |',
    '|---' * (len(ROUNDS) + 1) + '|',
  ]
  reasons: list[str] = []
  for feature, arguments in FEATURES.items():
    cells = []
    for name in ROUNDS:
      reason = HOLES.get(feature, {}).get(name)
      there = any(argument in has[name] for argument in arguments)
      if there == (reason is not None):
        raise ValueError(f'docs/features.py: {feature} of {name}: {reason!r}')
      if reason is not None and reason not in reasons:
        reasons.append(reason)
      cells.append('yes' if there else f'({reasons.index(reason) + 1})')
    lines.append(f'| {feature} | ' + ' | '.join(cells) + ' |')
  numbered = [f'{i}. {reason}' for i, reason in enumerate(reasons, 1)]
  return '\n'.join([*lines, '', *numbered])


def page(text: str) -> str:
  """The page with the table in it."""
  before, rest = text.split(BEGIN)
  return f'{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}'


if __name__ == '__main__':
  PAGE.write_text(page(PAGE.read_text()))
