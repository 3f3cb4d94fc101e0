"""What is run: servers on messages of K workers, at all of their rates."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import byzjax
from byzjax import asynchrony, data, models

from ...harness.cells import OwnCell
from ...harness.programs import split_validation
from ...harness.settings import Settings as Shared
from ...harness.settings import option
from .. import arrivals, mixture, pooling
from .methods import (
  BARRIER,
  NUM_COMPARED,
  methods,
)

RATES = (0.003, 0.01, 0.02, 0.04, 0.08)
WIDTH = 64  # Of the network for the mixture.
SCHEDULES = {  # K and how many of them are slow
  '16, equal': (16, 0),
  '16, 1 slow': (16, 1),
  '64, equal': (64, 0),
  '64, 4 slow': (64, 4),
}
ATTACKED = '16, 1 slow'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Shared):
  dataset: str = option('mixture', 'mixture, or an image set of --data_dir.')
  data_dir: str | None = option(None, 'Folder with data sets in TFDS format.')
  pooling: int = option(1, 'Pixels of an image, k x k, that are one.', low=1)
  num_messages: int = option(8000, 'Gradients of a run.', low=1)
  batch_size: int = option(16, 'Examples of a gradient.', low=1)
  momentum: float = option(0.9, 'Of all methods that have one.')
  schedules: tuple[str, ...] = option(
    ('16, equal', '16, 1 slow', '64, 4 slow'), 'Of those there are.'
  )
  num_orders: int = option(1, 'Orders of arrival, which seeds share.', low=1)
  left_out: tuple[str, ...] = option((), 'Cells, as method: schedule.')
  has_plain_step: bool = option(True, 'OrMo with the plain step, too.')
  is_attacked: bool = option(True, 'Robust servers, and attackers.')
  has_limits: bool = option(False, 'Where methods diverge on a quadratic.')
  rates: tuple[float, ...] = option(RATES, 'Of a gradient.')
  more_rates: tuple[float, ...] = option((0.2, 0.4), 'Of ASGD, beside these.')
  naive_rates: tuple[float, ...] = option((), 'Of naive, beside these.')
  less_rates: tuple[float, ...] = option((0.0003, 0.001), 'More, if attacked.')
  slowdown: float = option(10.0, 'Seconds of a slow worker for a job.', low=0)
  num_byzantine: int = option(3, 'f of 16, the first ones.', low=1)
  norms: tuple[float, ...] = option(
    (0.3, 1.0), 'To which messages are clipped.'
  )
  num_evals: int = option(25, 'Evaluations of a run.', low=1)


class Task(NamedTuple):
  """What is learned."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  sampler: byzjax.LocalSampler
  batch: Callable[[int], Any]  # of K workers
  measure: Callable[[Any], dict[str, jax.Array]]  # of parameters


def gaussians(settings: Settings) -> Task:
  """Fresh examples of a mixture at every step."""
  loss_fn = models.cross_entropy_loss(mixture.model(0, WIDTH)[0])
  tests = mixture.held_out()
  return Task(
    lambda seed: mixture.model(seed, WIDTH)[1],
    loss_fn,
    mixture.sampler(settings.batch_size),
    jnp.zeros,
    lambda params: {
      name: loss_fn(params, examples) for name, examples in tests.items()
    },
  )


def images(settings: Settings) -> Task:
  """Images, dealt to the workers."""
  dataset = data.load(settings.dataset, settings.data_dir)
  dataset = dataset._replace(
    train_images=pooling.pooled(dataset.train_images, settings.pooling),
    test_images=pooling.pooled(dataset.test_images, settings.pooling),
  )
  rest, *validation = split_validation(dataset)
  sets = {
    '': (dataset.test_images, dataset.test_labels),
    'validation_': validation,
  }
  shape, count = dataset.train_images.shape[1:], dataset.num_classes

  def model(seed):
    return models.split(models.make('mlp', shape, count, seed=seed))

  graphdef = model(0)[0]

  def measure(params):
    found = {}
    for prefix, examples in sets.items():
      inputs, labels = map(jnp.asarray, examples)
      scores = models.evaluate(
        graphdef,
        params,
        inputs,
        labels,
        num_classes=count,
        scale=dataset.scale,
      )
      found[f'{prefix}loss'] = scores.loss
      found[f'{prefix}accuracy'] = scores.accuracy
    return found

  return Task(
    lambda seed: model(seed)[1],
    models.cross_entropy_loss(graphdef),
    data.local_sampler(
      jnp.asarray(rest.train_images),
      jnp.asarray(rest.train_labels),
      batch_size=settings.batch_size,
      scale=dataset.scale,
    ),
    lambda k: data.random_shards(rest.train_labels, k, seed=0),
    measure,
  )


@functools.cache
def task_of(settings: Settings) -> Task:
  return (gaussians if settings.dataset == 'mixture' else images)(settings)


def names(settings: Settings) -> tuple[list[str], list[str]]:
  """Of the methods that are compared, and of the robust ones."""
  every = list(methods(1, settings.momentum, settings.norms))
  compared = every[:NUM_COMPARED]
  if not settings.has_plain_step:
    compared.remove('OrMo, plain step')
  return compared, every[NUM_COMPARED:]


def rates_of(settings: Settings, method: str) -> tuple[float, ...]:
  """Without attackers."""
  more: tuple[float, ...] = ()
  if 'ASGD' in method:
    more = settings.more_rates
  elif method == 'naive':
    more = settings.naive_rates
  return tuple(sorted({*settings.rates, *more}))


def define(settings: Settings) -> list[OwnCell]:
  """All methods on all schedules; robust ones with and without attackers.

  Raises:
    ValueError: if there is no such schedule.
  """
  for name in settings.schedules:
    if name not in SCHEDULES:
      known = '; '.join(SCHEDULES)
      raise ValueError(f'--schedules: {name} is none of {known}')
  plain, robust = names(settings)
  cells = [
    cell(settings, method, schedule, 'none', rates_of(settings, method))
    for schedule in settings.schedules
    for method in plain
    if f'{method}: {schedule}' not in settings.left_out
  ]
  if not settings.is_attacked:
    return cells
  rates = settings.rates
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
    task = task_of(settings)
    return arrivals.program(
      labels,
      rates,
      seeds,
      schedules=[schedule_of(settings, schedule, method, x) for x in seeds],
      num_evals=settings.num_evals,
      params=task.params,
      make_round=lambda events, rate: make_round(
        settings, method, attack != 'none', events, rate
      ),
      batch=task.batch(SCHEDULES[schedule][0]),
      measure=task.measure,
    )

  size = settings.num_messages * len(rates) * settings.num_seeds
  return OwnCell(labels=labels, rounds=size, make_program=make_program)


def events_of(
  settings: Settings, schedule: str, method: str, seed: int = 0
) -> asynchrony.Events:
  """Slow workers are the last, attackers the first."""
  k, slow = SCHEDULES[schedule]
  return arrivals.simulate(
    (1.0,) * (k - slow) + (settings.slowdown,) * slow,
    num_events=settings.num_messages,
    variation=0.1,
    grace=math.inf if method.startswith(BARRIER) else 0.0,
    seed=seed % settings.num_orders,
  )


def server(settings: Settings, method: str, k: int, rate: Any):
  """The arguments of a round, and the places of its buffer, if it has one.

  The rate falls to a tenth at half of the messages, again at 3/4.
  """
  count = settings.num_messages
  arguments = methods(k, settings.momentum, settings.norms)[method](
    optax.piecewise_constant_schedule(
      rate, {count // 2: 0.1, 3 * count // 4: 0.1}
    )
  )
  return arguments, arguments.pop('num_rows', None)


def schedule_of(
  settings: Settings, schedule: str, method: str, seed: int
) -> asynchrony.Schedule:
  events = events_of(settings, schedule, method, seed)
  _, num_rows = server(settings, method, events.num_workers, 0.0)
  buffer = None
  if num_rows:
    buffer = asynchrony.by_distinct_workers(events, num_rows=num_rows)
  return asynchrony.schedule(events, buffer)


def make_round(
  settings: Settings,
  method: str,
  is_attacked: bool,
  events: asynchrony.Schedule,
  rate: Any,
) -> byzjax.Round:
  arguments, _ = server(settings, method, events.num_workers, rate)
  task = task_of(settings)
  return byzjax.asynchronous_round(
    task.loss_fn,
    events=events,
    attack=byzjax.sign_flip(scale=5.0) if is_attacked else None,
    byzantine=settings.num_byzantine if is_attacked else 0,
    sampler=task.sampler,
    **arguments,
  )
