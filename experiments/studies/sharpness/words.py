"""Sharpness where most tokens are rare: the next word in place of a character.

Every method trains the transformer by itself, at rates of its own, of which the
best on validation text counts. Sharpness is measured along trajectories of
momentum, of Adam and of clipped momentum at the rates that were best there, for
two sizes of the vocabulary.
"""

import functools
from typing import Any

import numpy as np

from ...harness.cells import OwnCell, Rows
from ...reporting import palette, pictures, tables
from ...reporting.summary import (
  Check,
  Claim,
  Summary,
  Table,
  claims_about,
  pivots,
)
from . import measure
from .measure import METHODS, cuts

SMALL, LARGE = 'words 1000', 'words 4000'
CLIP, CLIPPED_ADAM, WHOLE = 'sgd, clip 10%', 'adam, clip 50%', 'p = 0'
RATES = {
  'sgd, no momentum': (0.1, 0.3, 1.0),
  'sgd': (0.3, 1.0, 3.0, 10.0),
  CLIP: (0.3, 1.0, 3.0, 10.0),
  'adam': (1e-3, 3e-3, 1e-2),
  CLIPPED_ADAM: (3e-3, 1e-2, 3e-2),
}
# Trajectories, at the rates that were best on validation text of 1000 words.
BASES = {
  (SMALL, 'sgd'): 1.0,
  (SMALL, 'adam'): 3e-3,
  (SMALL, CLIP): 1.0,
  (LARGE, 'sgd'): 1.0,
  (LARGE, 'adam'): 3e-3,
}
LABELS = 'part', 'task', 'method', 'rule'


def define(settings: Any) -> list[OwnCell]:
  def cell(make, part, task, method, rates):
    labels = dict(zip(LABELS, (part, task, method, 'mean')))
    return OwnCell(
      labels=labels,
      make_program=functools.partial(make, settings, labels, rates),
    )

  return [
    *(
      cell(measure.training, 'training', SMALL, *item) for item in RATES.items()
    ),
    *(
      cell(measure.along, 'along', *base, [rate])
      for base, rate in BASES.items()
    ),
  ]


def keep(rows: Rows, settings: Any) -> Rows:
  del settings
  return tables.keep(rows, tail=1, curves=lambda row: row['part'] == 'along')


def summarise(rows: Rows, settings: Any) -> Summary:
  along, losses, by_rate = tables.Cells(), tables.Cells(), {}
  for (part, task, method), found in tables.split_by(
    rows, 'part', 'task', 'method'
  ):
    if part == 'along':
      along[task, method] = found
      continue
    losses[method] = tables.tuned(
      found, 'rate', by='validation_loss', least=True
    )
    for (rate,), of_rate in tables.split_by(found, 'rate'):
      by_rate[method, f'{rate:g}'] = tables.final(of_rate, 'validation_loss')
  found_best = {
    (method, title): tables.final(losses[method], name)
    for method in RATES
    if method in losses
    for title, name in [
      ('rate', 'rate'),
      ('training loss', 'loss'),
      ('validation loss', 'validation_loss'),
    ]
  }
  points = cuts(settings)
  return Summary(
    claims=claims_of(settings, along, losses),
    tables=[
      *pivots(
        [
          (
            'Sharpness of the next step over that of SGD, median over steps',
            by_base(
              [*METHODS, *points[1:]],
              lambda base, name: ratio(along, base, name),
            )
            | by_base(
              ['sgd itself'],
              lambda base, _: np.abs(path(along, base, 'sharpness sgd')),
            ),
            3,
          ),
          (
            'Sharpness of the clipped gradient over that of the gradient',
            by_base(points, lambda base, name: ratio(along, base, name, WHOLE)),
            3,
          ),
          (
            'Share of <g, H g> that the largest coordinates of g carry (%)',
            by_base(
              points[1:],
              lambda base, name: 100 * path(along, base, f'carried {name}'),
            ),
          ),
          (
            'Share of |g|^2 that they hold (%)',
            by_base(
              points[1:],
              lambda base, name: 100 * path(along, base, f'held {name}'),
            ),
          ),
          (
            f'At the best rate, after {settings.num_steps} steps',
            found_best,
            3,
          ),
        ]
      ),
      Table('Validation loss at the end, by rate', finite(by_rate)),
    ],
    figures={'words.png': lambda: picture(settings, along, by_rate)},
  )


def path(along: tables.Cells, base, column: str) -> np.ndarray:
  """[seeds, steps]; not a number if it was not measured."""
  if base not in along or column not in along[base][0]:
    return np.full([1, 1], np.nan)
  seeds = tables.split(along[base], 'seed').values()
  return np.stack([tables.column(part, column) for part in seeds])


def ratio(along: tables.Cells, base, name: str, to: str = 'sgd') -> np.ndarray:
  """Of sharpness to the size of that of another direction."""
  sharpness = path(along, base, f'sharpness {name}')
  return sharpness / np.abs(path(along, base, f'sharpness {to}'))


def by_base(names, values) -> dict[tuple[str, str], np.ndarray]:
  """The median over steps, per seed."""
  return {
    (name, ', '.join(base)): np.median(values(base, name), axis=1)
    for name in names
    for base in BASES
  }


def claims_of(
  settings: Any, along: tables.Cells, losses: tables.Cells
) -> list[Claim]:
  claim = claims_about(
    'coordinate-wise clipping',
    'Pan, Li 2023, arXiv:2306.00204',
    f'words of {settings.text}',
  )

  def times(name: str, to: str, bases) -> float:
    """How much less sharp at least, by medians over seeds and steps."""
    return min(
      float(1 / np.median(ratio(along, base, name, to))) for base in bases
    )

  small, large = ([b for b in BASES if b[0] == x] for x in (SMALL, LARGE))
  carried = min(
    float(np.median(path(along, base, 'carried p = 0.05'))) for base in BASES
  )
  return [
    claim(
      'on transformers steps of SGD are far sharper than those of Adam',
      Check('times, 1000 words', times('adam', 'sgd', small), 10),
      Check('times, 4000 words', times('adam', 'sgd', large), 10),
    ),
    claim(
      'few coordinates carry the sharpness, and clipping them takes it away',
      Check('% carried by the largest 5 %', 100 * carried, 80),
      Check('times, SGD with 10 % clipped', times(CLIP, 'sgd', BASES), 2),
      Check(
        'times, gradient with 1 % clipped', times('p = 0.01', WHOLE, BASES), 1.5
      ),
      Check(
        'times, Adam clipped', times(CLIPPED_ADAM, 'adam', BASES), at_least=1
      ),
    ),
    claim('clipping makes training faster', *checks_of_training(losses)),
  ]


def checks_of_training(losses: tables.Cells) -> list[Check]:
  """Hundredths of the training loss, paired by seed, each at its best rate."""

  def less(one: str, other: str) -> float:
    if one not in losses or other not in losses:
      return float('nan')
    apart = tables.final(losses[one], 'loss')
    return float(100 * (apart - tables.final(losses[other], 'loss')).mean())

  return [
    Check('hundredths, SGD less clipped', less('sgd', CLIP), 0),
    Check(
      'hundredths, SGD without momentum less clipped, a control',
      less('sgd, no momentum', CLIP),
      0,
      why='added after the run: plain SGD is the faster one, so clipping only'
      ' mends what momentum costs',
    ),
    Check('hundredths, clipped SGD less Adam', less(CLIP, 'adam'), 0),
    Check(
      'hundredths, Adam less clipped',
      less('adam', CLIPPED_ADAM),
      0,
      why='at the best of its rates, inside the grid: the largest half of the'
      ' coordinates holds nearly all of the gradient, so what is left is tiny',
    ),
  ]


def finite(cells) -> str:
  """A table in which what has diverged is said in words."""
  with np.errstate(invalid='ignore'):
    return tables.pivot(cells, 3).replace('nan ± nan', ' diverged')


def picture(settings: Any, along: tables.Cells, by_rate):
  """Sharpness by step, what coordinates carry, and losses by rate."""
  figure, ((left, middle, right),) = pictures.panels(1, 3, figsize=(14, 4))
  for name, colour in palette.colours([*METHODS]).items():
    found = np.median(ratio(along, (SMALL, 'sgd'), name), axis=0)
    left.plot(settings.steps[: len(found)], found, '.-', color=colour)
    left.lines[-1].set_label(name)
  percent = [100 * p for p in settings.fractions[1:]]
  for base in BASES:
    shown = [
      100 * np.median(path(along, base, f'carried {p}'))
      for p in cuts(settings)[1:]
    ]
    middle.plot(percent, shown, '.-', label=', '.join(base))
  for name, colour in palette.colours([*RATES]).items():
    mine = {float(r): v.mean() for (m, r), v in by_rate.items() if m == name}
    right.plot([*mine], [*mine.values()], '.-', color=colour, label=name)
  left.set(yscale='log', xlabel='step', title='1000 words, along SGD')
  left.set_ylabel('sharpness over that of SGD')
  middle.set(xscale='log', xlabel='largest coordinates of the gradient (%)')
  middle.set_ylabel('share of the sharpness that they carry (%)')
  right.set(xscale='log', xlabel='learning rate', ylim=(3.6, 5.6))
  right.set_ylabel('validation loss at the end')
  for axes in (left, middle, right):
    axes.legend(fontsize=7)
  return figure
