r"""Attackers in asynchronous training, some of them faster than the others.

  python -m experiments.studies async_byzantine --check               # digits
  python -m experiments.studies async_byzantine --variant=fashion_mnist \
    --data_dir=FOLDER

Ten workers send gradients without waiting for each other, two of them lie. The
server makes a step for every message, or collects messages first and takes a
robust mean of them, or lets only some messages pass. All runs last as long in
simulated time, in which an honest worker sends about as many messages; an
attacker may send several times as many.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

import byzjax
from byzjax import asynchrony

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots
from .. import arrivals, opponents

ATTACKS = opponents.ATTACKS | {'sign flip': lambda: byzjax.sign_flip(scale=5.0)}
FAST = 'fast attackers'
SPEEDS = {'equal': ('sign flip',), FAST: tuple(ATTACKS)}
VARIANTS = {'fashion_mnist': {'dataset': 'fashion_mnist'}}
# What the accuracy was predicted to be under the worst attack, at least.
LEAST = {'digits': 80, 'fashion_mnist': 70}
QUICK = {'seconds': 2.0, 'batch_size': 2, 'learning_rates': (0.1,)}
QUICK_CELLS = ('equal, sign flip, places, median',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(10, 'K.', low=5)
  num_byzantine: int = option(2, 'f.', low=1)
  seconds: float = option(200.0, 'Of a run; a job takes one on average.', low=0)
  speedup: float = option(6.0, 'By which fast attackers are faster.', low=1)
  batch_size: int = option(8, 'Examples of a gradient.', low=1)
  learning_rates: tuple[float, ...] = option(
    (0.03, 0.1, 0.3, 1.0), 'Of the server.'
  )
  momentum: float = option(0.9, 'Of workers, where the server is robust.')
  max_norm: float = option(1.0, 'Of messages, in front of a filter.', low=0)
  radius: float = option(0.3, 'Of centered clipping.', low=0)


class Server(NamedTuple):
  """What is done with messages."""

  buffer: Callable | None = None
  rule: Callable[[], byzjax.Aggregator] | None = None
  wrap: Callable = lambda optimizer: optimizer
  incoming: optax.GradientTransformation | None = None
  has_momentum: bool = True


def servers(settings: Settings) -> dict[str, Server]:
  n, f = settings.num_workers, settings.num_byzantine

  def arrive(events):
    return asynchrony.by_arrival(events, num_rows=n)

  def places(events):
    return asynchrony.by_worker(events, num_rows=n)

  def first(events):
    return asynchrony.by_distinct_workers(events, num_rows=n - f)

  def clipping():
    return byzjax.centered_clipping(radius=settings.radius)

  def filtered(optimizer):
    return byzjax.lipschitz_filter(optimizer, num_workers=n, num_byzantine=f)

  short: dict[str, Any] = {
    'incoming': optax.clip_by_global_norm(settings.max_norm)
  }
  kardam: dict[str, Any] = {'wrap': filtered}
  return {
    'each': Server(has_momentum=False),
    'Lipschitz filter': Server(has_momentum=False, **kardam),
    'short': Server(has_momentum=False, **short),
    'short, Lipschitz': Server(has_momentum=False, **kardam, **short),
    'clipped': Server(rule=clipping),
    'arrivals, mean': Server(arrive, byzjax.mean),
    'arrivals, median': Server(arrive, byzjax.coordinate_median),
    'places, mean': Server(places, byzjax.mean),
    'places, median': Server(places, byzjax.coordinate_median),
    'places, clipping': Server(places, clipping),
    'first, median': Server(first, byzjax.coordinate_median),
  }


def events_of(settings: Settings, speeds: str) -> asynchrony.Events:
  """Everybody's messages; attackers are the first workers."""
  n, f = settings.num_workers, settings.num_byzantine
  job = 1 / settings.speedup if speeds == FAST else 1.0
  return arrivals.simulate(
    (job,) * f + (1.0,) * (n - f),
    max_time=settings.seconds,
    variation=0.2,
    seed=0,
  )


def define(settings: Settings) -> list[Cell]:
  return [
    cell(settings, speeds, attack, name)
    for speeds, attacks in SPEEDS.items()
    for attack in attacks
    for name in servers(settings)
  ]


def cell(settings: Settings, speeds: str, attack: str, name: str) -> Cell:
  events = events_of(settings, speeds)
  server = servers(settings)[name]
  buffer = server.buffer(events) if server.buffer else None
  momentum = byzjax.worker_momentum(settings.momentum)

  def make_round(task, key, learning_rate):
    del key
    return byzjax.asynchronous_round(
      task.loss_fn,
      events=events,
      optimizer=server.wrap(optax.sgd(learning_rate)),
      incoming=server.incoming,
      worker=momentum if server.has_momentum else None,
      buffer=buffer,
      aggregator=server.rule() if server.rule else None,
      attack=ATTACKS[attack](),
      byzantine=settings.num_byzantine,
      sampler=task.sampler(settings.batch_size),
    )

  return Cell(
    labels={'speeds': speeds, 'attack': attack, 'server': name},
    make_round=make_round,
    grid={'learning_rate': settings.learning_rates},
    num_workers=settings.num_workers,
    rounds=len(events.worker),
    batch_size=settings.batch_size,
    is_local=True,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """At the learning rates that are best on the validation split."""
  del settings
  ends = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  cells = 'speeds', 'attack', 'server'
  return tables.tuned_each(ends, cells, 'learning_rate')


def shares(settings: Settings) -> tables.Cells:
  """What part of the buffer's places attackers have when it is full."""
  found = tables.Cells()
  for speeds in SPEEDS:
    events = events_of(settings, speeds)
    is_byzantine = events.worker < settings.num_byzantine
    found[speeds, 'messages'] = 100 * is_byzantine.mean()
    for name, server in servers(settings).items():
      if server.buffer is None or server.rule is not byzjax.coordinate_median:
        continue
      buffer = server.buffer(events)
      starts = np.concatenate([[0], np.nonzero(buffer.is_full)[0] + 1])
      ends = [
        len(set(buffer.row[a:b][is_byzantine[a:b]])) / buffer.num_rows
        for a, b in zip(starts, starts[1:])
      ]
      found[speeds, name.split(',')[0]] = 100 * np.array(ends)
  return found


def summarise(rows: Rows, settings: Settings) -> Summary:
  table, rates = tables.Cells(), tables.Cells()
  for speeds, attacks in SPEEDS.items():
    for attack in attacks:
      column = attack if speeds == 'equal' else f'{attack}, fast'
      mine = tables.select(rows, speeds=speeds, attack=attack)
      for name, runs in tables.split(mine, 'server').items():
        table[name, column] = tables.percent(runs)
        rates[name, column] = np.array(runs[0]['learning_rate'])
  digits = settings.dataset == 'digits'
  name = 'async_byzantine' if digits else settings.dataset
  held = "Attackers' share, %: of all messages, and of the places of a buffer"
  ends = 'Test accuracy (%) at the end, learning rate chosen on validation'
  return Summary(
    claims=claims_of(table, settings.dataset),
    tables=pivots(
      [
        (held, shares(settings)),
        (ends, table),
        ('Learning rates', rates, 2),
      ]
    ),
    figures={
      f'{name}.png': lambda: pictures.heatmap(
        table, 'Asynchronous servers under attack'
      )
    },
  )


def claims_of(table: tables.Cells, data: str) -> list[Claim]:
  claim = claims_about('', 'Yang, Li 2021, arXiv:2003.00937', data)
  worst = [table['places, median', f'{name}, fast'].mean() for name in ATTACKS]

  def gap(a, b, column):
    return float((table[a, column] - table[b, column]).mean())

  return [
    claim(
      'places for workers keep fast attackers from filling the buffer',
      Check(
        'fast sign flip: places over arrivals, median, points',
        gap('places, median', 'arrivals, median', 'sign flip, fast'),
        30,
      ),
      Check(
        'fast sign flip: places, median over a step for each message',
        gap('places, median', 'each', 'sign flip, fast'),
        30,
      ),
      Check(
        'fast attackers, worst attack: places, median, %',
        min(worst),
        LEAST.get(data, 80),
      ),
    ),
    claim(
      'places cost little where nobody attacks',
      Check(
        'no attackers: places, median less a step for each message',
        gap('places, median', 'each', 'none, fast'),
        -5,
      ),
    ),
    claim(
      'a filter of single messages keeps attackers out',
      Check(
        'fast sign flip: Lipschitz filter over a step for each message',
        gap('Lipschitz filter', 'each', 'sign flip, fast'),
        20,
        why='all that is finite passes until workers have coefficients, and a'
        ' few large messages are enough; behind clipping it helps',
      ),
      paper='Damaskinos et al. 2018, arXiv:1802.07928',
    ),
    claim(
      'with equal speeds a median of arrivals is a defence',
      Check(
        'equal speeds, sign flip: arrivals, median over mean',
        gap('arrivals, median', 'arrivals, mean', 'sign flip'),
        20,
      ),
      paper='not from a paper',
    ),
  ]
