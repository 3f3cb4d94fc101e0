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
from collections.abc import Callable

from matplotlib import pyplot as plt

from ...harness.cells import Cell, OwnCell, Rows
from ...harness.settings import ImageSettings, check_known, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Summary, pivots
from . import claims, liars, measure
from .nodes import (
  GRAPHS,
  RULES,
  accuracies,
  bridge,
  cell,
  early,
  of_training,
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
    'smaller_rates': (0.01,),
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
    (0.03, 0.1, 0.3, 1.0, 3.0), 'To choose from.'
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
  check_known('parts', settings.parts, cells_of)
  check_known('graphs', settings.graphs, GRAPHS)
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


def picture(found: claims.Measured, errors: Rows) -> plt.Figure:
  """Agreement by gap, the error of D-SGD, and rules at the bridge."""
  training = found.training
  figure, axes = pictures.panels(1, 3, figsize=(14, 4.2))
  left, middle, right = axes[0]
  twin = left.twinx()
  for name, colour in palette.colours(list(GRAPHS)).items():
    gap = 1 - found.agreement[name, 'expected'].mean()
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
  of_rule = {
    rule: [found.bridges[rule, name] for name in shares] for rule in RULES
  }
  pictures.spread_over(right, range(len(shares)), of_rule)
  right.set_xticks(range(len(shares)), shares, fontsize=8)
  right.set(ylabel='mean test accuracy of nodes (%)', ylim=(0, 100))
  right.set(xlabel='weight of an attacker at the bridge of a dumbbell')
  for each in (left, middle, right):
    each.legend(fontsize=7, ncols=3, loc='lower left', bbox_to_anchor=(0, 1))
  return figure


def measured(rows: Rows, settings: Settings) -> claims.Measured:
  return claims.Measured(
    agreement=of_own(rows, 'rate', 'graph', 'expected', 'rate'),
    training=of_training(rows, early(settings)),
    exponents=of_own(rows, 'exponent', 'rule', 'expected', 'rate'),
    saddles=of_own(rows, 'saddle', 'rule', *SADDLE),
    bridges=accuracies(rows, 'bridge', 'graph'),
    dense=accuracies(rows, 'dense', 'attack'),
  )


def summarise(rows: Rows, settings: Settings) -> Summary:
  if 'liars' in settings.parts:
    return liars.summarise(rows, settings)
  found = measured(rows, settings)
  errors = tables.select(rows, part='exponent')
  shown = [
    (
      'What a round of gossip multiplies the distance to the mean by, and'
      ' 1 - gap',
      found.agreement,
      4,
    ),
    (
      'Training on graphs: test accuracy (%), the learning rate that was'
      ' chosen, distance between nodes',
      found.training,
      2,
    ),
    (
      'D-SGD: exponent of the consensus error, by decays of steps and of'
      ' consensus',
      found.exponents,
      3,
    ),
    (
      'D-SGD at a saddle of value 0 with minima of value -0.25: share of'
      ' runs that leave it, that end to the right, mean value, largest'
      ' difference of values between agents',
      found.saddles,
      3,
    ),
    (
      'Dumbbell, dissensus at both ends of the bridge: test accuracy (%)'
      ' by what an attacker weighs there, as a share of the bridge',
      found.bridges,
    ),
    (
      f'Exponential graph, {len(BYZANTINE)} of 16 nodes attack: test'
      ' accuracy (%)',
      found.dense,
    ),
  ]
  return Summary(
    claims=claims.of_gossip(found, settings.dataset),
    tables=pivots(shown),
    figures={'gossip.png': lambda: picture(found, errors)},
  )
