"""What was predicted of gossip before it was run."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...reporting import tables
from ...reporting.summary import Check, Claim, claims_about
from . import measure
from .nodes import GRAPHS, RULES, rank_correlation

SWENSON = 'Swenson, Murray, Poor, Kar 2022, arXiv:2003.02818'
HE = 'He, Karimireddy, Jaggi 2022, arXiv:2202.01545'


class Measured(NamedTuple):
  """Per seed."""

  agreement: tables.Cells  # of vectors, by graph
  training: tables.Cells  # by graph
  exponents: tables.Cells  # of D-SGD, by decays
  saddles: tables.Cells  # of D-SGD, by noise
  bridges: tables.Cells  # accuracy by rule and share of the bridge
  dense: tables.Cells  # accuracy by rule and attack


def of_gossip(found: Measured, data: str) -> list[Claim]:
  gaps = {name: 1 - found.agreement[name, 'expected'].mean() for name in GRAPHS}
  claim = claims_about('', HE, data)
  clipped = over_plain(found.bridges, 'clipped', 'share 0.25')
  trimmed = over_plain(found.bridges, 'trimmed', 'share 0')
  d_sgd = {'method': 'D-SGD', 'paper': SWENSON}
  to_theory = apart(found.exponents)
  return [
    claim(
      'noise takes D-SGD away from saddle points',
      *checks_of_saddles(found.saddles),
      data='a saddle in the plane',
      **d_sgd,
    ),
    claim(
      'agents agree as fast as steps fall over consensus weights',
      Check('largest distance to theory', to_theory, at_most=0.05),
      data='quadratics',
      **d_sgd,
    ),
    claim(
      'a round of gossip leaves 1 - gap of the distance to the mean',
      Check('largest distance to it', apart(found.agreement), at_most=0.005),
      paper='linear algebra',
      data='vectors',
      published='1 - gap',
      evidence='C',
    ),
    claim(
      'the gap orders training on heterogeneous data',
      *checks_of_gap(gaps, found.training, 'complete', 'chain'),
      paper=SWENSON,
    ),
    claim(
      'clipped gossip survives dissensus at a bridge, plain does not',
      Check('points of clipped over plain, share 0.25', clipped, 20),
    ),
    claim(
      'rules that ignore weights lose a bridge without any attacker',
      Check('points of plain over trimmed, share 0', -trimmed, 20),
    ),
    claim(
      'on a denser graph robust rules survive attackers',
      *checks_of_dense(found.dense),
    ),
  ]


def checks_of_saddles(saddles: tables.Cells) -> list[Check]:
  noisy = [saddles[f'noise {x:g}', 'left'].mean() for x in measure.NOISES[1:]]
  stay = 1 - saddles['noise 0', 'left'].mean()
  return [
    Check('runs that stay without noise (%)', 100 * stay, 100),
    Check('runs that leave with noise (%)', 100 * min(noisy), 95),
  ]


def checks_of_gap(
  gaps: Mapping[str, float], training: tables.Cells, best: str, worst: str
) -> list[Check]:
  """Of the graphs; the best has the largest gap."""
  nodes, distance = (
    rank_correlation(gaps, training, name) for name in ('nodes', 'distance')
  )
  ends = training[best, 'nodes'] - training[worst, 'nodes']
  return [
    Check('rank correlation with accuracy (%)', nodes, 80),
    Check('and with distance (%)', distance, at_most=-80),
    Check(f'points of the {best} graph over the {worst}', ends.mean(), 2),
  ]


def checks_of_dense(dense: tables.Cells) -> list[Check]:
  quiet = (
    'ALIE hardly hurts plain gossip here, and the trimmed mean is below it'
  )
  return [
    Check(
      f'points of the worst robust rule over plain, {attack}',
      min(over_plain(dense, rule, attack) for rule in [*RULES][1:]),
      least,
      why=why,
    )
    for attack, least, why in (('sign flip', 30, ''), ('alie', 0, quiet))
  ]


def over_plain(table: tables.Cells, rule: str, column: str) -> float:
  return (table[rule, column] - table['plain', column]).mean()


def apart(table: tables.Cells) -> float:
  """The largest distance of a rate to theory, over rows and seeds."""
  differences = [
    np.abs(table[name, 'expected'] - rate).max()
    for (name, column), rate in table.items()
    if column == 'rate'
  ]
  return max(differences, default=np.nan)
