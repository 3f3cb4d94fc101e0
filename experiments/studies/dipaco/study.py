r"""DiPaCo: paths through shared modules, each for its own documents.

  python -m experiments.studies dipaco --check                   # languages
  python -m experiments.studies dipaco --variant=text --data_dir=FOLDER

A small transformer is trained for a while on all documents and then goes on in
several ways, each path for as many steps of AdamW: as it is (dense), with its
average over four workers (DiLoCo), as four paths through two levels of two
modules (DiPaCo), and as four networks (flat mixture). Documents are in 16
languages of 4 families. Paths get theirs by k-means on hidden states, or by a
router that has learned which path does best; at the end a document is read by
the one path it is routed to. `data` changes how many documents there are, and
`attacks` has three workers on each path; on two paths one of them lies.

The variants text (plays and a manual) and three_texts (plays, sonnets and
scripture) have grids of 2 x 2 and 4 x 4.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from ...harness.cells import OwnCell, Rows
from ...harness.settings import Settings as Shared
from ...harness.settings import option
from ...reporting import pictures, tables
from ...reporting.summary import (
  Check,
  Claim,
  Summary,
  Table,
  claims_about,
  pivots,
)
from . import grids, measure, paths

TITLES = {
  'paths': 'Test perplexity after the prefix, and how much less than dense',
  'data': 'Test perplexity by number of documents',
  'attacks': (
    'Test loss (nats) with lying workers, one of the six on each module'
  ),
}
COMPARED = (
  'dense',
  'DiLoCo',
  'DiPaCo, k-means',
  'DiPaCo, discriminative',
  'DiPaCo, pre-empted',
  'flat mixture',
)
KEPT = ('loss', 'lowest', 'oracle', 'perplexity', 'stopped', 'validation')
QUICK = {
  'num_documents': 64,
  'pretraining_steps': 2,
  'rounds': 2,
  'num_local_steps': 1,
  'num_evals': 2,
  'learning_rates': (0.01,),
}
VARIANTS = {
  'text': {
    'parts': ('grids',),
    'text': 'tiny_shakespeare+python_manual',
    'num_documents': 12288,
    'length': 48,
    'width': 32,
    'pretraining_steps': 4000,
    'rounds': 20,
    'learning_rates': (0.001, 0.01, 0.003),
  },
}
# More rounds for the server's momentum, and smaller rates.
VARIANTS['three_texts'] = {
  **VARIANTS['text'],
  'text': 'tiny_shakespeare+sonnets+genesis',
  'rounds': 50,
  'learning_rates': (0.0003, 0.003, 0.001),
}
QUICK_CELLS = ('paths, dense, 64', 'paths, DiPaCo, k-means, 64')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Shared):
  parts: tuple[str, ...] = option(
    ('paths', 'data', 'attacks'), 'Of these and grids.'
  )
  text: str = option(
    'languages',
    'languages; or texts with + between: sonnets, genesis, python_manual,'
    ' those of --data_dir.',
  )
  data_dir: str | None = option(None, 'Folder with texts.')
  num_documents: int = option(8192, 'For training.', low=16)
  few_documents: tuple[int, ...] = option((256, 1024, 4096), 'Of data.')
  length: int = option(40, 'Letters of a document.', low=2)
  prefix: int = option(16, 'Letters that routers see.', low=1)
  width: int = option(16, 'Of the transformer.', low=2)
  pretraining_steps: int = option(400, 'Of the dense model.', low=0)
  first_rate: float = option(0.01, 'Of AdamW in pretraining.', low=0)
  rounds: int = option(30, 'Of each path.', low=2)
  num_local_steps: int = option(20, 'H.', low=1)
  batch_size: int = option(8, 'Documents.', low=1)
  learning_rates: tuple[float, ...] = option((0.005, 0.01), 'Of AdamW; a grid.')
  outer_rate: float = option(0.7, 'Of the Nesterov steps of the server.', low=0)
  outer_momentum: float = option(0.9, 'And their momentum.', low=0)
  num_evals: int = option(4, 'Evaluations of a run; even.', low=2)


def define(settings: Settings) -> list[OwnCell]:
  """All cells.

  Raises:
    ValueError: if there are not three numbers of documents, or an odd one of
      evaluations.
  """
  if len(set(settings.few_documents)) != 3 or settings.num_evals % 2:
    raise ValueError(
      '--few_documents must be three numbers and --num_evals even, got'
      f' {settings.few_documents} and {settings.num_evals}'
    )
  grid = grids.paths_of(2)
  one, alike = ((0, 0),), ((0, 0),) * 4
  flat = tuple((i, i) for i in range(4))
  rates = settings.learning_rates
  everything = settings.num_documents
  alone = {'has_server': False}

  def cell(part, method, routes, routing, count=everything, **more):
    labels = {'part': part, 'method': method, 'documents': count}
    given = rates if part in ('paths', 'grids') else rates[-1:]
    kind = measure.Kind(routes, routing, count, given, **more)
    return OwnCell(
      labels=labels,
      rounds=int(settings.rounds * kind.rounds_factor)
      * len(given)
      * settings.num_seeds,
      make_program=functools.partial(measure.program, settings, labels, kind),
    )

  cells = [
    cell('paths', 'dense', one, 'none', **alone),
    cell('paths', 'dense, 4 x steps', one, 'none', rounds_factor=4, **alone),
    cell('paths', 'DiLoCo', alike, 'none'),
    cell('paths', 'DiPaCo, k-means', grid, 'k-means'),
    cell('paths', 'DiPaCo, product k-means', grid, 'product'),
    cell('paths', 'DiPaCo, discriminative', grid, 'discriminative'),
    cell('paths', 'DiPaCo, pre-empted', grid, 'k-means', num_preempted=1),
    cell('paths', 'flat mixture', flat, 'k-means'),
  ]
  for count in settings.few_documents:
    cells += [
      cell('data', 'dense', one, 'none', count, **alone),
      cell('data', 'DiPaCo, k-means', grid, 'k-means', count),
    ]
  for rule, liars in itertools.product(paths.RULES, ((), (0, 9))):
    more: dict[str, Any] = {'rule': rule, 'liars': liars}
    more |= {'workers_per_path': 3, 'rounds_factor': 0.5}
    name = f'{rule}, {len(liars)} of 12'
    cells.append(cell('attacks', name, grid, 'k-means', **more))
  cells += grids.cells(cell)
  return [
    cell
    for cell in cells
    if cell.labels['part'].removesuffix(' under attack') in settings.parts
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  del settings
  return tables.keep(rows, tail=1, metrics=KEPT)


def final(rows: Rows, column: str = 'perplexity') -> np.ndarray:
  """At the end, by seed; of the rate that is best on held-out documents."""
  best = tables.tuned(rows, 'rate', by='validation', least=True)
  return tables.final(best, column)


def less(one: np.ndarray, other: np.ndarray) -> float:
  """By how much the second perplexity is lower, in %, over seeds."""
  return float(100 * (1 - other / one).mean())


def ends_of(rows: Rows) -> tables.Cells:
  """Perplexity, by part, method and number of documents."""
  parts = tables.split_by(rows, 'part', 'method', 'documents')
  return tables.Cells((key, final(of)) for key, of in parts)


def shown_of(rows: Rows, settings: Settings) -> dict[str, tables.Cells]:
  """The tables of parts."""
  shown = {part: tables.Cells() for part in TITLES}
  dense = ends_of(rows)['paths', COMPARED[0], settings.num_documents]
  for (part, method, count), of in tables.split_by(
    rows, 'part', 'method', 'documents'
  ):
    end, table = final(of), shown[part]
    if part == 'paths':
      table[method, 'perplexity'] = end
      table[method, 'early stopped'] = final(of, 'stopped')
      table[method, 'best path'] = final(of, 'oracle')
      table[method, 'less (%)'] = 100 * (1 - end / dense)
    elif part == 'data':
      table[method, str(count)] = end
      table[f'{method}, early stopped', str(count)] = final(of, 'stopped')
    else:
      rule, liars = method.split(', ')
      table[rule, liars] = final(of, 'loss')
  return shown


def summarise(rows: Rows, settings: Settings) -> Summary:
  if 'grids' in settings.parts:
    return grids.summarise(rows, settings, final, less)
  ends, shown = ends_of(rows), shown_of(rows, settings)
  claim = claims_about('DiPaCo', grids.SOURCE, settings.text)
  return Summary(
    claims=[
      *claims_of_paths(claim, ends, settings.num_documents),
      claim(
        'paths need documents, and gain more from more',
        *checks_of_documents(ends, settings.few_documents),
      ),
      claim(
        'with six workers on each module a median withstands a liar',
        *checks_of_attacks(shown['attacks']),
        method='',
        paper='not from a paper',
      ),
    ],
    tables=[
      *pivots((title, shown[part], 2) for part, title in TITLES.items()),
      Table(
        'Perplexity of one who knows the languages',
        f'{np.mean(tables.column(rows, "lowest")):.2f}',
      ),
    ],
    figures={
      'documents.png': lambda: draw(
        shown['paths'], ends, settings.few_documents
      )
    },
  )


def claims_of_paths(
  claim, ends: tables.Cells, num_documents: int
) -> list[Claim]:
  """Of all documents."""
  dense, diloco, kmeans, routed, preempted, flat = (
    ends['paths', name, num_documents] for name in COMPARED
  )
  return [
    claim(
      'paths through shared modules beat dense training of one path',
      Check('DiLoCo below dense (%)', less(dense, diloco), 0),
      Check('DiPaCo below DiLoCo (%)', less(diloco, kmeans), 1),
      published='perplexity: dense 16.23, DiLoCo 15.02, 2 x 4 paths 14.86',
      evidence='P',
    ),
    claim(
      'a router that has learned which path is best is no worse',
      Check('discriminative below k-means (%)', less(kmeans, routed), -0.5),
    ),
    claim(
      'with few paths, a flat mixture that shares nothing is better',
      Check('flat below DiPaCo (%)', less(kmeans, flat), 0),
    ),
    claim(
      'workers that are pre-empted cost little',
      Check(
        'one of four pre-empted below none (%)',
        less(kmeans, preempted),
        -3,
        why="its round is lost; the paper's queue gives it to another worker",
      ),
    ),
  ]


def checks_of_documents(ends: tables.Cells, counts) -> list[Check]:
  few, more, many = counts
  gains = [
    less(ends['data', 'dense', count], ends['data', 'DiPaCo, k-means', count])
    for count in counts
  ]
  return [
    Check(f'loss of four paths on {few} (%)', -gains[0], 0),
    Check(f'gain of four paths on {more} (%)', gains[1], 2),
    Check(f'what {many} add to that (%)', gains[2] - gains[1], 0),
  ]


def checks_of_attacks(losses: tables.Cells) -> list[Check]:
  def cost(rule):
    added = losses[rule, '2 of 12'] - losses['mean', '0 of 12']
    return float(100 * np.expm1(added).mean())

  return [
    Check('perplexity that liars add to the mean (%)', cost('mean'), 20),
    Check(
      'perplexity that they add to the median (%)',
      cost('coordinate median'),
      at_most=5,
      why='messages of paths differ by domain, so that a liar among six moves'
      ' their median; rates are not tuned',
    ),
  ]


def draw(by_method, ends, counts):
  figure, panels = pictures.panels(1, 2, figsize=(10, 3.6))
  bars, lines = panels[0]
  methods = tables.axes(by_method)[0]
  pictures.bars(
    bars, {m: by_method[m, 'perplexity'] for m in methods}, 'test perplexity'
  )
  bars.set_title('all documents')
  series = {
    method: [ends['data', method, count] for count in counts]
    for method in ('dense', 'DiPaCo, k-means')
  }
  pictures.spread_over(lines, counts, series)
  lines.set(xlabel='documents', ylabel='test perplexity', xscale='log')
  lines.set_xticks(counts, counts)
  lines.minorticks_off()
  lines.legend()
  return figure
