r"""Directional sharpness and coordinate-wise clipping (Pan & Li).

  python -m experiments.studies sharpness --check
  python -m experiments.studies sharpness --text=tiny_shakespeare \
    --data_dir=FOLDER
  python -m experiments.studies sharpness --variant=words --data_dir=FOLDER

A small transformer learns the next character of a text, and a small CNN
handwritten digits. Along one trajectory all optimizers see the same gradients,
and the curvature of the loss along the step that each would take is measured;
then along gradients whose largest coordinates are cut, more and more of them.
Each optimizer trains the transformer by itself, too, and at last some workers
attack. The variant words (module `words`) learns the next word.
"""

import functools

import numpy as np

from ...harness.cells import OwnCell, Rows
from ...reporting import palette, pictures, tables
from ...reporting.summary import (
  OURS,
  Check,
  Claim,
  Summary,
  Table,
  claims_about,
  pivots,
)
from . import measure, words
from .measure import METHODS, Settings, cuts
from .words import path, ratio

__all__ = ['QUICK', 'QUICK_CELLS', 'Settings', 'define', 'keep', 'summarise']

# Trajectories: task, method and rate; the slow rate is the published one.
BASES = {
  ('text', 'sgd'): 0.3,
  ('text', 'adam'): 3e-3,
  ('slow', 'sgd'): 2e-4,
  ('slow', 'adam'): 2e-4,
  ('cnn', 'sgd'): 0.1,
  ('cnn', 'adam'): 3e-3,
}
RATES = {
  'sgd': [0.3, 1.0, 3.0],
  'sgd, clip 10%': [0.3, 1.0, 3.0],
  'adam': [1e-3, 3e-3, 1e-2],
  'adam, clip 50%': [3e-3, 1e-2, 3e-2],
}
ATTACKED_RATE = 1.0
CLIP, CLIPPED_ADAM = 'sgd, clip 10%', 'adam, clip 50%'
WHOLE = 'p = 0'  # The gradient, of which nothing is clipped.
RULES = ('mean', 'nnm, median')
QUICK = {
  'width': 8,
  'steps': (1, 2),
  'fractions': (0.0, 0.1),
  'num_steps': 2,
  'attacked_steps': 2,
}
VARIANTS = {
  'words': {
    'parts': ('words',),
    'text': 'tiny_shakespeare',
    'batch_size': 8,
    'steps': (50, 200, 500),
    'num_steps': 500,
  },
}
QUICK_CELLS = ('along, text, sgd', 'training, text, adam, mean', 'nnm')


def cell(settings: Settings, make, part, task, method, rates, rule='mean'):
  labels = {'part': part, 'task': task, 'method': method, 'rule': rule}
  return OwnCell(
    labels=labels,
    make_program=functools.partial(make, settings, labels, rates),
  )


def define(settings: Settings) -> list[OwnCell]:
  if settings.parts == ('words',):
    return words.define(settings)
  along = functools.partial(cell, settings, measure.along, 'along')
  training = functools.partial(cell, settings, measure.training)
  return [
    *[along(*base, [rate]) for base, rate in BASES.items()],
    *[training('training', 'text', *item) for item in RATES.items()],
    *[
      training('attack', 'text', method, [ATTACKED_RATE], rule)
      for method in ('sgd', CLIP)
      for rule in RULES
    ],
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  if settings.parts == ('words',):
    return words.keep(rows, settings)
  return tables.keep(rows, tail=1, curves=lambda row: row['part'] == 'along')


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.parts == ('words',):
    return words.summarise(rows, settings)
  along = tables.select(rows, part='along')
  paths = tables.Cells(tables.split_by(along, 'task', 'method'))
  losses = losses_of(rows)
  by_rate = {
    (method, f'{rate:g}'): losses['training', method, 'mean', rate]
    for method, rates in RATES.items()
    for rate in rates
  }
  return Summary(
    claims=claims_of(settings, paths, losses),
    tables=[
      *sharpness_tables(settings, paths),
      Table('Training loss at the end, by rate', finite(by_rate)),
      attack_table(settings, losses),
    ],
    figures={
      'sharpness.png': lambda: picture(settings, paths, by_rate),
    },
  )


def times_less(
  paths: tables.Cells, name: str, to: str = 'sgd', task: str = 'text'
) -> float:
  """How much less sharp at least, by medians over seeds and steps."""
  return min(
    1 / np.median(ratio(paths, (task, method), name, to))
    for method in ('sgd', 'adam')
  )


def by_base(names, values) -> dict[tuple[str, str], np.ndarray]:
  """The median over steps, per seed."""
  return {
    (name, ', '.join(base)): np.median(values(base, name), axis=1)
    for name in names
    for base in BASES
  }


def losses_of(rows: Rows) -> tables.Cells:
  """At the end, by part, method, rule and rate; infinite if it diverged."""
  losses = tables.Cells()
  for key, part in tables.split_by(
    [row for row in rows if row['part'] != 'along'],
    *('part', 'method', 'rule', 'rate'),
  ):
    loss = tables.final(part, 'loss')
    losses[key] = np.where(np.isfinite(loss), loss, np.inf)
  return losses


def best_rate(losses: tables.Cells, method: str) -> float:
  rates = RATES[method]
  means = [losses['training', method, 'mean', r].mean() for r in rates]
  return rates[int(np.argmin(means))]


def less(losses: tables.Cells, *methods: str) -> float:
  """Hundredths of the loss of one less another's, each at its best rate."""
  one, other = (
    losses['training', m, 'mean', best_rate(losses, m)] for m in methods
  )
  return 100 * (one - other).mean()


def claims_of(
  settings: Settings, paths: tables.Cells, losses: tables.Cells
) -> list[Claim]:
  paper, data = 'Pan, Li 2023, arXiv:2306.00204', f'{settings.text}, digits'
  claim = claims_about('coordinate-wise clipping', paper, data)
  mean, robust = (losses['attack', CLIP, x, ATTACKED_RATE] for x in RULES)
  return [
    claim(
      'on transformers steps of SGD are far sharper than those of Adam',
      *checks_of_adam(paths),
    ),
    claim(
      'clipping few coordinates makes steps less sharp',
      *checks_of_clipping(paths),
    ),
    claim('clipping makes training faster', *checks_of_training(losses)),
    claim(
      'a robust rule holds clipped SGD under sign flips',
      Check(
        'hundredths of the loss, mean less nnm, median',
        100 * (mean - robust).mean(),
        20,
      ),
      **OURS,
    ),
  ]


def checks_of_adam(paths: tables.Cells) -> list[Check]:
  why = 'small models from scratch; those of the paper are pretrained'
  text, cnn = (times_less(paths, 'adam', task=x) for x in ('text', 'cnn'))
  return [
    Check('times, transformer', text, 10, why=why),
    Check('times that factor on the CNN', text / cnn, 2, why=why),
  ]


def checks_of_clipping(paths: tables.Cells) -> list[Check]:
  one, tenth = (times_less(paths, f'p = {p}', WHOLE) for p in (0.01, 0.1))
  why = 'the trajectory of Adam; along that of SGD it holds'
  return [
    Check('times, SGD with 10 % clipped', times_less(paths, CLIP), 2),
    Check('times, gradient with 1 % clipped', one, 1.25, why=why),
    Check('times, gradient with 10 % clipped', tenth, 1.5),
    Check('times, Adam clipped', times_less(paths, CLIPPED_ADAM, 'adam'), 1),
  ]


def checks_of_training(losses: tables.Cells) -> list[Check]:
  slower = 'clipping was slower at every rate from 0.3 to 3 that converged'
  times = best_rate(losses, CLIP) / best_rate(losses, 'sgd')
  return [
    Check(
      'hundredths, SGD less clipped', less(losses, 'sgd', CLIP), 0, why=slower
    ),
    Check('hundredths, clipped SGD less Adam', less(losses, CLIP, 'adam'), 0),
    Check('times the best rate of SGD', times, 3),
    Check(
      'hundredths, Adam less clipped',
      less(losses, 'adam', CLIPPED_ADAM),
      0,
      why='each at the best of three rates',
    ),
  ]


def sharpness_tables(settings: Settings, paths: tables.Cells) -> list[Table]:
  points = cuts(settings)

  def size(base, name):
    del name
    return np.abs(path(paths, base, 'sharpness sgd'))

  def gain(base, name):
    return 1000 * path(paths, base, f'gain {name}')

  def held(base, name):
    return 100 * path(paths, base, f'held {name}')

  over_sgd = by_base(METHODS, functools.partial(ratio, paths))
  over_whole = functools.partial(ratio, paths, to=WHOLE)
  return pivots(
    [
      (
        'Sharpness of the next step over that of SGD, median over steps',
        over_sgd | by_base(['sgd itself'], size),
        2,
      ),
      (
        'Best decrease of the loss along it, thousandths, median over steps',
        by_base(METHODS, gain),
      ),
      (
        'Sharpness of the clipped gradient over that of the gradient',
        by_base(points, over_whole),
        2,
      ),
      (
        'Share of |g|^2 that the largest coordinates hold (%)',
        by_base(points, held),
      ),
    ]
  )


def attack_table(settings: Settings, losses: tables.Cells) -> Table:
  return Table(
    f'Training loss at rate {ATTACKED_RATE:g}, {settings.num_byzantine} of'
    f' {settings.num_workers} workers flip signs',
    finite(
      {
        (method, rule): losses['attack', method, rule, ATTACKED_RATE]
        for method in ('sgd', CLIP)
        for rule in RULES
      }
    ),
  )


def finite(cells) -> str:
  """A table in which what has diverged is said in words."""
  with np.errstate(invalid='ignore'):
    return tables.pivot(cells, 3).replace('inf ± nan', ' diverged')


def picture(settings: Settings, paths: tables.Cells, by_rate):
  """Sharpness by step, sharpness by what is cut, and training losses."""
  figure, ((left, middle, right),) = pictures.panels(1, 3, figsize=(14, 4))
  for name, colour in palette.colours([*METHODS]).items():
    middle_of = np.median(ratio(paths, ('text', 'sgd'), name), axis=0)
    steps = settings.steps[: len(middle_of)]
    left.plot(steps, middle_of, '.-', color=colour, label=name)
    mine = {rate: loss for (m, rate), loss in by_rate.items() if m == name}
    if mine:
      means = [loss.mean() for loss in mine.values()]
      rates = [float(rate) for rate in mine]
      right.plot(rates, means, '.-', color=colour, label=name)
  percent = [100 * p for p in settings.fractions]
  for base in BASES:
    shown = [np.median(ratio(paths, base, p, WHOLE)) for p in cuts(settings)]
    middle.plot(percent, shown, '.-', label=', '.join(base))
  left.set(yscale='log', xlabel='step', title='text, sgd')
  left.set_ylabel('sharpness over that of SGD')
  middle.set_xscale('symlog', linthresh=0.1)
  middle.set(xlabel='clipped coordinates of the gradient (%)', ylim=(0, None))
  middle.set_ylabel('sharpness over that of the gradient')
  right.set(xscale='log', xlabel='learning rate', ylim=(2.2, 3.4))
  right.set_ylabel('training loss at the end')
  for axes in (left, middle, right):
    axes.legend(fontsize=7)
  return figure
