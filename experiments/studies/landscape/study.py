"""Dropout stability and connected solutions (Shevchenko and Mondelli).

  python -m experiments.studies landscape --check         # digits
  python -m experiments.studies landscape --variant=mnist --data_dir=FOLDER

Pairs of networks of growing width, with one hidden layer and with two, each
from initial weights and batches of its own: how much the loss changes when
hidden units are dropped, and how far it rises between the two networks, on the
path that is constructed from their parts, on the straight line, and on the
straight line to the second network in its best order of units. Then the same
between solutions with and without attackers, and between the local models of
honest workers, of which the average is taken, too.

The variant mnist has the rate, momentum and batch size of the authors' sequel
(arXiv:2102.09671), and about its widths.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt

from ...harness.cells import OwnCell, Rows
from ...harness.settings import Settings as Base
from ...harness.settings import option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots
from . import measure

WAYS = ('constructed', 'straight', 'matched')
QUICK = {'rounds': 2, 'num_draws': 1, 'points': 3, 'widths': (50,)}
QUICK_CELLS = ('width, 1, mean-field, 50',)
VARIANTS = {
  'mnist': {
    'num_seeds': 3,
    'dataset': 'mnist',
    'widths': (50, 100, 200, 400, 800, 1500),
    'deep_widths': (50, 100, 200, 400, 800),
    'rounds': 3000,
    'batch_size': 100,
    'learning_rate': 0.005,
    'server_momentum': 0.95,
    'loss_examples': 5000,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Base):
  num_seeds: int = option(5, 'Seeds 0, 1, ... in one program.', low=1)
  dataset: str = option('digits', 'digits, or an image set of --data_dir.')
  data_dir: str | None = option(None, 'Folder with data sets in TFDS format.')
  widths: tuple[int, ...] = option(
    (50, 100, 200, 400, 800, 1600), 'One hidden layer.'
  )
  deep_widths: tuple[int, ...] = option((50, 100, 200, 400), 'Two of them.')
  standard_widths: tuple[int, ...] = option(
    (50, 200, 800), 'Without the scaling.'
  )
  worker_width: int = option(400, 'Width in parts on workers.', low=2)
  num_draws: int = option(10, 'Of sets of units to keep.', low=1)
  points: int = option(11, 'Per segment of a path.', low=2)
  rounds: int = option(500, 'Rounds of training.', low=1)
  attack_rounds: int = option(500, 'The same, where some attack.', low=1)
  batch_size: int = option(64, 'Examples per round.', low=1)
  learning_rate: float = option(0.2, 'At the smallest width.', low=0)
  server_momentum: float = option(0.0, 'Of SGD, in all parts.', low=0)
  loss_examples: int = option(0, 'Of training losses; 0 is all.', low=0)
  num_workers: int = option(10, 'n, in the parts on workers.', low=2)
  num_byzantine: int = option(2, 'f, of them.', low=1)
  worker_batch_size: int = option(16, 'Examples of a worker.', low=1)
  momentum: float = option(0.9, 'Of workers, where some attack.', low=0)
  partition: str = option('main_class(share=0.7)', 'Of local models.')
  local_steps: tuple[int, ...] = option((10, 100, 500), 'H, of local models.')


def define(settings: Settings) -> list[OwnCell]:
  shape = (1, 'mean-field', settings.worker_width)
  shapes = [
    *((1, 'mean-field', width) for width in settings.widths),
    *((2, 'mean-field', width) for width in settings.deep_widths),
    *((1, 'standard', width) for width in settings.standard_widths),
  ]
  return [
    *(cell(settings, 'width', *each, '-') for each in shapes),
    *(cell(settings, 'attack', *shape, name) for name in measure.ATTACKS),
    *(cell(settings, 'local', *shape, start) for start in measure.STARTS),
  ]


def cell(settings: Settings, part, depth, scaling, width, variant) -> OwnCell:
  names = ('part', 'depth', 'scaling', 'width', 'variant')
  labels = dict(zip(names, (part, depth, scaling, width, variant)))

  is_drawn = (depth, scaling) == (1, 'mean-field') and (
    width in settings.widths[::2]
  )

  def make_rows(seeds) -> Rows:
    problem = measure.problem_of(settings, depth, scaling, width)
    paths = {}
    if part == 'width':
      found, paths = measure.of_width(problem, seeds)
    elif part == 'attack':
      found = measure.of_attack(problem, seeds, variant)
    else:
      found = measure.of_local(problem, seeds, variant)
    rows = [
      {**labels, 'count': count, 'seed': seed, 'round': settings.rounds}
      | {name: float(values[i]) for name, values in numbers.items()}
      for count, numbers in found.items()
      for i, seed in enumerate(seeds)
    ]
    return rows + [
      {**labels, 'part': 'path', 'variant': way, 'count': i, 'seed': seeds[0]}
      | {'round': settings.rounds}
      | {f'point {k}': float(x) for k, x in enumerate(segment)}
      for way, losses in paths.items()
      if is_drawn and way in WAYS[:2]
      for i, segment in enumerate(np.asarray(losses)[0])
    ]

  return OwnCell(labels=labels, rounds=width, make_rows=make_rows)


def of_groups(rows: Rows, by: tuple, name_of, columns=None) -> tables.Cells:
  """Of groups of rows the columns that they have, per seed."""
  table = tables.Cells()
  for key, group in tables.split_by(rows, *by):
    for column in columns or kept_columns(rows):
      if not np.isnan(group[0].get(column, np.nan)):
        table[name_of(*key), column] = tables.final(group, column)
  return table


def kept_columns(rows: Rows) -> list[str]:
  """Changes by number of units that are kept."""
  names = dict.fromkeys(name for row in rows for name in row)
  kept = [name for name in names if name.endswith(' kept')]
  return sorted(
    set(kept) - {'half kept'}, key=lambda name: int(name.split()[0])
  )


def width_of(width: int) -> str:
  return f'width {width}'


def picture(rows: Rows, widths, deep_widths) -> plt.Figure:
  """Changes by units kept, rises by width, and the loss along paths."""
  figure, axes = pictures.panels(1, 3, figsize=(15, 4.4))
  left, middle, right = axes[0]
  scaled = tables.select(rows, scaling='mean-field')
  sweep = tables.select(scaled, part='width')
  colours = palette.colours([*map(width_of, widths), *WAYS])
  changes = of_groups(tables.select(sweep, depth=1), ('width',), width_of)
  numbers = [int(name.split()[0]) for name in kept_columns(sweep)]
  for name in map(width_of, widths):
    means = [changes[name, f'{kept} kept'].mean() for kept in numbers]
    left.plot(numbers, means, '.-', color=colours[name], label=name)
  left.set(yscale='log', xlabel='units kept', ylabel='|change of the loss|')
  for depth, style, places in ((1, '.-', widths), (2, '.--', deep_widths)):
    of_depth = tables.select(sweep, depth=depth)
    rises = of_groups(of_depth, ('width',), width_of, WAYS)
    for way in WAYS:
      means = [rises[width_of(width), way].mean() for width in places]
      label = f'{way}, {depth} hidden'
      middle.plot(places, means, style, color=colours[way], label=label)
  middle.set(yscale='log', xlabel='width', ylabel='rise of the loss on the way')
  for axis, places in ((left, measure.KEPT), (middle, widths)):
    axis.set_xscale('log')
    axis.set_xticks(places, map(str, places))
    axis.minorticks_off()
  segments = tables.select(scaled, part='path')
  for (width, way), path in tables.split_by(segments, 'width', 'variant'):
    names = [name for name in path[0] if name.startswith('point')]
    losses = [row[name] for row in path for name in names]
    place, name = np.linspace(0, 1, len(losses)), width_of(width)
    style = '-' if way == WAYS[0] else ':'
    label = f'{name}, {way}'
    right.plot(place, losses, style, color=colours[name], label=label)
  right.set(yscale='log', xlabel='place on the way', ylabel='training loss')
  for axis in axes[0]:
    axis.legend(fontsize=7)
  return figure


class Measured(NamedTuple):
  """The sweep of widths is by depth and scaling."""

  by_width: dict[tuple, tables.Cells]
  by_kept: dict[tuple, tables.Cells]
  attacks: tables.Cells
  local: tables.Cells


def measured(rows: Rows) -> Measured:
  columns = ('trained', 'half kept', *WAYS)
  sweep = dict(
    tables.split_by(tables.select(rows, part='width'), 'depth', 'scaling')
  )
  return Measured(
    by_width={
      key: of_groups(part, ('width',), width_of, columns)
      for key, part in sweep.items()
    },
    by_kept={
      key: of_groups(part, ('width',), width_of) for key, part in sweep.items()
    },
    attacks=of_groups(
      tables.select(rows, part='attack'),
      ('count', 'variant'),
      lambda i, attack: f'{attack}, {measure.STARTS[i]} start',
      ('trained', *WAYS),
    ),
    local=of_groups(
      tables.select(rows, part='local'),
      ('variant', 'count'),
      lambda start, steps: f'{start} start, {steps} steps',
      ('trained', *WAYS, 'average', 'matched average'),
    ),
  )


def summarise(rows: Rows, settings: Settings) -> Summary:
  found, shown = measured(rows), []
  for depth, scaling in found.by_width:
    at, key = f'{depth} hidden, {scaling}', (depth, scaling)
    shown += [
      (f'{at}: loss, and how far it rises', found.by_width[key], 3),
      (f'{at}: |change| of the loss by units kept', found.by_kept[key], 3),
    ]
  shown += [
    (
      'From attack-free to robust training: robust loss, and rises',
      found.attacks,
      3,
    ),
    (
      'Local models: mean loss, rises within pairs, average over it',
      found.local,
      3,
    ),
  ]
  excess = max(row['excess'] for row in rows if row['part'] != 'path')
  name = 'landscape' if settings.dataset == 'digits' else settings.dataset
  return Summary(
    claims=claims_of(found, excess, settings),
    tables=pivots(shown),
    figures={
      f'{name}.png': lambda: picture(
        rows, settings.widths, settings.deep_widths
      )
    },
  )


def claims_of(
  found: Measured, excess: float, settings: Settings
) -> list[Claim]:
  paper = 'Shevchenko, Mondelli 2020, arXiv:1912.10095 (figures only)'
  name = 'dropout stability and connectivity'
  claim = claims_about(name, paper, settings.dataset)
  depths = [
    (depth, widths, found.by_width.get((depth, 'mean-field'), tables.Cells()))
    for depth, widths in ((1, settings.widths), (2, settings.deep_widths))
  ]
  return [
    claim(
      'wide networks lose little when half of the units are dropped, and two'
      ' of them are connected',
      *(check for each in depths for check in checks_of_falls(*each)),
      *(check_of_training(*each) for each in depths),
    ),
    claim(
      'the units that are kept count, not the width',
      check_of_kept(found.by_kept.get((1, 'mean-field'), tables.Cells())),
    ),
    claim(
      'the path is no higher than the dropped networks on it',
      Check('most above breakpoints (millionths)', 1e6 * excess, at_most=20),
      published='a bound',
      evidence='C',
    ),
    claim(
      'in wide networks the path is below the straight line (ours)',
      *(check_of_ways(*each) for each in depths),
      method='',
    ),
    claim(
      'a rise between local models says whether they can be averaged (ours)',
      check_of_averages(found.local),
      method='',
    ),
  ]


def checks_of_falls(
  depth: int, widths: Sequence[int], table: tables.Cells
) -> list[Check]:
  """From the smallest to the largest width."""
  few, many = (width_of(width) for width in (min(widths), max(widths)))
  root = round((max(widths) / min(widths)) ** 0.5, 1)
  return [
    Check(
      f'{depth} hidden: {what}, {few} over {many}',
      (table[few, column] / table[many, column]).mean(),
      root,
    )
    for what, column in (
      ('change at half kept', 'half kept'),
      ('rise on the path', 'constructed'),
    )
  ]


def check_of_training(
  depth: int, widths: Sequence[int], table: tables.Cells
) -> Check:
  trained = [table[width_of(width), 'trained'].mean() for width in widths]
  ratio = 100 * min(trained) / max(trained)
  return Check(
    f'{depth} hidden: least over largest trained loss (%)', ratio, 70
  )


def check_of_ways(
  depth: int, widths: Sequence[int], table: tables.Cells
) -> Check:
  many = width_of(max(widths))
  less = (table[many, 'straight'] - table[many, 'constructed']).mean()
  return Check(f'{depth} hidden: straight less constructed, {many}', less, 0)


def check_of_kept(table: tables.Cells) -> Check:
  at_50 = [
    values.mean() for (_, name), values in table.items() if name == '50 kept'
  ] or [np.nan]
  return Check(
    '1 hidden, 50 kept: least over largest change of all widths (%)',
    100 * min(at_50) / max(at_50),
    50,
    why='at width 100, 50 units are half of all, drawn without replacement',
  )


def check_of_averages(local: tables.Cells) -> Check:
  signs = [
    (local[row, 'straight'].mean() > 0.01) == (local[row, 'average'].mean() > 0)
    for row in dict.fromkeys(row for row, _ in local)
  ] or [np.nan]
  share = 100 * float(np.mean(signs))
  return Check('rows in which it does (%)', share, 100)
