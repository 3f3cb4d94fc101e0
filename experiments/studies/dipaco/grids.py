"""Paths on texts: grids of two sizes, and what has as much processor time.

Four paths are compared with four workers on one path and with dense training on
four times the batch, and sixteen paths with sixteen workers. On the larger grid
each module has four senders, so that a robust rule has something to choose
from. Under attack there is one learning rate, the last one.
"""

from typing import Any

import numpy as np

from byzjax import models

from ...harness.cells import Rows
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots

ALONE: dict[str, Any] = {'has_server': False}
LARGE = 'DiPaCo, 4 x 4'
_SHORT = (
  "20 rounds are few for the server's momentum, and the smallest rate of the"
  ' grid is chosen'
)
_AGAIN = 'not explained; the smallest rate of the grid is chosen again'
SOURCE = 'Douillard et al. 2024, arXiv:2403.10616'


def paths_of(side: int) -> tuple[tuple[int, ...], ...]:
  """All paths through two levels of so many modules."""
  return tuple(map(tuple, models.grid_paths((side, side)).tolist()))


def cells(cell) -> list[Any]:
  """Of `cell(part, method, routes, routing, **more)`."""
  one, large = ((0, 0),), paths_of(4)

  def attacked(rule, liars):
    name = f'{LARGE}, {rule}, {len(liars)} of 16'
    more: dict[str, Any] = {'rule': rule, 'liars': liars}
    return cell('grids under attack', name, large, 'k-means', **more)

  return [
    cell('grids', 'dense', one, 'none', **ALONE),
    cell('grids', 'dense, 4 x batch', one, 'none', batch_factor=4, **ALONE),
    cell('grids', 'DiLoCo, 4', one * 4, 'none'),
    cell('grids', 'DiLoCo, 16', one * 16, 'none'),
    cell('grids', 'DiPaCo, 2 x 2', paths_of(2), 'k-means'),
    cell('grids', LARGE, large, 'k-means'),
    cell(
      'grids', 'flat mixture, 4', tuple((i, i) for i in range(4)), 'k-means'
    ),
    attacked('mean', (0,)),
    attacked('coordinate median', ()),
    attacked('coordinate median', (0,)),
  ]


def summarise(rows: Rows, settings: Any, final, less) -> Summary:
  """`final(rows, column)` is by seed, and `less` compares perplexities."""
  grids, attacks = tables.Cells(), tables.Cells()
  groups = dict(tables.split_by(rows, 'part', 'method'))
  dense = final(groups['grids', 'dense'])
  rate = settings.learning_rates[-1]
  attacks['mean', '0 of 16'] = tables.final(
    tables.select(groups['grids', LARGE], rate=rate), 'loss'
  )
  for (part, method), of in groups.items():
    if part == 'grids':
      grids[method, 'perplexity'] = final(of)
      grids[method, 'early stopped'] = final(of, 'stopped')
      grids[method, 'best path'] = final(of, 'oracle')
      grids[method, 'less (%)'] = 100 * (1 - final(of) / dense)
      grids[method, '1000 x rate'] = 1000 * tables.final(
        tables.tuned(of, 'rate', by='validation', least=True), 'rate'
      )
    else:
      rule, liars = method.removeprefix(f'{LARGE}, ').split(', ')
      attacks[rule, liars] = final(of, 'loss')
  name = f'texts_{len(settings.text.split("+"))}.png'
  return Summary(
    claims=claims_of(grids, attacks, settings, less),
    tables=pivots(
      [
        ('Test perplexity of texts after the prefix', grids, 3),
        ('Test loss (nats) with a liar among four on each of two modules',
         attacks, 2),
      ]
    ),
    figures={name: lambda: draw(grids, attacks)},
  )  # fmt: skip


def claims_of(grids, attacks, settings, less) -> list[Claim]:
  claim = claims_about('DiPaCo', SOURCE, settings.text)
  why = _SHORT if settings.rounds == 20 else _AGAIN

  def below(one, other):
    ends = grids[one, 'perplexity'], grids[other, 'perplexity']
    return less(*ends)

  def cost(rule):
    added = attacks[rule, '1 of 16'] - attacks['mean', '0 of 16']
    return float(np.mean(100 * np.expm1(added)))

  return [
    claim(
      'paths through shared modules beat dense training of one path',
      Check(
        'DiLoCo of 4 below dense (%)',
        below('dense', 'DiLoCo, 4'),
        0,
        why=why,
      ),
      Check(
        '2 x 2 paths below DiLoCo of 4 (%)',
        below('DiLoCo, 4', 'DiPaCo, 2 x 2'),
        1,
        why=why,
      ),
      published='perplexity: dense 16.23, DiLoCo 15.02, 2 x 4 paths 14.86',
      evidence='P',
    ),
    claim(
      'a larger grid is better',
      Check(
        '4 x 4 paths below 2 x 2 (%)',
        below('DiPaCo, 2 x 2', LARGE),
        1,
        why=why,
      ),
      Check(
        '4 x 4 paths below DiLoCo of 16 (%)',
        below('DiLoCo, 16', LARGE),
        1,
        why=why,
      ),
      published='perplexity: 2 x 4 paths 14.86, 8 x 8 paths 13.37',
      evidence='P',
    ),
    claim(
      'with few paths, a flat mixture that shares nothing is better',
      Check(
        'flat of 4 below 2 x 2 paths (%)',
        below('DiPaCo, 2 x 2', 'flat mixture, 4'),
        0,
        why=why,
      ),
    ),
    claim(
      'with four senders on each module a median withstands a liar',
      Check('perplexity that a liar adds to the mean (%)', cost('mean'), 20),
      Check(
        'perplexity that it adds to the median (%)',
        cost('coordinate median'),
        at_most=5,
      ),
      method='',
      paper='not from a paper',
    ),
  ]


def draw(grids, attacks):
  figure, panels = pictures.panels(1, 2, figsize=(11, 3.8))
  methods = tables.axes(grids)[0]
  pictures.bars(
    panels[0][0],
    {method: grids[method, 'perplexity'] for method in methods},
    'test perplexity',
  )
  panels[0][0].set_title('texts')
  pictures.bars(
    panels[0][1],
    {f'{rule}, {liars}': values for (rule, liars), values in attacks.items()},
    'test loss (nats)',
  )
  panels[0][1].set_title('4 x 4 paths, workers that lie')
  return figure
