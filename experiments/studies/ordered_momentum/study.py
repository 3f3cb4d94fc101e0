r"""Ordered momentum (OrMo) and other momenta without a barrier.

  python -m experiments.studies ordered_momentum --check
  python -m experiments.studies ordered_momentum --variant=long
  python -m experiments.studies ordered_momentum --variant=fashion_mnist \
      --data_dir=FOLDER

K workers send single gradients. Under a barrier the server adds up K of them
and takes a momentum step; without one it does something for every message, and
methods differ in how momentum is to decay and what late gradients count. All
take the same number of gradients; the clock is simulated.

What is run is in `training.py`; here is what it says.
"""

import functools
import math

import numpy as np

from ...harness.cells import OwnCell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import Summary, Table
from .. import arrivals, mixture
from . import stability, training
from .claims import SAME, Compared, claims
from .methods import BARRIER
from .training import (
  ATTACKED,
  SCHEDULES,
  Settings,
  events_of,
  names,
)

NEAR = 0.01  # A loss that is so much above another is as good on the clock.
LONG = 32_000  # Messages.
SHOWN = (BARRIER, 'OrMo', 'SMEGA2')  # On the clock.
VARIANTS = {
  'long': {
    'num_messages': LONG,
    'num_seeds': 5,
    'num_orders': 5,
    'schedules': tuple(SCHEDULES),
    # A momentum per worker is lost there, and costs as much as all others.
    'left_out': ('shifted: 64, equal', 'shifted: 64, 4 slow'),
    'rates': (0.0071, 0.01, 0.0141, 0.02, 0.0283, 0.04),
    'more_rates': (0.057, 0.08, 0.113, 0.16, 0.226, 0.32),
    'naive_rates': (0.0035, 0.005),
    'has_plain_step': False,
    'is_attacked': False,
    'has_limits': True,
  },
  'fashion_mnist': {
    'dataset': 'fashion_mnist',
    'pooling': 2,
    'num_messages': 16_000,
    'num_orders': 3,
    'schedules': ('16, equal', '16, 1 slow'),
    'rates': (0.0025, 0.005, 0.0071, 0.01, 0.0141, 0.02, 0.04),
    'more_rates': (0.08, 0.16, 0.32),
    'naive_rates': (0.00125,),
    'has_plain_step': False,
    'is_attacked': False,
  },
}
QUICK = {
  'num_messages': 64,
  'num_evals': 4,
  'rates': (0.02,),
  'more_rates': (),
}
QUICK_CELLS = ('SSGDm, 16, equal', 'OrMo, 16, equal')


def define(settings: Settings) -> list[OwnCell]:
  limits = stability.cells(settings) if settings.has_limits else []
  return [*training.define(settings), *limits]


best = functools.partial(tables.tuned, by='validation_loss', least=True)


def keep(rows: Rows, settings: Settings) -> Rows:
  """The ends of runs; the robust comparison has those at the best rate."""
  plain = names(settings)[0]
  limits = tables.select(rows, attack=stability.ATTACK)
  rows = [row for row in rows if row['attack'] != stability.ATTACK]
  of_barrier = tables.select(rows, method=BARRIER, attack='none')
  goals, rates = {}, {}
  for schedule, of_schedule in tables.split(of_barrier, 'schedule').items():
    for row in best(of_schedule, 'rate'):
      goals[schedule, row['seed']] = row['loss'] + NEAR
      rates[schedule] = row['rate']

  def more(run):
    goal = goals.get((run[0]['schedule'], run[0]['seed']), math.nan)
    return {'seconds': arrivals.seconds_until(run, goal)}

  def is_curve(row):
    return (
      row['method'] in SHOWN
      and row['attack'] == 'none'
      and row['seed'] == 0
      and row['rate'] == rates.get(row['schedule'])
    )

  kept = arrivals.keep(rows, more, is_curve)
  chosen = []
  for (method, attack), mine in tables.split_by(kept, 'method', 'attack'):
    is_plain = method in plain and attack == 'none'
    chosen += mine if is_plain else best(mine, 'rate')
  return chosen + limits


def end(rows: Rows) -> np.ndarray:
  """The loss at the end, per seed; what diverged counts as 10."""
  if not rows:
    return np.array([np.nan])
  return np.minimum(np.nan_to_num(tables.final(rows, 'loss'), nan=10), 10)


def compare(rows: Rows, settings: Settings, schedule: str) -> Compared:
  plain, mine = names(settings)[0], tables.select(rows, attack='none')
  mine = tables.select(mine, schedule=schedule)
  of = {
    m: runs for m, runs in tables.split(mine, 'method').items() if m in plain
  }
  own = {name: best(runs, 'rate') for name, runs in of.items()}
  rate = own[BARRIER][0]['rate'] if BARRIER in own else math.nan
  same = {name: tables.select(runs, rate=rate) for name, runs in of.items()}
  found = Compared(rate, tables.Cells(), tables.Cells(), tables.Cells())
  for name, runs in of.items():
    for column, chosen in (('own rate', own[name]), (SAME, same[name])):
      found.losses[name, column] = end(chosen)
      found.clock[name, column] = tables.final(chosen, 'seconds')
    found.losses[name, 'less OrMo'] = end(same[name]) - end(
      same.get('OrMo', [])
    )
    found.losses[name, 'own rate is'] = np.array(own[name][0]['rate'])
    found.losses[name, 'own less OrMo'] = end(own[name]) - end(
      own.get('OrMo', [])
    )
    for x in tables.values_of(runs, 'rate'):
      found.by_rate[name, f'rate {x:g}'] = end(tables.select(runs, rate=x))
    found.clock[name, 'to the end'] = np.array(
      [
        events_of(settings, schedule, name, order).time[-1]
        for order in range(settings.num_orders)
      ]
    )
  return found


def schedules(settings: Settings) -> Table:
  lines = []
  for schedule in settings.schedules:
    for name, method in (('barrier', BARRIER), ('no barrier', 'OrMo')):
      events = events_of(settings, schedule, method)
      lines.append(
        f'{schedule:11} {name:11} mean {events.staleness.mean():5.1f}, largest'
        f' {events.staleness.max():4d}; {events.time[-1]:6.0f} s'
      )
  title = 'Messages between a job and its message; seconds of a run'
  return Table(title, '\n'.join(lines))


def robust(rows: Rows, settings: Settings) -> tables.Cells:
  """Losses and rates with and without attackers."""
  found = tables.Cells()
  mine = tables.select(rows, schedule=ATTACKED)
  for (name, attack), runs in tables.split_by(mine, 'method', 'attack'):
    if name in (BARRIER, 'OrMo', *names(settings)[1]):
      chosen = best(runs, 'rate')
      found[name, attack] = end(chosen)
      found[name, f'its rate, {attack}'] = np.array(chosen[0]['rate'])
  return found


def draw(rows: Rows, settings: Settings, compared: dict[str, Compared]):
  """Losses by rate, and on the clock for a few methods."""
  figure, panels = pictures.panels(2, len(compared))
  for (above, below), (schedule, found) in zip(panels.T, compared.items()):
    series = {
      name: [found.by_rate[name, f'rate {x:g}'] for x in settings.rates]
      for name in tables.axes(found.by_rate)[0]
    }
    means = [np.mean(x) for each in series.values() for x in each]
    low = np.nanmin([*means, 10])
    pictures.spread_over(above, settings.rates, series)
    above.set(title=f'K = {schedule}', xlabel='rate')
    mine = tables.select(rows, schedule=schedule, attack='none', seed=0)
    curves = {
      name: arrivals.with_clock(
        tables.select(mine, method=name, rate=found.rate),
        events_of(settings, schedule, name),
      )
      for name in SHOWN
    }
    pictures.curves(below, curves, 'time', 'loss')
    below.set(title=f'rate {found.rate:g}, seed 0', xlabel='simulated seconds')
    for axes in (above, below):
      axes.set(xscale='log', ylabel='test loss')
      axes.set_ylim(low - 0.03, low + 0.4)
      axes.tick_params(axis='x', which='minor', labelbottom=False)
    above.set_xticks(settings.rates, settings.rates, rotation=45)
  figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside right')
  panels[1, 0].legend()
  return figure


def summarise(rows: Rows, settings: Settings) -> Summary:
  compared = {x: compare(rows, settings, x) for x in settings.schedules}
  is_mixture = settings.dataset == 'mixture'
  data = 'mixture of Gaussians' if is_mixture else settings.dataset
  if settings.num_messages == LONG:
    data = f'{data}, {LONG} messages'
  shown: list[tuple] = []
  for x, found in compared.items():
    clock = tables.reached(found.clock)
    shown += [
      (f'{x}: test loss; same rate: {found.rate:g}', found.losses, 4),
      (f'{x}: test loss by rate', found.by_rate, 3),
      (f'{x}: seconds until {NEAR:g} above the loss of {BARRIER}', clock, 0),
    ]
    if not is_mixture:
      shown.append((f'{x}: test accuracy (%)', accuracies(rows, x), 1))
  attacked = robust(rows, settings) if settings.is_attacked else tables.Cells()
  title = f'{settings.num_byzantine} attackers: test loss, own rates'
  shown.append((f'{ATTACKED}, {title}', attacked, 4))
  if settings.has_limits:
    title = 'Where training diverges: K x rate x curvature'
    shown.append((title, stability.table(rows), 2))
  found_tables = [schedules(settings)] + [
    Table(x, tables.pivot(y, digits)) for x, y, digits in shown if y
  ]
  if is_mixture:
    title = 'Test loss of the Bayes rule'
    found_tables.append(Table(title, f'{mixture.bayes_loss():.4f}'))
  return Summary(
    claims=claims(settings, compared, attacked, data),
    tables=found_tables,
    figures={
      f'{name_of(settings)}.png': lambda: draw(rows, settings, compared)
    },
  )


def name_of(settings: Settings) -> str:
  """Of the picture."""
  known = {'mixture': 'ordered_momentum'}
  name = known.get(settings.dataset, settings.dataset)
  return 'long' if settings.num_messages == LONG else name


def accuracies(rows: Rows, schedule: str) -> tables.Cells:
  """At the rates that are best by the loss on the validation split."""
  mine = tables.select(rows, schedule=schedule, attack='none')
  return tables.Cells(
    ((name, 'own rate'), tables.percent(best(runs, 'rate')))
    for name, runs in tables.split(mine, 'method').items()
  )
