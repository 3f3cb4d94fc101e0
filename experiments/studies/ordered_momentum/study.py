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
from typing import Any

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

WIDTH = 64  # Of the network.
SCHEDULES = {  # K and how many of them are slow
  '16, equal': (16, 0),
  '16, 1 slow': (16, 1),
  '64, 4 slow': (64, 4),
}
ATTACKED = '16, 1 slow'
# Differences of losses in thousandths, from before the first run: baselines
# less OrMo at one rate and at own rates, barrier, plain step; and seconds.
PREDICTED = {
  '16, equal': (0, -10, -10, 0, 1),
  '16, 1 slow': (0, -10, -10, 0, 5),
  '64, 4 slow': (0, -10, -10, 0, 5),
}
WHY = {
  '16, 1 slow': 'SMEGA2 ties: the gap is within the deviation of 3 seeds',
  '64, 4 slow': (
    'too few steps: with 125 of them the best rate under the barrier is close'
    ' to where momenta without one diverge; at half of it OrMo is ahead'
  ),
}
NEAR = 0.01  # A loss that is so much above another is as good on the clock.
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
  rates: tuple[float, ...] = option(
    (0.003, 0.01, 0.02, 0.04, 0.08), 'Of a gradient.'
  )
  more_rates: tuple[float, ...] = option((0.2, 0.4), 'Of ASGD, beside these.')
  less_rates: tuple[float, ...] = option(
    (0.0003, 0.001), 'Beside them, if attacked.'
  )
  slowdown: float = option(10.0, 'Seconds of a slow worker for a job.', low=0)
  num_byzantine: int = option(3, 'f of 16, the first ones.', low=1)
  norms: tuple[float, ...] = option(
    (0.3, 1.0), 'To which messages are clipped.'
  )
  num_evals: int = option(25, 'Evaluations of a run.', low=1)


def methods_of(settings: Settings, k: int) -> dict[str, Any]:
  return methods(k, settings.momentum, settings.norms)


def names(settings: Settings) -> tuple[list[str], list[str]]:
  """Of the methods that are compared, and of the robust ones."""
  every = list(methods_of(settings, 1))
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

  return OwnCell(
    labels=labels, rounds=settings.num_messages, make_program=make_program
  )


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
  arguments = methods_of(settings, events.num_workers)[method](
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


def compare(
  rows: Rows, settings: Settings, schedule: str
) -> tuple[list[Table], list[float], float]:
  """Tables of a schedule, what is predicted of it, and the barrier's rate."""
  of_schedule = tables.select(rows, schedule=schedule, attack='none')
  of = {
    name: tables.select(of_schedule, method=name) for name in names(settings)[0]
  }
  tuned = {name: best(mine, 'rate') for name, mine in of.items()}
  rate = tuned[BARRIER][-1]['rate'] if tuned[BARRIER] else math.nan
  same = {name: tables.select(mine, rate=rate) for name, mine in of.items()}
  at = f'rate {rate:g}'
  losses, by_rate, clock = tables.Cells(), tables.Cells(), tables.Cells()
  for name in of:
    if not of[name]:
      continue
    losses[name, 'own rate'] = end(tuned[name])
    losses[name, 'which is'] = np.array(tuned[name][-1]['rate'])
    losses[name, at] = end(same[name])
    losses[name, 'less OrMo'] = end(same[name]) - end(same['OrMo'])
    for x in settings.rates:
      by_rate[name, f'rate {x:g}'] = end(tables.select(of[name], rate=x))
    for label, mine in (('own rate', tuned[name]), (at, same[name])):
      clock[name, label] = tables.final(mine, 'seconds')
    time = events_of(settings, schedule, name).time
    clock[name, 'to the end'] = time[-1:]

  def ahead(column, *others):
    means = [losses[name, column].mean() for name in (*others, 'OrMo')]
    return 1000 * (np.min(means[:-1]) - means[-1])

  values = [
    ahead(at, *BASELINES),
    ahead('own rate', *BASELINES),
    ahead(at, BARRIER),
    ahead(at, 'OrMo, plain step'),
    clock[BARRIER, at].mean() / clock['OrMo', at].mean(),
    ahead(at, 'naive'),
  ]
  # What not all seeds reached is left out of the table.
  reached = {key: x for key, x in clock.items() if np.isfinite(x).all()}
  shown = [
    ('test loss', losses, 4),
    ('test loss by rate', by_rate, 3),
    (f'seconds until {NEAR:g} above the loss of {BARRIER}', reached, 0),
  ]
  return (
    [
      Table(f'{schedule}: {title}', tables.pivot(cells, digits))
      for title, cells, digits in shown
      if cells
    ],
    values,
    rate,
  )


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
  """Losses and rates under attack, and without one."""
  table = tables.Cells()
  for method in (BARRIER, 'OrMo', *names(settings)[1]):
    for attack in ('none', 'sign flip'):
      mine = tables.select(
        rows, schedule=ATTACKED, method=method, attack=attack
      )
      if mine := best(mine, 'rate'):
        table[method, attack] = end(mine)
        table[method, f'its rate, {attack}'] = np.array(mine[-1]['rate'])
  return table


def draw(rows: Rows, settings: Settings, rates: dict[str, float]):
  """Losses by rate, and on the clock for a few methods."""
  figure, panels = pictures.panels(2, len(rates))
  for column, (schedule, rate) in zip(panels.T, rates.items()):
    mine = tables.select(rows, schedule=schedule, attack='none')
    of = {name: tables.select(mine, method=name) for name in names(settings)[0]}
    series = {
      name: [end(tables.select(runs, rate=x)) for x in settings.rates]
      for name, runs in of.items()
      if runs
    }
    pictures.spread_over(column[0], settings.rates, series)
    column[0].set(title=f'K = {schedule}', xlabel='rate', xscale='log')
    curves = {
      name: arrivals.with_clock(
        tables.select(of[name], seed=0, rate=rate),
        events_of(settings, schedule, name),
      )
      for name in SHOWN
    }
    pictures.curves(column[1], curves, 'time', 'loss')
    column[1].set(
      title=f'K = {schedule}, rate {rate:g}, seed 0',
      xlabel='simulated seconds',
      xscale='log',
    )
    ends = [end(runs).mean() for runs in of.values()]
    low = np.nanmin([1.1, *ends])
    for axes in column:
      axes.set(ylabel='test loss', ylim=(low - 0.03, low + 0.35))
  panels[0, 0].legend(fontsize='x-small', ncols=2, loc='upper left')
  panels[1, 0].legend(fontsize='small')
  return figure


def summarise(rows: Rows, settings: Settings) -> Summary:
  compared = {x: compare(rows, settings, x) for x in SCHEDULES}
  attacked = robust(rows, settings)
  source = 'Shi, Yang, Li 2024, arXiv:2407.19234'
  about = {'paper': source, 'data': 'mixture of Gaussians'}

  def checks(place, text, names=tuple(SCHEDULES)):
    return [
      Check(
        f'K = {x}: {text}',
        compared[x][1][place],
        at_least=PREDICTED[x][place],
        why=WHY.get(x, ''),
      )
      for x in names
    ]

  at = f'at the rate of {BARRIER}'
  naive = Check(
    f'K = 64, 4 slow: naive less OrMo, thousandths, {at}',
    compared['64, 4 slow'][1][5],
    at_least=50,
  )
  median = 'OrMo, places, median'
  gain = attacked['OrMo', 'sign flip'] - attacked[median, 'sign flip']
  return Summary(
    claims=[
      Claim(
        method='OrMo',
        says='converges better than other methods without a barrier',
        checks=[
          *checks(0, f'best baseline less OrMo, thousandths, {at}'),
          *checks(1, 'best baseline less OrMo, thousandths, at own rates'),
          naive,
        ],
        **about,
      ),
      Claim(
        method='OrMo',
        says='keeps up with momentum under a barrier, by gradients',
        checks=checks(2, f'{BARRIER} less OrMo, thousandths, {at}'),
        **about,
      ),
      Claim(
        method='OrMo',
        says='is earlier on the clock, most where workers differ',
        checks=checks(4, f'seconds of {BARRIER} over those of OrMo'),
        **about,
      ),
      Claim(
        method='OrMo',
        says='late gradients need the longer step',
        published='the vanilla step is worse in all four settings',
        evidence='P',
        checks=checks(3, f'plain step less OrMo, thousandths, {at}'),
        **about,
      ),
      Claim(
        method='',
        says='OrMo behind a median of distinct workers resists sign flips',
        paper='not from a paper',
        data='mixture of Gaussians',
        checks=[
          Check(
            'OrMo less OrMo with places and median, thousandths',
            1000 * gain.mean(),
            at_least=100,
          )
        ],
      ),
    ],
    tables=[
      schedules(settings),
      *(table for shown, _, _ in compared.values() for table in shown),
      Table(
        f'{ATTACKED}, {settings.num_byzantine} attackers: test loss, own rates',
        tables.pivot(attacked, digits=4) if attacked else '-',
      ),
      Table('Test loss of the Bayes rule', f'{mixture.bayes_loss():.4f}'),
    ],
    figures={
      'ordered_momentum.png': lambda: draw(
        rows, settings, {x: rate for x, (_, _, rate) in compared.items()}
      )
    },
  )
