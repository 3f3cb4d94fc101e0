r"""How long rounds should be as the learning rate decays: QSR (Gu et al.).

  python -m experiments.studies qsr --check                      # digits
  python -m experiments.studies qsr --variant=fashion_mnist --data_dir=FOLDER

Eight workers take SGD steps with momentum on a cosine learning rate and average
their parameters at the end of every round. All methods take the same number of
local steps; they differ in when they communicate. A part of the training labels
is wrong, so that there is something to generalise from. Then two of the workers
attack, and the spread of honest messages over training is measured.

The variant fashion_mnist is for the main claim: long training of a wide network
on few examples, which it learns by heart, at one peak rate.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models

from ...harness.cells import Cell, Rows, even_stops
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Summary, pivots
from .. import pooling
from .claims import (
  half_width,
  predicted,
  predicted_at_the_minimum,
  protected,
  published,
)

# One worker leans by so little that training is hardly changed, and by a known
# part of the standard deviation of the others: what it does to the mean tells
# how far apart they are.
PROBE = 0.1
PROBE_EVALS = 200
ATTACKS: dict[str, Callable] = {
  'sign flip': lambda: byzjax.sign_flip(scale=5.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 8.
}
INSTRUMENTS: dict[str, tuple[Callable, int]] = {
  'none': (lambda: None, 0),
  'probe': (lambda: byzjax.alie(z=PROBE), 1),
}
RULES = {
  'mean': lambda f, radius: byzjax.mean(),
  'trimmed mean': lambda f, radius: byzjax.trimmed_mean(num_byzantine=f),
  'centered clipping': lambda f, radius: byzjax.centered_clipping(
    radius=radius
  ),
}
FLIPPED = 'mean', 'trimmed mean'
SHARES = (10, 25, 50, 75, 90, 100)  # % of the steps
KEPT = ('accuracy', 'validation_accuracy', 'fit_loss', 'aggregation_error')
VARIANTS = {
  'fashion_mnist': {
    'dataset': 'fashion_mnist',
    'num_examples': 2000,
    'pooling': 2,
    'width': 128,
    'total_steps': 40_000,
    'growths': (2.12,),
    'learning_rates': (0.05,),
    'attack_learning_rate': 0.05,
    'is_attacked': False,
    'is_flipped': True,
  }
}
QUICK = {'total_steps': 40, 'learning_rates': (0.01,)}
QUICK_CELLS = ('constant 4, none', 'qsr 2.12, probe')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_seeds: int = option(5, 'Seeds 0, 1, ... in one program.', low=1)
  num_workers: int = option(8, 'n.', low=1)
  num_byzantine: int = option(2, 'f, of the attacked runs.', low=1)
  total_steps: int = option(4000, 'Local steps of a worker.', low=20)
  base_steps: int = option(4, 'H of the shortest rounds.', low=1)
  batch_size: int = option(4, 'Examples per worker and step.', low=1)
  growths: tuple[float, ...] = option((2.12, 2.9), 'alpha over the peak rate.')
  learning_rates: tuple[float, ...] = option(
    (0.005, 0.01, 0.02, 0.05), 'Peaks of the cosine.'
  )
  attack_learning_rate: float = option(0.02, 'Of attacked runs.', low=0)
  radii: tuple[float, ...] = option((0.01, 0.03, 0.1, 0.3), 'Of clipping.')
  label_noise: float = option(0.2, 'Share of labels drawn anew.', low=0)
  momentum: float = option(0.9, 'Of the local steps, kept by workers.')
  num_examples: int = option(0, 'Training images; 0 for all.', low=0)
  pooling: int = option(1, 'Pixels of an image, k x k, that are one.', low=1)
  width: int = option(0, 'Of an MLP in place of --model; 0 for none.', low=0)
  is_attacked: bool = option(True, 'Attackers, and more schedules.')
  is_flipped: bool = option(False, 'Else sign flips, of QSR alone.')


def cosine(settings: Settings, peak, step):
  """The learning rate at a local step, 0 at the last one."""
  share = step / settings.total_steps
  return peak * 0.5 * (1 + jnp.cos(jnp.pi * share))


@functools.cache
def all_lengths(settings: Settings) -> dict[str, np.ndarray]:
  """Local steps of every round, by method; alpha is over the peak rate."""
  total, base = settings.total_steps, settings.base_steps
  eta = functools.partial(cosine, settings, 1.0)

  def made(rule, *rate, base_steps=base, **options):
    return rule(*rate, total_steps=total, base_steps=base_steps, **options)

  quadratic = {
    f'qsr {growth:g}': made(
      byzjax.quadratic_synchronization, eta, growth=growth
    )
    for growth in settings.growths
  }
  constant = byzjax.constant_synchronization
  as_rare = -(-total // len(next(iter(quadratic.values()))))
  found = {
    'parallel': made(constant, base_steps=1),
    f'constant {base}': made(constant),
    f'constant {as_rare}': made(constant, base_steps=as_rare),
    'post-local': made(
      byzjax.post_local_synchronization,
      base_steps=2 * base,
      switch_step=total // 10,
    ),
    'linear': made(byzjax.linear_synchronization, eta, growth=base + 0.5),
    **quadratic,
  }
  if not settings.is_attacked:
    del found['post-local']
  return found


def compared(settings: Settings) -> list[str]:
  """Constant rounds as short as QSR's shortest, or as many as QSR's; QSR."""
  names = list(all_lengths(settings))
  return [names[1], names[2], names[5]]


def examples(settings: Settings, task):
  """Images and labels, some of them drawn anew: the same in every run."""
  images, labels = (
    x[: settings.num_examples or None] for x in (task.images, task.labels)
  )
  which, what = jax.random.split(jax.random.key(17))
  drawn = jax.random.randint(what, labels.shape, 0, task.num_classes)
  wrong = jax.random.uniform(which, labels.shape) < settings.label_noise
  return images, jnp.where(wrong, drawn, labels)


def cell(settings: Settings, lengths: str, attack='none', rule='mean') -> Cell:
  steps = all_lengths(settings)[lengths]
  if attack in ATTACKS:
    make_attack, f = ATTACKS[attack], settings.num_byzantine
  else:
    make_attack, f = INSTRUMENTS[attack]

  def make_round(task, key, learning_rate, radius):
    del key
    return byzjax.local_round(
      task.loss_fn,
      num_workers=settings.num_workers,
      num_local_steps=steps,
      local_optimizer=optax.sgd(
        functools.partial(cosine, settings, learning_rate), settings.momentum
      ),
      local_state='keep',
      aggregator=RULES[rule](settings.num_byzantine, radius),
      optimizer=optax.sgd(1.0),
      attack=make_attack(),
      byzantine=f,
      sampler=data.local_sampler(
        *examples(settings, task),
        batch_size=settings.batch_size,
        scale=task.scale,
      ),
    )

  def fit(task, params, key):
    """The loss of the shared parameters on what they are trained on."""
    del key
    metrics = models.evaluate(
      task.graphdef,
      params,
      *examples(settings, task),
      num_classes=task.num_classes,
      scale=task.scale,
    )
    return {'fit_loss': metrics.loss}

  def make_model(image_shape, num_classes, seed):
    sizes = (math.prod(image_shape), settings.width, num_classes)
    return models.MLP(sizes, rngs=nnx.Rngs(seed))

  def first(labels, num_workers, seed):
    """All workers draw from the examples that there are to be."""
    del seed
    return data.iid(labels[: settings.num_examples or None], num_workers)

  rates, one = settings.learning_rates, (settings.attack_learning_rate,)
  return Cell(
    labels={'lengths': lengths, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={
      'learning_rate': rates if attack == 'none' else one,
      'radius': settings.radii if rule == 'centered clipping' else [0.0],
    },
    num_workers=settings.num_workers,
    rounds=len(steps),
    batch_size=settings.batch_size,
    partition=first,
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    make_model=make_model if settings.width else None,
    is_local=True,
    num_evals=PROBE_EVALS if attack == 'probe' else 20,
    probe=fit,
  )


def define(settings: Settings) -> list[Cell]:
  plain = [cell(settings, lengths) for lengths in all_lengths(settings)]
  if not settings.is_attacked:
    rules = FLIPPED if settings.is_flipped else ()
    qsr = f'qsr {settings.growths[0]:g}'
    return plain + [cell(settings, qsr, 'sign flip', rule) for rule in rules]
  few = compared(settings)
  return [
    *plain,
    *(cell(settings, lengths, 'probe') for lengths in few),
    *(
      cell(settings, x, a, rule) for x in few for a in ATTACKS for rule in RULES
    ),
  ]


@functools.cache
def marks(settings: Settings, lengths: str) -> list[int]:
  """The evaluations at which `SHARES` of all local steps were first done."""
  steps = all_lengths(settings)[lengths]
  stops = np.array(even_stops(len(steps), PROBE_EVALS))
  goals = np.array(SHARES) / 100 * settings.total_steps
  done = np.cumsum(steps)[stops - 1]
  return stops[np.searchsorted(done, goals - 1e-6)].tolist()


def keep(rows: Rows, settings: Settings) -> Rows:
  """The last evaluation, where the learning rate is 0, and the spreads."""

  def is_mark(row):
    return row['attack'] == 'probe' and row['round'] in marks(
      settings, row['lengths']
    )

  kept = tables.keep(rows, tail=1, metrics=KEPT, curves=is_mark)
  # Rates are chosen by a mean over the last three evaluations.
  tails = {tables.identity(row): row for row in tables.keep(rows)}
  return [
    {**row, chosen: tails[tables.identity(row)][chosen]}
    for chosen in ['validation_accuracy']
    for row in kept
  ]


def spreads(rows: Rows, settings: Settings) -> tables.Cells:
  """How far apart honest messages were, by (share of the steps, lengths).

  The norm of their standard deviations: a mean over seeds and over the rounds
  since the evaluation before.
  """
  factor = settings.num_workers / PROBE
  probes = tables.select(rows, attack='probe')
  few = compared(settings) if settings.is_attacked else []
  return tables.Cells(
    ((f'{share} %', lengths), factor * np.mean(tables.column(at, KEPT[-1])))
    for lengths in few
    for share, stop in zip(SHARES, marks(settings, lengths))
    if (at := tables.select(probes, lengths=lengths, round=stop))
  )


def summarise(rows: Rows, settings: Settings) -> Summary:
  total = settings.total_steps
  share = {k: 100 * len(v) / total for k, v in all_lengths(settings).items()}
  qsr = next(x for x in share if x.startswith('qsr'))
  plain = tables.select(rows, attack='none')
  best = {
    x: tables.tuned(tables.select(plain, lengths=x), 'learning_rate')
    for x in share
  }
  ends = tables.Cells((x, tables.percent(runs)) for x, runs in best.items())
  table, against = tables.Cells(), tables.Cells()
  for name in share:
    table[name, 'accuracy'] = ends[name]
    table[name, 'training loss'] = tables.final(best[name], 'fit_loss')
    table[name, 'rounds, %'] = np.array(share[name])
    peak = tables.final(best[name], 'learning_rate')
    table[name, '1000 x rate'] = 1000 * peak[0]
    if name == qsr:
      continue
    against[name, 'tuned'] = ends[qsr] - ends[name]
    half = half_width(against[name, 'tuned'])
    against[name, '95 %: +-'] = np.array(half)
    for rate in settings.learning_rates:
      mine, theirs = (
        tables.percent(tables.select(plain, lengths=x, learning_rate=rate))
        for x in (qsr, name)
      )
      against[name, f'rate {rate:g}'] = mine - theirs
  spread = spreads(rows, settings)
  attacked = tables.Cells(
    ((f'{x}, {rule} {radius or ""}'.strip(), attack), tables.percent(runs))
    for (x, rule, radius, attack), runs in tables.split_by(
      rows, 'lengths', 'rule', 'radius', 'attack'
    )
    if attack in ATTACKS
  )
  volumes = {
    (name, column): np.array(value)
    for name, values in published().items()
    for column, value in zip(('here', 'published'), values)
  }
  who = f'{settings.num_byzantine} of {settings.num_workers} attack'
  what = 'test accuracy (%) at peak rate'
  shown = [
    ('Rounds of the published schedules, in % of the local steps', volumes, 1),
    (f'No attackers: accuracy (%) and loss at step {total}', table, 2),
    (f'Test accuracy of {qsr} less that of others, by seed', against, 2),
    ('Spread of messages, at this share of the local steps', spread, 3),
    (f'{who}, {what} {settings.attack_learning_rate:g}', attacked, 1),
  ]
  if settings.is_attacked:
    few = compared(settings)
    claims = predicted(settings.dataset, few, share, against, spread, attacked)
  else:
    data = f'{settings.num_examples} images of {settings.dataset}'
    claims = predicted_at_the_minimum(data, [*share], share, against, table)
    if settings.is_flipped:
      claims.append(protected(data, qsr, attacked))
  digits = settings.dataset == 'digits'
  name = 'qsr.png' if digits else f'{settings.dataset}.png'
  return Summary(
    claims=claims,
    tables=pivots(shown),
    figures={name: lambda: picture(settings, share, ends, spread)},
  )


def picture(settings: Settings, share, ends, spread):
  """Lengths of rounds, accuracy by communication, spread over training."""
  figure, ((left, middle, *more),) = pictures.panels(1, 3 if spread else 2)
  colours = palette.colours(list(share))
  for name, steps in all_lengths(settings).items():
    style = {'color': colours[name], 'label': name}
    starts = np.cumsum(steps) - steps
    left.semilogy(starts, steps, drawstyle='steps-post', **style)
    middle.errorbar(
      share[name], ends[name].mean(), ends[name].std(), fmt='o', **style
    )
  left.set(xlabel='local step', ylabel='local steps of the round')
  middle.set(xlabel='rounds per 100 local steps', xscale='log')
  middle.set_ylabel('test accuracy (%)')
  left.legend(fontsize='small')
  for right in more:
    for name in compared(settings):
      values = [np.mean(spread[f'{at} %', name]) for at in SHARES]
      right.semilogy(SHARES, values, 'o-', color=colours[name], label=name)
    right.set(xlabel='% of the local steps', ylabel='spread of honest messages')
    right.legend(fontsize='small')
  return figure
