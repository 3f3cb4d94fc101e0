r"""Asynchronous Local-SGD with Delayed Nesterov and dynamic local updates.

  python -m experiments.studies async_local --check
  python -m experiments.studies async_local --variant=language --data_dir=FOLDER
  python -m experiments.studies async_local --variant=pretrained \
      --data_dir=FOLDER

Four workers take AdamW steps on their shards and send pseudo-gradients. Under a
barrier the server averages them and takes a Nesterov step (DiLoCo); without one
it does something for every message: a Nesterov step of its own, one for every
four, or Delayed Nesterov, with local steps in proportion to speed (DyLU). All
take the same local steps; the clock is simulated. In the variant pretrained
they begin with a model that its first cell has trained on one machine.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import optax

import byzjax
from byzjax import asynchrony

from ...harness.cells import OwnCell, Rows
from ...harness.settings import Settings as Shared
from ...harness.settings import option
from ...reporting import pictures, tables
from ...reporting.summary import Summary, pivots
from .. import arrivals
from . import tasks
from .claims import BEST, RATE, claims_of

COMPARED = ('DN', 'DN + DyLU')  # At all levels of heterogeneity.
MOMENTUM = 0.9
# A loss so much above another is as low on the clock.
NEAR = {'mixture': 0.05, 'language': 0.05, 'pretrained': 0.01}
PRETRAINING = 'pretraining'
Level = Literal['no', 'slight', 'moderate', 'very']
VARIANTS = {
  'language': {'tasks': ('language',), 'text': 'tiny_shakespeare'},
  'pretrained': {
    'tasks': ('pretrained',),
    'text': 'tiny_shakespeare',
    'num_local_steps': 10,
    'num_evals': 20,
    'language_rates': (0.3, 0.7, 1.4),
  },
}
# Of heterogeneity, beside the one where speeds differ most.
LEVELS = {
  'mixture': get_args(Level)[:-1],
  'pretrained': ('no', 'slight'),
}
QUICK = {'mixture_phases': 2, 'num_evals': 2, 'rates': (RATE,)}
QUICK_CELLS = ('synchronous, mixture, very', 'DN + DyLU, mixture, very')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Shared):
  tasks: tuple[str, ...] = option(('mixture',), 'mixture, language or both.')
  text: str = option('sonnets', 'sonnets, or a text of --data_dir.')
  data_dir: str | None = option(None, 'Folder with texts.')
  num_workers: int = option(4, 'K.', low=2)
  num_local_steps: int = option(20, 'H.', low=1)
  mixture_phases: int = option(200, 'Jobs of a synchronous worker.', low=1)
  language_phases: int = option(30, 'Jobs of a synchronous worker.', low=1)
  pretrained_phases: int = option(20, 'The same.', low=1)
  pretraining_steps: int = option(800, 'Of one machine, batch 32.', low=1)
  pretrained_peak: float = option(2e-4, 'Inner rate of a trained model.')
  rates: tuple[float, ...] = option(
    (0.07, 0.3, 0.7, 1.4), "Of the server's Nesterov step."
  )
  language_rates: tuple[float, ...] = option(
    (0.3, 0.7), 'The same, of the language task.'
  )
  grace: float = option(0.5, 'Seconds that a finished worker may wait.', low=0)
  num_evals: int = option(40, 'Evaluations of a run.', low=1)


class Method(NamedTuple):
  """What the server does, and how long jobs are."""

  optimizer: Callable  # of the rate
  incoming: optax.GradientTransformation | None = None
  is_buffered: bool = False
  is_synchronous: bool = False
  is_dynamic: bool = False


def nesterov(rate):
  return optax.sgd(rate, MOMENTUM, nesterov=True)


def methods(settings: Settings, task: str) -> dict[str, Method]:
  """All of them, or those that a longer task has time for."""
  k = settings.num_workers

  def delayed(rate):
    return byzjax.delayed_nesterov(rate, num_buffered=k, momentum=MOMENTUM)

  found = {
    'synchronous': Method(nesterov, is_buffered=True, is_synchronous=True),
    'Nesterov': Method(nesterov),
    'Nesterov / K': Method(nesterov, optax.scale(1 / k)),
    'polynomial / K': Method(
      nesterov,
      optax.chain(optax.scale(1 / k), byzjax.discount_staleness(0.5)),
    ),
    'buffer': Method(nesterov, is_buffered=True),
    'DN': Method(delayed),
    'DN + DyLU': Method(delayed, is_dynamic=True),
  }
  left_out = {
    'language': ('polynomial / K', 'buffer'),
    # Without a weight it moves K times as far, so it is no baseline.
    'pretrained': ('polynomial / K', 'Nesterov'),
  }.get(task, ())
  return {name: found[name] for name in found if name not in left_out}


def rates_of(settings: Settings, task: str) -> tuple[float, ...]:
  return settings.rates if task == 'mixture' else settings.language_rates


def define(settings: Settings) -> list[OwnCell]:
  """All methods where workers differ most; two of them at all levels.

  Raises:
    ValueError: if there is no such task.
  """
  for task in settings.tasks:
    if task not in tasks.TASKS:
      raise ValueError(f'--tasks={task}: known are {", ".join(tasks.TASKS)}')
  before = [pretraining(settings)] if 'pretrained' in settings.tasks else []
  return [
    *before,
    *(
      cell(settings, name, task, 'very', rates_of(settings, task))
      for task in settings.tasks
      for name in methods(settings, task)
    ),
    *(
      cell(settings, name, task, level, (RATE,))
      for task in settings.tasks
      for level in LEVELS.get(task, ())
      for name in COMPARED
    ),
  ]


def pretraining(settings: Settings) -> OwnCell:
  """What the models of all seeds know before the others begin."""
  labels = {'method': PRETRAINING, 'task': 'pretrained', 'level': 'no'}
  count = settings.pretraining_steps

  def make_rows(seeds):
    task = tasks.task_of(settings, 'pretrained')
    return [
      {**labels, 'rate': 0.0, 'seed': seed, 'round': count}
      | {name: float(x) for name, x in task.measure(params).items()}
      for seed in seeds
      for params, _ in [tasks.pretrained(settings, seed)]
    ]

  return OwnCell(labels=labels, make_rows=make_rows)


def cell(
  settings: Settings,
  name: str,
  task: str,
  level: Level,
  rates: tuple[float, ...],
) -> OwnCell:
  """All rates and seeds of a method."""
  method = methods(settings, task)[name]

  def make_program(seeds):
    of_task = tasks.task_of(settings, task)
    events = events_of(settings, name, task, level)
    buffer = None
    if method.is_buffered:
      buffer = asynchrony.by_arrival(events, num_rows=settings.num_workers)
    return arrivals.program(
      labels,
      rates,
      seeds,
      schedules=[asynchrony.schedule(events, buffer)] * len(seeds),
      num_evals=settings.num_evals,
      params=of_task.params,
      make_round=lambda schedule, rate: byzjax.asynchronous_round(
        of_task.loss_fn,
        events=schedule,
        optimizer=method.optimizer(rate),
        local_optimizer=of_task.local_optimizer,
        sampler=of_task.sampler,
        incoming=method.incoming,
      ),
      batch=of_task.batch,
      measure=of_task.measure,
    )

  labels = {'method': name, 'task': task, 'level': level}
  messages = settings.num_workers * tasks.phases(settings, task)
  size = messages * len(rates) * settings.num_seeds
  return OwnCell(labels=labels, rounds=size, make_program=make_program)


def events_of(
  settings: Settings, name: str, task: str, level: Level
) -> asynchrony.Events:
  """Messages until all methods have done the same local steps."""
  h, k = settings.num_local_steps, settings.num_workers
  speeds = asynchrony.seconds_per_step(level, k)
  method = methods(settings, task)[name]
  steps: Sequence[int] | np.ndarray = [h] * k
  if method.is_dynamic:
    steps = asynchrony.dynamic_local_updates(speeds, h)
  return arrivals.simulate(
    tuple(map(float, speeds)),
    num_local_steps=tuple(map(int, steps)),
    total_steps=h * k * tasks.phases(settings, task),
    grace=math.inf if method.is_synchronous else settings.grace,
    shards='own' if method.is_synchronous else 'balanced',
    seed=0,
  )


def keep(rows: Rows, settings: Settings) -> Rows:
  """The ends of runs, with what was reached when; a few curves."""
  before = tables.select(rows, method=PRETRAINING)
  rows = [row for row in rows if row['method'] != PRETRAINING]
  barrier = tables.select(rows, method='synchronous')
  goals = {}
  for task, of_task in tables.split(barrier, 'task').items():
    for name, chosen in (
      ('seconds', tables.select(of_task, rate=RATE)),
      ('best_seconds', lowest(of_task)),
    ):
      for row in chosen:
        goals[task, name, row['seed']] = row['loss'] + NEAR[task]

  def more(run):
    task, seed = run[0]['task'], run[0]['seed']
    return {
      'mean_loss': float(tables.column(run, 'loss').mean()),
      **{
        name: arrivals.seconds_until(
          run, goals.get((task, name, seed), math.nan)
        )
        for name in ('seconds', 'best_seconds')
      },
    }

  def is_curve(row):
    return row['level'] == 'very' and row['rate'] == RATE and row['seed'] == 0

  return before + arrivals.keep(rows, more, is_curve, every=2)


def lowest(rows: Rows) -> Rows:
  """The runs at the rate with the lowest loss at the end.

  Of the test, where there is no validation split.
  """
  by = 'validation_loss' if 'validation_loss' in rows[0] else 'loss'
  return tables.tuned(rows, 'rate', by=by, least=True)


def tables_of(rows: Rows, settings: Settings, task: str):
  """Losses by rate and seconds, by method, where workers differ most."""
  losses, clock = tables.Cells(), tables.Cells()
  very = tables.select(rows, task=task, level='very')
  for name, mine in tables.split(very, 'method').items():
    fixed, best = tables.select(mine, rate=RATE), lowest(mine)
    for rate in rates_of(settings, task):
      of_rate = tables.select(mine, rate=rate)
      losses[name, f'rate {rate:g}'] = tables.final(of_rate, 'loss')
    losses[name, f'mean of run, {RATE:g}'] = tables.final(fixed, 'mean_loss')
    clock[name, 'all'] = events_of(settings, name, task, 'very').time[-1:]
    clock[name, f'rate {RATE:g}, as low'] = tables.final(fixed, 'seconds')
    clock[name, BEST] = tables.final(best, 'best_seconds')
  return losses, clock


def draw(rows: Rows, settings: Settings, task: str):
  figure, panels = pictures.panels(1, 2)
  curves = {}
  for name in methods(settings, task):
    mine = tables.select(
      rows, task=task, level='very', method=name, rate=RATE, seed=0
    )
    events = events_of(settings, name, task, 'very')
    curves[name] = arrivals.with_clock(mine, events)
  low = min((row['loss'] for run in curves.values() for row in run), default=1)
  for axes, x, label in zip(
    panels[0],
    ('local_steps', 'time'),
    ('local steps', 'simulated seconds'),
  ):
    pictures.curves(axes, curves, x, 'loss')
    axes.set(xlabel=label, ylabel=f'{task}: test loss, seed 0')
    axes.set_ylim(low - 0.02, low + 10 * NEAR[task])
    axes.locator_params(axis='x', nbins=5)
  panels[0, 1].legend(fontsize='small')
  return figure


def levels_of(rows: Rows, task: str) -> tables.Cells:
  """Losses of those that are compared at all levels, at one rate."""
  mine = tables.select(rows, task=task, rate=RATE)
  return tables.Cells(
    ((name, level), tables.final(runs, 'loss'))
    for (name, level), runs in tables.split_by(mine, 'method', 'level')
    if name in COMPARED
  )


def summarise(rows: Rows, settings: Settings) -> Summary:
  claims, shown = [], []
  for task in settings.tasks:
    losses, clock = tables_of(rows, settings, task)
    levels = levels_of(rows, task)
    data = task if task == 'mixture' else settings.text
    if before := tables.select(rows, task=task, method=PRETRAINING):
      data = f'{data}, from a trained model'
      losses[PRETRAINING, f'rate {RATE:g}'] = tables.final(before, 'loss')
    claims += claims_of(task, data, losses, clock, levels)
    shown += [
      (f'{task}: test loss at the end, where speeds differ most', losses, 3),
      (
        f'{task}: simulated seconds of a run, and until the loss is at most'
        f' {NEAR[task]} above the last one of synchronous',
        tables.reached(clock),
        0,
      ),
    ]
    title = f'{task}: test loss at rate {RATE:g} by how much speeds differ'
    if LEVELS.get(task):
      shown.append((title, levels, 3))
  return Summary(
    claims,
    pivots(shown),
    {
      f'{task}.png': functools.partial(draw, rows, settings, task)
      for task in settings.tasks
    },
  )
