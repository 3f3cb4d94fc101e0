r"""Ordered momentum (OrMo) and other momenta without a barrier.

  python -m experiments.studies ordered_momentum --check

K workers send single gradients of fresh data. Under a barrier the server adds
up K of them and takes a momentum step; without one it does something for every
message, and methods differ in how momentum is to decay and what late gradients
count. All take the same number of gradients; the clock is simulated.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, models
from experiments.harness.cells import OwnCell, Rows
from experiments.harness.settings import Settings as Shared
from experiments.harness.settings import option
from experiments.reporting import pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table
from experiments.studies import arrivals, mixture
from experiments.studies.ordered_momentum.methods import (
  BARRIER,
  BASELINES,
  NUM_COMPARED,
  methods,
)

RATES = (0.003, 0.01, 0.02, 0.04, 0.08)
WIDTH = 64  # Of the network.
SCHEDULES = {  # K and how many of them are slow
  '16, equal': (16, 0),
  '16, 1 slow': (16, 1),
  '64, 4 slow': (64, 4),
}
ATTACKED = '16, 1 slow'
WHY = {
  '16, 1 slow': 'SMEGA2 ties: the gap is within the deviation of 3 seeds',
  '64, 4 slow': (
    'too few steps: with 125 of them the best rate under the barrier is close'
    ' to where momenta without one diverge; at half of it OrMo is ahead'
  ),
}
NEAR = 0.01  # A loss that is so much above another is as good on the clock.
SAME = 'same rate'
SHOWN = (BARRIER, 'OrMo', 'SMEGA2')  # On the clock.
QUICK = {
  'num_messages': 64,
  'num_evals': 4,
  'rates': (0.02,),
  'more_rates': (),
}
QUICK_CELLS = ('SSGDm, 16, equal', 'OrMo, 16, equal')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Shared):
  num_messages: int = option(8000, 'Gradients of a run.', low=1)
  batch_size: int = option(16, 'Examples of a gradient.', low=1)
  momentum: float = option(0.9, 'Of all methods that have one.')
  rates: tuple[float, ...] = option(RATES, 'Of a gradient.')
  more_rates: tuple[float, ...] = option((0.2, 0.4), 'Of ASGD, beside these.')
  less_rates: tuple[float, ...] = option((0.0003, 0.001), 'More, if attacked.')
  slowdown: float = option(10.0, 'Seconds of a slow worker for a job.', low=0)
  num_byzantine: int = option(3, 'f of 16, the first ones.', low=1)
  norms: tuple[float, ...] = option(
    (0.3, 1.0), 'To which messages are clipped.'
  )
  num_evals: int = option(25, 'Evaluations of a run.', low=1)


def names(settings: Settings) -> tuple[list[str], list[str]]:
  """Of the methods that are compared, and of the robust ones."""
  every = list(methods(1, settings.momentum, settings.norms))
  return every[:NUM_COMPARED], every[NUM_COMPARED:]


def define(settings: Settings) -> list[OwnCell]:
  """All methods on all schedules; robust ones with and without attackers."""
  rates = settings.rates
  plain, robust = names(settings)
  faster = {name: settings.more_rates for name in plain if 'ASGD' in name}
  cells = [
    cell(settings, method, schedule, 'none', rates + faster.get(method, ()))
    for schedule in SCHEDULES
    for method in plain
  ]
  cells += [cell(settings, name, ATTACKED, 'none', rates) for name in robust]
  return cells + [
    cell(settings, name, ATTACKED, 'sign flip', settings.less_rates + rates)
    for name in (BARRIER, 'OrMo', *robust)
  ]


def cell(
  settings: Settings,
  method: str,
  schedule: str,
  attack: str,
  rates: tuple[float, ...],
) -> OwnCell:
  """All rates and seeds of a method."""
  labels = {'method': method, 'schedule': schedule, 'attack': attack}

  def make_program(seeds):
    events = events_of(settings, schedule, method)
    loss_fn = models.cross_entropy_loss(mixture.model(0, WIDTH)[0])
    tests = mixture.held_out()
    return arrivals.program(
      labels,
      rates,
      seeds,
      events=events,
      num_evals=settings.num_evals,
      params=lambda seed: mixture.model(seed, WIDTH)[1],
      make_round=lambda rate: make_round(
        settings, method, attack != 'none', events, loss_fn, rate
      ),
      batch=jnp.zeros(events.num_workers),
      measure=lambda params: {
        name: loss_fn(params, examples) for name, examples in tests.items()
      },
    )

  size = settings.num_messages * len(rates) * settings.num_seeds
  return OwnCell(labels=labels, rounds=size, make_program=make_program)


def events_of(
  settings: Settings, schedule: str, method: str
) -> asynchrony.Events:
  """Slow workers are the last, attackers the first."""
  k, slow = SCHEDULES[schedule]
  return arrivals.simulate(
    (1.0,) * (k - slow) + (settings.slowdown,) * slow,
    num_events=settings.num_messages,
    variation=0.1,
    grace=math.inf if method.startswith(BARRIER) else 0.0,
    seed=0,
  )


def make_round(
  settings: Settings, method: str, is_attacked: bool, events, loss_fn, rate
) -> byzjax.Round:
  """The rate falls to a tenth at half of the messages, again at 3/4."""
  count = len(events.worker)
  known = methods(events.num_workers, settings.momentum, settings.norms)
  arguments = known[method](
    optax.piecewise_constant_schedule(
      rate, {count // 2: 0.1, 3 * count // 4: 0.1}
    )
  )
  if num_rows := arguments.pop('num_rows', None):
    arguments['buffer'] = asynchrony.by_distinct_workers(
      events, num_rows=num_rows
    )
  return byzjax.asynchronous_round(
    loss_fn,
    events=events,
    attack=byzjax.sign_flip(scale=5.0) if is_attacked else None,
    byzantine=settings.num_byzantine if is_attacked else 0,
    sampler=mixture.sampler(settings.batch_size),
    **arguments,
  )


best = functools.partial(tables.tuned, by='validation_loss', least=True)


def keep(rows: Rows, settings: Settings) -> Rows:
  """The ends of runs; the robust comparison has those at the best rate."""
  plain = names(settings)[0]
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
  return chosen


def end(rows: Rows) -> np.ndarray:
  """The loss at the end, per seed; what diverged counts as 10."""
  if not rows:
    return np.array([np.nan])
  return np.minimum(np.nan_to_num(tables.final(rows, 'loss'), nan=10), 10)


class Compared(NamedTuple):
  """The tables of a schedule, by method."""

  rate: float  # that is best under the barrier: the same for all
  losses: tables.Cells
  by_rate: tables.Cells
  clock: tables.Cells


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
    for x in settings.rates:
      found.by_rate[name, f'rate {x:g}'] = end(tables.select(runs, rate=x))
    time = events_of(settings, schedule, name).time
    found.clock[name, 'to the end'] = time[-1:]
  return found


def schedules(settings: Settings) -> Table:
  lines = []
  for schedule in SCHEDULES:
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
      axes.set(xscale='log', ylabel='test loss', ylim=(1.05, 1.5))
      axes.tick_params(axis='x', which='minor', labelbottom=False)
    above.set_xticks(settings.rates, settings.rates)
  figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside right')
  panels[1, 0].legend()
  return figure


def summarise(rows: Rows, settings: Settings) -> Summary:
  compared = {x: compare(rows, settings, x) for x in SCHEDULES}
  attacked = robust(rows, settings)

  def ahead(schedule, column, *others):
    losses = compared[schedule].losses
    means = [losses[name, column].mean() for name in (*others, 'OrMo')]
    return 1000 * (np.min(means[:-1]) - means[-1])

  def ratio(schedule):
    clock = compared[schedule].clock
    return clock[BARRIER, SAME].mean() / clock['OrMo', SAME].mean()

  def checks(text, value, predicted):
    return [
      Check(f'K = {x}: {text}', value(x), least, why=WHY.get(x, ''))
      for x, least in zip(SCHEDULES, predicted)
    ]

  def claim(says, *checks, **more):
    source = 'Shi, Yang, Li 2024, arXiv:2407.19234'
    about = {'method': 'OrMo', 'paper': source, 'data': 'mixture of Gaussians'}
    return Claim(says=says, checks=checks, **{**about, **more})

  shown = []
  for x, found in compared.items():
    clock = arrivals.reached(found.clock)
    shown += [
      (f'{x}: test loss; same rate: {found.rate:g}', found.losses, 4),
      (f'{x}: test loss by rate', found.by_rate, 3),
      (f'{x}: seconds until {NEAR:g} above the loss of {BARRIER}', clock, 0),
    ]
  title = f'{settings.num_byzantine} attackers: test loss, own rates'
  shown.append((f'{ATTACKED}, {title}', attacked, 4))
  at = f'thousandths, at the rate of {BARRIER}'
  gain = attacked['OrMo', 'sign flip']
  gain = gain - attacked['OrMo, places, median', 'sign flip']
  return Summary(
    claims=[
      claim(
        'converges better than other methods without a barrier',
        *checks(
          f'best baseline less OrMo, {at}',
          lambda x: ahead(x, SAME, *BASELINES),
          (0, 0, 0),
        ),
        *checks(
          'best baseline less OrMo, thousandths, at own rates',
          lambda x: ahead(x, 'own rate', *BASELINES),
          (-10, -10, -10),
        ),
        Check(
          f'K = 64, 4 slow: naive less OrMo, {at}',
          ahead('64, 4 slow', SAME, 'naive'),
          50,
        ),
      ),
      claim(
        'keeps up with momentum under a barrier, by gradients',
        *checks(
          f'{BARRIER} less OrMo, {at}',
          lambda x: ahead(x, SAME, BARRIER),
          (-10, -10, -10),
        ),
      ),
      claim(
        'is earlier on the clock, most where workers differ',
        *checks(f'seconds of {BARRIER} over those of OrMo', ratio, (1, 5, 5)),
      ),
      claim(
        'late gradients need the longer step',
        *checks(
          f'plain step less OrMo, {at}',
          lambda x: ahead(x, SAME, 'OrMo, plain step'),
          (0, 0, 0),
        ),
        published='the plain step is worse in all four settings',
        evidence='P',
      ),
      claim(
        'OrMo behind a median of distinct workers resists sign flips',
        Check(
          'OrMo less OrMo with places and median, thousandths',
          1000 * gain.mean(),
          100,
        ),
        method='',
        paper='not from a paper',
      ),
    ],
    tables=[
      schedules(settings),
      *(Table(x, tables.pivot(y, digits)) for x, y, digits in shown if y),
      Table('Test loss of the Bayes rule', f'{mixture.bayes_loss():.4f}'),
    ],
    figures={'ordered_momentum.png': lambda: draw(rows, settings, compared)},
  )
