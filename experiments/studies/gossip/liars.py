"""One liar in every neighbourhood of a torus; and what its variant says."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from byzjax import topology

from ...harness.cells import Cell, Rows
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Summary, claims_about, pivots
from .claims import HE, SWENSON, checks_of_gap
from .nodes import (
  GRAPHS,
  RULES,
  accuracies,
  cell,
  early,
  of_training,
)

SIDE = 5
TORUS = topology.torus(SIDE, SIDE)
# A perfect code: every other node has exactly one of them among its four
# neighbours, and they are nobody's neighbours among themselves.
LIARS = tuple(
  SIDE * i + j
  for i in range(SIDE)
  for j in range(SIDE)
  if (i + 2 * j) % SIDE == 0
)
_LIE = 'sign flip'


def cells(settings: Any) -> list[Cell]:
  return [
    cell(settings, 'liars', 'torus', TORUS, rule, attack, LIARS)
    for attack in ('none', _LIE)
    for rule in RULES
  ]


def summarise(rows: Rows, settings: Any) -> Summary:
  training = of_training(rows, early(settings))
  lied = accuracies(rows, 'liars', 'attack')
  for rule, best in tables.split(
    tables.select(rows, part='liars', attack=_LIE), 'rule'
  ).items():
    lied[rule, 'learning rate'] = tables.final(best, 'learning_rate')
  gaps = {name: topology.spectral_gap(GRAPHS[name]) for name in settings.graphs}
  for name, gap in gaps.items():
    training[name, 'gap'] = np.array([gap])
  ends = [pick(gaps, key=gaps.__getitem__) for pick in (max, min)]
  claim = claims_about('', HE, settings.dataset)
  return Summary(
    claims=[
      claim(
        'the gap orders training on heterogeneous data',
        *checks_of_gap(gaps, training, *ends),
        paper=SWENSON,
      ),
      claim(
        'one liar in every neighbourhood stops plain gossip, and no robust'
        ' rule',
        *checks_of_liars(lied),
      ),
    ],
    tables=pivots(
      [
        (
          'Training on graphs: test accuracy (%), the learning rate that was'
          ' chosen, distance between nodes, spectral gap',
          training,
          2,
        ),
        (
          f'Torus of {TORUS.num_nodes} nodes, {len(LIARS)} of which lie: test'
          ' accuracy (%), and the learning rate that was chosen under attack',
          lied,
          2,
        ),
      ]
    ),
    figures={f'{settings.dataset}.png': lambda: picture(gaps, training, lied)},
  )


def checks_of_liars(lied: tables.Cells) -> list[Check]:
  lost = (lied['plain', 'none'] - lied['plain', _LIE]).mean()

  def gain(rule: str) -> float:
    """Over plain gossip under attack, more than without."""
    over = {
      attack: lied[rule, attack] - lied['plain', attack]
      for attack in ('none', _LIE)
    }
    return (over[_LIE] - over['none']).mean()

  return [
    Check('points that plain gossip loses', lost, 30),
    *(
      Check(
        f'points of {rule} over plain, more than without attack',
        gain(rule),
        20,
      )
      for rule in [*RULES][1:]
    ),
  ]


def picture(gaps, training: tables.Cells, lied: tables.Cells) -> plt.Figure:
  """Accuracy of every node by gap, and of rules with liars around."""
  figure, axes = pictures.panels(1, 2, figsize=(10, 4))
  left, right = axes[0]
  for name, colour in palette.colours(list(gaps)).items():
    for column, marker in (('nodes', 'o'), ('worst node', 'x')):
      y = training[name, column]
      label = name if column == 'nodes' else None
      left.errorbar(
        gaps[name], y.mean(), y.std(), fmt=marker, color=colour, label=label
      )
  left.set(xscale='log', xlabel='spectral gap')
  left.set_ylabel('accuracy (%): mean (dots), worst node (crosses)')
  columns = ['none', _LIE]
  of_rule = {rule: [lied[rule, name] for name in columns] for rule in RULES}
  pictures.spread_over(right, range(len(columns)), of_rule)
  right.set_xticks(range(len(columns)), ['no attack', 'one liar for each node'])
  right.set(ylabel='mean test accuracy of honest nodes (%)', ylim=(0, 100))
  right.set_xlim(-0.3, len(columns) - 0.7)
  for each in (left, right):
    each.legend(fontsize=8, ncols=4, loc='lower left', bbox_to_anchor=(0, 1))
  return figure
