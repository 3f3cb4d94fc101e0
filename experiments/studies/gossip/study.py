r"""Training without a server, and with Byzantine nodes among the neighbours.

  python -m experiments.studies gossip --check                     # digits
  python -m experiments.studies gossip --variant=fashion_mnist --data_dir=FOLDER

Three questions. How fast do nodes agree, and does it matter for training how
well the graph is connected (Swenson et al., Metropolis weights)? Does D-SGD
leave saddle points, and do its agents agree as fast as the theory says? And
which rules of gossip survive attackers, at the bridge of a dumbbell and on a
denser graph (He et al.)? The variant fashion_mnist asks the first of them again
on four graphs, and which rules survive one liar in every neighbourhood.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from matplotlib import pyplot as plt

from ...harness.cells import Cell, OwnCell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table
from . import liars, measure
from .nodes import (
  GRAPHS,
  RULES,
  accuracies,
  bridge,
  cell,
  early,
  of_training,
  rank_correlation,
)

# On the denser graph; no honest node has more than two of them among its seven
# neighbours.
BYZANTINE = (0, 5, 10)
# What an attacker weighs at the bridge, as a share of what the bridge weighs.
SHARES = (1.0, 0.5, 0.25)
SADDLE = ('left', 'to_the_right', 'value', 'disagreement')
METRICS = (
  'accuracy', 'worst_node', 'aggregation_error', 'validation_accuracy',
  'expected', 'rate', *SADDLE,
)  # fmt: skip
ON_IMAGES = ('gap', 'bridge', 'dense', 'liars')
VARIANTS = {
  'fashion_mnist': {
    'dataset': 'fashion_mnist',
    'parts': ('gap', 'liars'),
    'graphs': ('complete', 'exponential', 'torus', 'ring'),
    'rounds': 120,
    'learning_rates': (0.1, 0.3, 1.0),
    'smaller_rates': (0.03,),
    'num_evals': 4,
  },
}
QUICK = {'rounds': 2, 'learning_rates': (0.1,), 'num_runs': 2}
QUICK_CELLS = ('bridge, share 0.25, clipped', 'rate, ring')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  rounds: int = option(200, 'Rounds of training.', low=1)
  batch_size: int = option(16, 'Examples per node and round.', low=1)
  learning_rates: tuple[float, ...] = option(
    (0.03, 0.1, 0.3), 'To choose from.'
  )
  num_evals: int = option(20, 'Evaluations.', low=4)
  parts: tuple[str, ...] = option(
    ('gap', 'bridge', 'dense', 'own'), 'Of these and liars.'
  )
  graphs: tuple[str, ...] = option(tuple(GRAPHS), 'Of those there are.')
  smaller_rates: tuple[float, ...] = option(
    (), 'And these, for graphs without attackers.'
  )
  clique_size: int = option(5, 'Honest nodes of half a dumbbell.', low=2)
  steps: int = option(10000, 'Of D-SGD, for its rates.', low=2000)
  num_runs: int = option(64, 'Runs near the saddle, for a seed.', low=1)
  partition: str = option('label_sorted', 'Labels of honest nodes.')
  dense_partition: str = option(
    'dirichlet_by_worker(alpha=1.0)', 'On the denser graph.'
  )


def define(settings: Settings) -> list[Cell | OwnCell]:
  cells_of: dict[str, Callable] = {
    'gap': of_graphs,
    'bridge': of_bridges,
    'dense': of_dense,
    'liars': liars.cells,
    # What they lack stands behind what the cells on images have.
    'own': lambda settings: measure.cells(
      GRAPHS, settings.steps, settings.num_runs
    ),
  }
  for flag, known in (('parts', cells_of), ('graphs', GRAPHS)):
    for name in getattr(settings, flag):
      if name not in known:
        raise ValueError(f'--{flag}: {name} is none of {", ".join(known)}')
  return [x for part in settings.parts for x in cells_of[part](settings)]


def of_graphs(settings: Settings) -> list[Cell]:
  return [
    cell(settings, 'gap', name, GRAPHS[name], 'plain')
    for name in settings.graphs
  ]


def of_bridges(settings: Settings) -> list[Cell]:
  q = settings.clique_size
  cells = []
  for share in (0.0, *SHARES):
    graph, name = bridge(q, share), f'share {share:g}'
    attack = ('dissensus', (2 * q, 2 * q + 1)) if share else ()
    cells += [
      cell(settings, 'bridge', name, graph, rule, *attack)
      for rule in bridge_rules(share)
    ]
  return cells


def of_dense(settings: Settings) -> list[Cell]:
  graph = GRAPHS['exponential']
  return [
    cell(settings, 'dense', 'exponential', graph, rule, attack, BYZANTINE)
    for attack in ('none', 'sign flip', 'alie')
    for rule in RULES
  ]


def bridge_rules(share: float) -> list[str]:
  """Those that ignore the weights of the graph are attacked once."""
  return list(RULES)[:2] if share in SHARES[:-1] else list(RULES)


def keep(rows: Rows, settings: Settings) -> Rows:
  """Of every cell on images the best learning rate; all that is measured."""
  kept: Rows = []
  for (part, *_), runs in tables.split_by(
    rows, 'part', 'graph', 'rule', 'attack'
  ):
    last = tables.keep(
      runs,
      # Errors of D-SGD are a curve, of which no mean is taken.
      tail=1 if part == 'exponent' else min(3, settings.num_evals // 2),
      metrics=METRICS,
      curves=lambda row: (
        (row['part'], row['round']) == ('gap', early(settings))
        or (row['part'], row['seed']) == ('exponent', 0)
      ),
    )
    kept += tables.tuned(last, 'learning_rate') if part in ON_IMAGES else last
  return kept


def of_own(rows: Rows, part: str, by: str, *columns: str) -> tables.Cells:
  """What was measured without images."""
  runs = tables.split(tables.select(rows, part=part), by)
  return tables.Cells(
    ((name, column), tables.final(runs[name], column))
    for name in runs
    for column in columns
  )


def apart(table: tables.Cells) -> float:
  """The largest distance of a rate to theory, over rows and seeds."""
  differences = [
    np.abs(table[name, 'expected'] - rate).max()
    for (name, column), rate in table.items()
    if column == 'rate'
  ]
  return max(differences, default=np.nan)


def picture(agreement, training, errors: Rows, bridges) -> plt.Figure:
  """Agreement by gap, the error of D-SGD, and rules at the bridge."""
  figure, axes = pictures.panels(1, 3, figsize=(14, 4.2))
  left, middle, right = axes[0]
  twin = left.twinx()
  for name, colour in palette.colours(list(GRAPHS)).items():
    gap = 1 - agreement[name, 'expected'].mean()
    y, accuracy = training[name, 'distance'], training[name, 'nodes'].mean()
    style: dict = {'color': colour, 'label': name}
    left.errorbar(gap, y.mean(), y.std(), fmt='o', **style)
    twin.plot(gap, accuracy, 'x', color=colour)
  left.set(xscale='log', xlabel='spectral gap')
  left.set_ylabel('consensus distance at the end (dots)')
  twin.set_ylabel('mean test accuracy of nodes (%, crosses)')
  of_decays = tables.split(tables.select(errors, seed=0), 'rule')
  pictures.curves(middle, of_decays, y='aggregation_error')
  for of in of_decays.values():
    k, power = tables.column(of, 'round'), of[0]['expected']
    y = of[0]['aggregation_error'] * (k / k[0]) ** power
    middle.plot(k, y, 'k:', linewidth=1)
  middle.set(xscale='log', xlabel='step', yscale='log')
  middle.set(ylabel='consensus error of D-SGD (dots: theory)')
  shares = [f'share {share:g}' for share in (0.0, *SHARES)]
  of_rule = {rule: [bridges[rule, name] for name in shares] for rule in RULES}
  pictures.spread_over(right, range(len(shares)), of_rule)
  right.set_xticks(range(len(shares)), shares, fontsize=8)
  right.set(ylabel='mean test accuracy of nodes (%)', ylim=(0, 100))
  right.set(xlabel='weight of an attacker at the bridge of a dumbbell')
  for each in (left, middle, right):
    each.legend(fontsize=7, ncols=3, loc='lower left', bbox_to_anchor=(0, 1))
  return figure


def summarise(rows: Rows, settings: Settings) -> Summary:
  if 'liars' in settings.parts:
    return liars.summarise(rows, settings)
  agreement = of_own(rows, 'rate', 'graph', 'expected', 'rate')
  training = of_training(rows, early(settings))
  bridges = accuracies(rows, 'bridge', 'graph')
  dense = accuracies(rows, 'dense', 'attack')
  errors = tables.select(rows, part='exponent')
  exponents = of_own(rows, 'exponent', 'rule', 'expected', 'rate')
  saddles = of_own(rows, 'saddle', 'rule', *SADDLE)

  def over_plain(table, rule: str, column: str) -> float:
    return (table[rule, column] - table['plain', column]).mean()

  gaps = {name: 1 - agreement[name, 'expected'].mean() for name in GRAPHS}
  ranks = functools.partial(rank_correlation, gaps, training)

  worst = {
    attack: min(over_plain(dense, rule, attack) for rule in [*RULES][1:])
    for attack in ('sign flip', 'alie')
  }
  noisy = [saddles[f'noise {x:g}', 'left'].mean() for x in measure.NOISES[1:]]
  stay = 1 - saddles['noise 0', 'left'].mean()
  ends = training['complete', 'nodes'] - training['chain', 'nodes']
  clipped = over_plain(bridges, 'clipped', 'share 0.25')
  trimmed = over_plain(bridges, 'trimmed', 'share 0')
  quiet = (
    'ALIE hardly hurts plain gossip here, and the trimmed mean is below it'
  )
  swenson = 'Swenson, Murray, Poor, Kar 2022, arXiv:2003.02818'
  he = 'He, Karimireddy, Jaggi 2022, arXiv:2202.01545'
  on = settings.dataset
  return Summary(
    claims=[
      Claim(
        'D-SGD', 'noise takes D-SGD away from saddle points', swenson,
        'a saddle in the plane',
        [
          Check('runs that stay without noise (%)', 100 * stay, 100),
          Check('runs that leave with noise (%)', 100 * min(noisy), 95),
        ],
      ),
      Claim(
        'D-SGD', 'agents agree as fast as steps fall over consensus weights',
        swenson, 'quadratics',
        [Check('largest distance to theory', apart(exponents), at_most=0.05)],
      ),
      Claim(
        '', 'a round of gossip leaves 1 - gap of the distance to the mean',
        'linear algebra', 'vectors',
        [Check('largest distance to it', apart(agreement), at_most=0.005)],
        published='1 - gap', evidence='C',
      ),
      Claim(
        '', 'the gap orders training on heterogeneous data', swenson, on,
        [
          Check('rank correlation with accuracy (%)', ranks('nodes'), 80),
          Check('and with distance (%)', ranks('distance'), at_most=-80),
          Check('points of the complete graph over the chain', ends.mean(), 2),
        ],
      ),
      Claim(
        '', 'clipped gossip survives dissensus at a bridge, plain does not', he,
        on, [Check('points of clipped over plain, share 0.25', clipped, 20)],
      ),
      Claim(
        '', 'rules that ignore weights lose a bridge without any attacker', he,
        on, [Check('points of plain over trimmed, share 0', -trimmed, 20)],
      ),
      Claim(
        '', 'on a denser graph robust rules survive attackers', he, on,
        [
          Check(
            f'points of the worst robust rule over plain, {attack}',
            worst[attack], least, why=why,
          )
          for attack, least, why in (('sign flip', 30, ''), ('alie', 0, quiet))
        ],
      ),
    ],
    tables=[
      Table(title, tables.pivot(table, digits))
      for title, table, digits in (
        (
          'What a round of gossip multiplies the distance to the mean by, and'
          ' 1 - gap', agreement, 4,
        ),
        (
          'Training on graphs: test accuracy (%), the learning rate that was'
          ' chosen, distance between nodes', training, 2,
        ),
        (
          'D-SGD: exponent of the consensus error, by decays of steps and of'
          ' consensus', exponents, 3,
        ),
        (
          'D-SGD at a saddle of value 0 with minima of value -0.25: share of'
          ' runs that leave it, that end to the right, mean value, largest'
          ' difference of values between agents', saddles, 3,
        ),
        (
          'Dumbbell, dissensus at both ends of the bridge: test accuracy (%)'
          ' by what an attacker weighs there, as a share of the bridge',
          bridges, 1,
        ),
        (
          f'Exponential graph, {len(BYZANTINE)} of 16 nodes attack: test'
          ' accuracy (%)', dense, 1,
        ),
      )
      if table
    ],
    figures={
      'gossip.png': lambda: picture(agreement, training, errors, bridges)
    },
  )  # fmt: skip
