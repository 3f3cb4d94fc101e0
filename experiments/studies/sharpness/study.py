r"""Directional sharpness and coordinate-wise clipping (Pan & Li).

  python -m experiments.studies sharpness --check
  python -m experiments.studies sharpness --text=tiny_shakespeare \
    --data_dir=FOLDER

A small transformer learns the next character of a text, and a small CNN
handwritten digits. Along one trajectory all optimizers see the same gradients,
and the curvature of the loss along the step that each would take is measured;
then along gradients whose largest coordinates are cut, more and more of them.
Each optimizer trains the transformer by itself, too, and at last some workers
attack.
"""

import functools

import numpy as np

from ...harness.cells import OwnCell, Rows
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table
from . import measure
from .measure import METHODS, Settings, cuts

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
RULES = ('mean', 'nnm, median')
QUICK = {
  'width': 8,
  'steps': (1, 2),
  'fractions': (0.0, 0.1),
  'num_steps': 2,
  'attacked_steps': 2,
}
QUICK_CELLS = ('along, text, sgd', 'training, text, adam, mean', 'nnm')


def cell(settings: Settings, make, part, task, method, rates, rule='mean'):
  labels = {'part': part, 'task': task, 'method': method, 'rule': rule}
  return OwnCell(
    labels=labels,
    make_program=functools.partial(make, settings, labels, rates),
  )


def define(settings: Settings) -> list[OwnCell]:
  along = functools.partial(cell, settings, measure.along, 'along')
  training = functools.partial(cell, settings, measure.training)
  return [
    *[along(*base, [rate]) for base, rate in BASES.items()],
    *[training('training', 'text', *item) for item in RATES.items()],
    *[
      training('attack', 'text', method, [ATTACKED_RATE], rule)
      for method in ('sgd', 'sgd, clip 10%')
      for rule in RULES
    ],
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  del settings
  return tables.keep(rows, tail=1, curves=lambda row: row['part'] == 'along')


def summarise(rows: Rows, settings: Settings) -> Summary:
  points, f = cuts(settings), settings.num_byzantine
  whole, one, tenth = 'p = 0', 'p = 0.01', 'p = 0.1'
  trajectories = tables.Cells(
    (base, part)
    for base, part in tables.split_by(
      tables.select(rows, part='along'), 'task', 'method'
    )
  )

  def of(base, column):
    """[seeds, steps]; not a number if it was not measured."""
    if base not in trajectories or column not in trajectories[base][0]:
      return np.full([1, 1], np.nan)
    seeds = tables.split(trajectories[base], 'seed').values()
    return np.stack([tables.column(part, column) for part in seeds])

  def ratio(base, name, to='sgd'):
    """Of sharpness to the size of that of another direction."""
    other = np.abs(of(base, f'sharpness {to}'))
    return of(base, f'sharpness {name}') / other

  def least(name, to='sgd', task='text'):
    """Times less sharp, the median over seeds and steps."""
    return min(
      1 / np.median(ratio((task, method), name, to))
      for method in ('sgd', 'adam')
    )

  def by_base(names, values):
    """The median over steps, per seed."""
    return {
      (name, ', '.join(base)): np.median(values(base, name), axis=1)
      for name in names
      for base in BASES
    }

  own = {
    ('sgd itself', ', '.join(base)): np.median(
      np.abs(of(base, 'sharpness sgd')), axis=1
    )
    for base in BASES
  }
  losses = tables.Cells()
  for key, part in tables.split_by(
    [row for row in rows if row['part'] != 'along'],
    *('part', 'method', 'rule', 'rate'),
  ):
    loss = tables.final(part, 'loss')
    losses[key] = np.where(np.isfinite(loss), loss, np.inf)
  by_rate = {
    (method, f'{rate:g}'): losses['training', method, 'mean', rate]
    for method, rates in RATES.items()
    for rate in rates
  }
  best = {}
  for method, rates in RATES.items():
    means = [losses['training', method, 'mean', r].mean() for r in rates]
    best[method] = rates[int(np.argmin(means))]
  attacked = {
    (method, rule): losses['attack', method, rule, ATTACKED_RATE]
    for method in ('sgd', 'sgd, clip 10%')
    for rule in RULES
  }

  def less(a, b):
    """Hundredths of the training loss, each at its best rate."""
    of_a, of_b = (losses['training', m, 'mean', best[m]] for m in (a, b))
    return 100 * (of_a - of_b).mean()

  clip, clipped_adam = 'sgd, clip 10%', 'adam, clip 50%'
  robust = attacked[clip, 'mean'] - attacked[clip, RULES[1]]
  about = {
    'method': 'coordinate-wise clipping',
    'paper': 'Pan, Li 2023, arXiv:2306.00204',
    'data': f'{settings.text}, digits',
  }
  slower = 'clipping was slower at every rate from 0.3 to 3 that converged'
  small = 'small models from scratch; those of the paper are pretrained'
  return Summary(
    claims=[
      Claim(
        says='on transformers steps of SGD are far sharper than those of Adam',
        checks=[
          Check('times, transformer', least('adam'), 10, why=small),
          Check(
            'times that factor on the CNN',
            least('adam') / least('adam', task='cnn'),
            2,
            why=small,
          ),
        ],
        **about,
      ),
      Claim(
        says='clipping few coordinates makes steps less sharp',
        checks=[
          Check('times, SGD with 10 % clipped', least(clip), 2),
          Check(
            'times, gradient with 1 % clipped',
            least(one, whole),
            1.25,
            why='the trajectory of Adam; along that of SGD it holds',
          ),
          Check('times, gradient with 10 % clipped', least(tenth, whole), 1.5),
          Check('times, Adam clipped', least(clipped_adam, 'adam'), 1),
        ],
        **about,
      ),
      Claim(
        says='clipping makes training faster',
        checks=[
          Check(
            'hundredths, SGD less clipped', less('sgd', clip), 0, why=slower
          ),
          Check('hundredths, clipped SGD less Adam', less(clip, 'adam'), 0),
          Check('times the best rate of SGD', best[clip] / best['sgd'], 3),
          Check(
            'hundredths, Adam less clipped',
            less('adam', clipped_adam),
            0,
            why='each at the best of three rates',
          ),
        ],
        **about,
      ),
      Claim(
        says='a robust rule holds clipped SGD under sign flips',
        checks=[
          Check(
            'hundredths of the loss, mean less nnm, median',
            100 * robust.mean(),
            20,
          )
        ],
        **about | {'method': '', 'paper': 'not in the paper'},
      ),
    ],
    tables=[
      Table(
        'Sharpness of the next step over that of SGD, median over steps',
        tables.pivot(by_base(METHODS, ratio) | own, 2),
      ),
      Table(
        'Best decrease of the loss along it, thousandths, median over steps',
        tables.pivot(
          by_base(METHODS, lambda base, name: 1000 * of(base, f'gain {name}'))
        ),
      ),
      Table(
        'Sharpness of the clipped gradient over that of the gradient',
        tables.pivot(
          by_base(points, lambda base, name: ratio(base, name, whole)), 2
        ),
      ),
      Table(
        'Share of |g|^2 that the largest coordinates hold (%)',
        tables.pivot(
          by_base(points, lambda base, name: 100 * of(base, f'held {name}'))
        ),
      ),
      Table('Training loss at the end, by rate', finite(by_rate)),
      Table(
        f'Training loss at rate {ATTACKED_RATE:g}, {f} of'
        f' {settings.num_workers} workers flip signs',
        finite(attacked),
      ),
    ],
    figures={
      'sharpness.png': lambda: picture(settings, ratio, points, by_rate)
    },
  )


def finite(cells) -> str:
  """A table in which what has diverged is said in words."""
  with np.errstate(invalid='ignore'):
    return tables.pivot(cells, 3).replace('inf ± nan', ' diverged')


def picture(settings: Settings, ratio, points, by_rate):
  """Sharpness by step, sharpness by what is cut, and training losses."""
  figure, ((left, middle, right),) = pictures.panels(1, 3, figsize=(14, 4))
  for name, colour in palette.colours([*METHODS]).items():
    middle_of = np.median(ratio(('text', 'sgd'), name), axis=0)
    steps = settings.steps[: len(middle_of)]
    left.plot(steps, middle_of, '.-', color=colour, label=name)
    mine = {rate: loss for (m, rate), loss in by_rate.items() if m == name}
    if mine:
      means = [loss.mean() for loss in mine.values()]
      rates = [float(rate) for rate in mine]
      right.plot(rates, means, '.-', color=colour, label=name)
  percent = [100 * p for p in settings.fractions]
  for base in BASES:
    shown = [np.median(ratio(base, p, 'p = 0')) for p in points]
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
