"""What shows the leaderboard: a page, a picture and a table to sort."""

import html
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt

from ..harness import output, specs
from ..reporting import pictures, summary
from ..reporting.tables import Rows
from . import board, board_store, predictions
from . import tables as grid_tables
from .board import Board, Standing
from .tables import Choice

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'LEADERBOARD.md'
GUIDE = ROOT.parent / 'docs' / 'guides' / 'leaderboard.md'


_NOTHING = 'It was not run yet.'
# What the findings below the boards compare, the first less the second.
PAIRS = (
  ('geometric_median', 'bucketing(bucket_size=2), geometric_median'),
  ('coordinate_median', 'bucketing(bucket_size=2), coordinate_median'),
  ('geometric_median', 'nearest_neighbor_mixing, geometric_median'),
  ('geometric_median', 'bulyan'),
  ('multi_krum', 'bulyan'),
)


class Line(NamedTuple):
  """A defence as a table has it: a text and a number to sort by, each."""

  name: str
  standing: Standing
  cells: Sequence[tuple[str, float]]


HEADS = (
  'rank',
  'defence',
  'worst case',
  'i.i.d.',
  'under',
  'Dirichlet',
  'under',
  'mean case',
  'cost',
  'told fewer',
  'told more',
  'backdoor',
  'failed',
  'ms',
)


def lines(of: Board, times: Rows, f: int) -> list[Line]:
  """The table of those that assume f, and of those that assume nothing."""
  here = of.told(f)
  largest = max(s.size for s in here)
  ranks = board.ranks({s.name: s.score for s in here if s.size == largest})
  order = [*ranks, *sorted(s.name for s in here if s.name not in ranks)]
  by_name = {s.name: s for s in here}
  honest = of.control.unattacked.mean() if of.control else np.nan
  milliseconds = {r['defence']: float(r['milliseconds']) for r in times}
  made = []
  for name in order:
    s = by_name[name]
    rank = ranks.get(name)
    cells = [(str(rank or '-'), rank or np.inf), (name, np.nan)]
    cells += [(grid_tables.spread(s.score), s.score.mean())]
    for partition in board_store.suite().entries('partitions'):
      cells += _place(s.choices.get(partition))
    cells += [
      _number(s.mean_case.mean()),
      _number(honest - s.unattacked.mean()),
      *(_told(of, s, assumed) for assumed in (f - 2, f + 2)),
      _success(s),
      (f'{s.failed} of {s.runs}', s.failed),
      _number(milliseconds.get(name, np.nan)),
    ]
    made.append(Line(name, s, cells))
  return made


def _place(choice: Choice | None) -> list[tuple[str, float]]:
  if choice is None:
    return [('-', np.nan), ('-', np.nan)]
  worst = choice.accuracy[choice.worst]
  return [
    (grid_tables.spread(worst), worst.mean()),
    (short(choice.worst), np.nan),
  ]


def short(text: str) -> str:
  """A chain by its names alone."""
  return ', '.join(specs.parse(part)[0] for part in specs.split_top(text, ','))


def _told(of: Board, standing: Standing, assumed: int) -> tuple[str, float]:
  """The worst case of the same defence that assumes another number."""
  if standing.assumed is None:
    return 'same', standing.score.mean()
  other = [s for s in of.told(assumed) if s.name == standing.name]
  return _number(other[0].score.mean() if other else np.nan)


def _success(standing: Standing) -> tuple[str, float]:
  """Of a backdoor on each kind of data; the largest counts."""
  found = [*standing.success.values()]
  if not found:
    return '-', np.nan
  return ' / '.join(f'{value:.1f}' for value in found), max(found)


def _number(value: Any) -> tuple[str, float]:
  return ('-', value) if np.isnan(value) else (f'{value:.1f}', value)


def table(made: Sequence[Line]) -> str:
  """As Markdown."""
  texts = [[text for text, _ in line.cells] for line in made]
  return '\n'.join(summary.markdown(HEADS, texts))


def picture(of: Board, f: int) -> plt.Figure:
  """Every defence under every attack on uneven data, at the right f."""
  partition = board_store.suite().entries('partitions')[-1]
  choices = [
    s.choices[partition]._replace(defence=s.name)
    for s in of.told(f)
    if partition in s.choices
  ]
  by_attack = grid_tables.by_attack(choices, partition, f)
  cells = {(name, short(attack)): v for (name, attack), v in by_attack.items()}
  return pictures.heatmap(cells, f'Leaderboard: {partition}, {f} attackers')


def wide(made: Sequence[Line]) -> str:
  """As HTML, whose columns can be sorted."""
  rows = [
    '<tr>'
    + ''.join(
      f'<td data-by="{_key(text, number)}">{html.escape(text)}</td>'
      for text, number in line.cells
    )
    + '</tr>'
    for line in made
  ]
  heads = ''.join(f'<th tabindex="0">{head}</th>' for head in HEADS)
  return '\n'.join(
    [
      '<div class="table-wrapper">',
      f'<table class="board"><thead><tr>{heads}</tr></thead>',
      *('<tbody>', *rows, '</tbody>'),
      '</table></div>',
    ]
  )


def _key(text: str, number: float) -> str:
  """What a column is sorted by; what is missing comes last."""
  if text == '-':
    return ''
  return html.escape(text) if np.isnan(number) else f'{number:g}'


def block(model: str) -> str:
  """The table of the guide."""
  return f'{_state(model)}\n\n{wide(_lines(model))}'


def guide(text: str) -> str:
  """The guide, with tables of all models that have rows."""
  blocks = [
    f'## {model.upper()}\n\n{block(model)}' for model in board_store.models()
  ]
  return summary.put(text, 'boards', '\n\n'.join(blocks) or _NOTHING)


def page(text: str) -> str:
  """LEADERBOARD.md, with all that follows from the rows."""
  sections = [_section(model) for model in board_store.models()]
  return summary.put(text, 'boards', '\n\n'.join(sections) or _NOTHING)


def _lines(model: str) -> list[Line]:
  path = board.path_of(model, 'times')
  times = output.read_rows(path) if path.exists() else []
  return lines(board_store.read(model), times, _f())


def _f() -> int:
  (f,) = board_store.suite().num_byzantine
  return f


def _state(model: str) -> str:
  """How much of the board was run, and where."""
  of, f = board_store.read(model), _f()
  lacking, all_ = _missing(of, model)
  lacking_here, here = _missing(of, model, f)
  said = 'The whole board was run.'
  if lacking_here:
    said = (
      f'**Not run whole**: {all_ - lacking} of {all_} pairs of a defence and an'
      ' attack. Ranks are among these alone, and mean little.'
    )
  elif lacking:
    said = (
      f'All {here} pairs of an attack and a defence that assumes the right'
      f' number, {f}, or none, were run. Of those that assume {f - 2} or'
      f' {f + 2}, {lacking} pairs are missing: their columns are empty.'
    )
  places = [
    f'commit {commit}, jax {jax}, {device}'
    for commit, jax, device in dict.fromkeys(
      (r['commit'], r['jax'], r['device']) for r in of.rows
    )
  ]
  grid = board_store.suite()
  about = (
    f'{grid.dataset}, {model}, {grid.rounds} rounds of batch {grid.batch_size}'
    f' by {grid.num_workers} workers, momentum {grid.momenta[0]:g},'
    f' {grid.num_seeds} seeds.'
  )
  return f'{about} {said} Made by: {"; ".join(places)}.'


def _section(model: str) -> str:
  of, f = board_store.read(model), _f()
  made = _lines(model)
  return '\n'.join(
    [
      f'## {model.upper()}',
      '',
      _state(model),
      '',
      table(made),
      '',
      f'![Every defence under every attack](leaderboard_{model}.png)',
      '',
      '### What was expected',
      '',
      *_expected(of, f, whole=not _missing(of, model, f)[0]),
      '',
      '### Pairs',
      '',
      *_pairs(of, f),
      '',
      '### Settings',
      '',
      *_settings(model),
      '',
      '### Commands',
      '',
      *_commands(made, model),
    ]
  )


def _missing(
  of: Board, model: str, assumed: int | None = None
) -> tuple[int, int]:
  refused = board_store.about(model).get('refused', [])
  return board_store.missing(of, refused, assumed)


def _expected(of: Board, f: int, *, whole: bool) -> list[str]:
  if not whole:
    return ['Predictions are written in `experiments/grid/predictions.py`.',
            'They are compared when the board was run whole.']  # fmt: skip
  known = [c for c in predictions.checks(of, f) if c.value == c.value]
  return [f'- {check}' for check in known]


def _pairs(of: Board, f: int) -> list[str]:
  """Paired differences of worst cases, where both met all attacks."""
  here = of.told(f)
  largest = max(s.size for s in here)
  scores = {s.name: s.score for s in here if s.size == largest}
  return [
    f'- {first} less {second}: {mean:.1f} ± {half:.1f} points'
    for first, second in PAIRS
    if {first, second} <= {*scores}
    for mean, half in [board.difference(scores[first], scores[second])]
  ]


def _settings(model: str) -> list[str]:
  """How often a choice is at the end of its list."""
  rates = board_store.suite().learning_rates
  of = [
    choice.learning_rate
    for s in board_store.read(model).standings
    for choice in s.choices.values()
  ]
  lowest, highest = of.count(min(rates)), of.count(max(rates))
  refused = board_store.about(model).get('refused', [])
  said = [
    f'Of {len(of)} choices of a learning rate from'
    f' {", ".join(f"{rate:g}" for rate in rates)}, {lowest} are the lowest and'
    f' {highest} the highest.'
  ]
  if refused:
    said += [f'Cannot run with so few workers: {", ".join(refused)}.']
  return said


def _commands(made: Sequence[Line], model: str) -> list[str]:
  """Of every worst case; the other cells differ in the attack."""
  said = ['<details>', '<summary>The command of each worst case</summary>', '']
  for line in made:
    said += [f'{line.name}:', '', '```']
    said += [
      board_store.command(choice, choice.worst, model)
      for choice in line.standing.choices.values()
    ]
    said += ['```', '']
  return [*said, '</details>']


def write() -> None:
  """Writes all that shows the leaderboard."""
  output.write_text(PAGE, page(PAGE.read_text()))
  output.write_text(GUIDE, guide(GUIDE.read_text()))
  for model in board_store.models():
    figure = picture(board_store.read(model), _f())
    pictures.save(figure, ROOT / f'leaderboard_{model}.png')
  print(f'{PAGE.name}: {", ".join(board_store.models()) or "no rows yet"}')
