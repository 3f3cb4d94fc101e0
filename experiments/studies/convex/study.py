r"""Convex training of two-layer ReLU networks (Bai, Gautam, Sojoudi).

  python -m experiments.studies convex --check                    # digits
  python -m experiments.studies convex --dataset=cifar10 --data_dir=FOLDER \
    --pool=4
  python -m experiments.studies convex --variant=pairs --data_dir=FOLDER

A network is trained by ADMM on the convex program of sampled arrangements, by
the sampled convex program, and by gradients on the objective that is not
convex, with the same weight decay: in the plane, where most arrangements can
be sampled, and on two classes of images. Then against inputs in a box, in
the plane (with a picture) and on images. Then by ten workers of which some
attack, with the mean or a robust rule, where the optimum is known. All of it in
float64. The variant pairs (module `pairs`) draws hyperplanes through the data.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from matplotlib import pyplot as plt

from ...harness.cells import OwnCell, Rows
from ...harness.settings import Settings as Base
from ...harness.settings import option
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, claims_about, pivots
from . import methods, pairs

BOXED = ('sgd', 'sgd on pgd', 'convex', 'convex robust')
UNIT = ('horizontal', 'vertical', 'bias', 'output')
VARIANTS = {
  'pairs': {
    'parts': ('pairs',),
    'num_examples': 200,
    'num_samples': 80,
    'num_iterations': 1200,
    'num_steps': 800,
    'epsilon': 10 / 255,
  }
}
QUICK = {'num_iterations': 204, 'num_samples': 8, 'num_steps': 2}
QUICK_CELLS = ('toy, convex robust', 'workers, mean, none')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Base):
  parts: tuple[str, ...] = option(('methods',), 'methods, pairs')
  dataset: str = option('digits', 'digits, or an image set of --data_dir.')
  data_dir: str | None = option(None, 'Folder with data sets in TFDS format.')
  classes: tuple[int, ...] = option((3, 8), 'The two classes.')
  num_examples: int = option(240, 'Training examples of both.', low=10)
  pool: int = option(2, 'Side of the squares that are averaged.', low=1)
  num_samples: int = option(40, 'Arrangements that are drawn.', low=1)
  plane_samples: int = option(3000, 'In the plane.', low=1)
  num_iterations: int = option(4000, 'Of ADMM; in the plane 3 x.', low=101)
  num_steps: int = option(3000, 'Of gradient descent.', low=1)
  beta: float = option(0.5, 'Weight decay, squared loss.', low=0)
  plane_beta: float = option(0.1, 'The same in the plane.', low=0)
  workers_beta: float = option(5.0, 'The same for workers.', low=0)
  hinge_beta: float = option(0.002, 'Weight decay, hinge loss.', low=0)
  epsilon: float = option(0.08, 'Half the side of the box; pixels 0 to 1.')
  toy_epsilon: float = option(0.3, 'Of the box in the plane.', low=0)
  rates: tuple[float, ...] = option((0.003, 0.01, 0.03), 'Of descent.')
  num_workers: int = option(10, 'n, in the last part.', low=3)
  num_byzantine: int = option(2, 'f of them.', low=0)


def define(settings: Settings) -> list[OwnCell]:
  if settings.parts == ('pairs',):
    return pairs.define(settings)
  on_images = ('convex', 'sampled', 'adam', 'sgd', 'adam, then convex')
  names = [
    *(('plane', method, 'none') for method in ('convex', 'adam', 'sgd')),
    *(('images', method, 'none') for method in on_images),
    *((part, method, 'none') for part in ('toy', 'box') for method in BOXED),
    *(
      ('workers', rule, attack)
      for attack in methods.ATTACKS
      for rule in methods.RULES
    ),
  ]
  return [cell(settings, *name) for name in names]


def cell(settings: Settings, part: str, method: str, attack: str) -> OwnCell:
  labels = {'part': part, 'method': method, 'attack': attack}

  def measured(seed: int) -> dict:
    if part in ('toy', 'box'):
      return methods.boxed(settings, part, method, seed)
    if part == 'workers':
      return methods.share(settings, method, attack, seed)
    return methods.train(settings, part, method, seed)

  def make_rows(seeds) -> Rows:
    rows, units = [], []
    # Of this study alone: others in the process stay as they are.
    with jax.enable_x64(True):
      for seed in seeds:
        found = measured(seed)
        drawn = found.pop('drawn', [])
        numbers = {k: float(v) for k, v in found.items()}
        rows.append({**labels, 'seed': seed, 'round': 0, **numbers})
        at = {**labels, 'part': 'units', 'seed': seed}
        units += [
          {**at, 'round': i, **dict(zip(UNIT, unit))}
          for i, unit in enumerate(np.asarray(drawn, float).tolist())
        ]
    return rows + units

  return OwnCell(labels=labels, make_rows=make_rows)


def keep(rows: Rows, settings: Settings) -> Rows:
  del settings
  units = tables.select(rows, part='units')
  rest = [row for row in rows if row['part'] != 'units']
  return rest + tables.rounded(units, 3)


def results(rows: Rows, names, **labels) -> tables.Cells:
  """What was measured of the methods of a part; a row may lack some."""
  runs = tables.split(tables.select(rows, **labels), 'method')
  table = tables.Cells(
    ((method, name), tables.final(of_method, name))
    for method, of_method in runs.items()
    for name in names
    if name in of_method[0]
  )
  return tables.Cells((k, x) for k, x in table.items() if not np.isnan(x).all())


def picture(rows: Rows, epsilon: float) -> plt.Figure:
  """What networks say in the plane, and the boxes."""
  figure, axes = pictures.panels(1, len(BOXED), figsize=(14, 3.8), sharey=True)
  line = np.linspace(-2, 2, 150)
  grid = np.stack([*np.meshgrid(line, line), np.ones((150, 150))], axis=-1)
  with jax.enable_x64(True):
    x, y = methods.toy(40, jax.random.fold_in(jax.random.key(0), 0))
  for axis, method in zip(axes[0], BOXED):
    axis.set(title=method, aspect='equal')
    units = tables.select(rows, part='units', method=method)
    if not units:
      continue
    hidden = np.array([tables.column(units, name) for name in UNIT[:-1]])
    z = np.maximum(grid @ hidden, 0) @ tables.column(units, UNIT[-1])
    fills, widths = ['#cfe0f3', '#f9d9c6'], [0.6, 1.5, 0.6]
    axis.contourf(line, line, z, levels=[-1e9, 0, 1e9], colors=fills)
    axis.contour(
      line, line, z, levels=[-1, 0, 1], colors='k', linewidths=widths
    )
    for point, label in zip(np.asarray(x), np.asarray(y)):
      color = '#b5490f' if label > 0 else '#1f5fa8'
      corner, side = point[:2] - epsilon, 2 * epsilon
      style: dict = {'fill': False, 'linewidth': 0.6, 'color': color}
      axis.add_patch(plt.Rectangle(corner, side, side, **style))
  return figure


class Measured(NamedTuple):
  """By method and number, per seed."""

  plane: tables.Cells
  images: tables.Cells
  early: tables.Cells  # images, after some iterations
  toy: tables.Cells
  box: tables.Cells
  workers: dict[str, tables.Cells]  # of an attack; by rule


def measured(rows: Rows) -> Measured:
  fit = ('objective', 'program', 'violation', 'patterns', 'accuracy')
  attacked = ('clean', 'fgsm', 'pgd', 'units', 'bent')
  excess = ('excess', 'accuracy', 'residual')
  return Measured(
    plane=results(rows, fit, part='plane'),
    images=results(rows, fit, part='images'),
    early=results(rows, methods.AFTER, part='images'),
    toy=results(rows, attacked, part='toy'),
    box=results(rows, attacked, part='box'),
    workers={
      attack: results(rows, excess, part='workers', attack=attack)
      for attack in methods.ATTACKS
    },
  )


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.parts == ('pairs',):
    return pairs.summarise(rows, settings)
  found = measured(rows)
  shown = [
    ('Plane, squared loss: network, program, accuracy (%)', found.plane, 3),
    ('Images, squared loss: network, program, accuracy (%)', found.images, 3),
    ('Images, ADMM: accuracy (%) after iterations', found.early, 1),
    (
      'Toy, hinge loss: test accuracy (%), units, units that bend',
      found.toy,
      1,
    ),
    (
      'Box, hinge loss: test accuracy (%), units, units that bend',
      found.box,
      1,
    ),
    *(
      (f'Workers, {attack}: excess over the optimum (%)', table, 2)
      for attack, table in found.workers.items()
    ),
  ]
  return Summary(
    claims=claims_of(found, settings),
    tables=pivots(shown),
    figures={'convex.png': lambda: picture(rows, settings.toy_epsilon)},
  )


def claims_of(found: Measured, settings: Settings) -> list[Claim]:
  paper = 'Bai, Gautam, Sojoudi 2022, arXiv:2201.01965'
  name = 'convex two-layer ReLU training'
  claim = claims_about(name, paper, settings.dataset)
  values, early = found.plane['convex', 'objective'], found.early
  spread = 100 * values.std() / values.mean()
  lost = (early['convex', 'after end'] - early['convex', 'after 40']).mean()
  return [
    claim(
      'gradient descent finds nothing below the convex program',
      *checks_of_descent(found, settings.num_samples),
    ),
    claim(
      'robust convex training keeps accuracy on moved inputs',
      *checks_of_box('toy', found.toy),
      *checks_of_box('box', found.box),
    ),
    claim(
      'the recovered network has the value of the program',
      Check('plane: apart, worst seed (%)', gap(found.plane), at_most=0.1),
      Check('images: apart, worst seed (%)', gap(found.images), at_most=0.1),
      published='equal',
      evidence='C',
    ),
    claim(
      'the result does not depend on the seed',
      Check('plane: spread of the value (%)', spread, at_most=0.1),
    ),
    claim(
      'tens of iterations of ADMM are enough to predict',
      Check('images: points lost after 40', lost, at_most=2),
    ),
    claim(
      'workers find the optimum by consensus, under attack too (ours)',
      *checks_of_workers(found.workers),
      method='',
    ),
  ]


def gap(table: tables.Cells) -> float:
  """Between network and program in %, the worst seed."""
  there = table['convex', 'objective'] / table['convex', 'program'] - 1
  return 100 * np.abs(there).max()


def above(table: tables.Cells, method: str, other: str) -> float:
  """By how many %, the worst seed."""
  ours = table[other, 'objective']
  return (100 * (table[method, 'objective'] / ours - 1)).min()


def checks_of_descent(found: Measured, num_samples: int) -> list[Check]:
  images, least = found.images, found.plane['convex', 'objective'].max()
  adam, sgd = (
    100 * (found.plane[method, 'objective'].min() / least - 1)
    for method in ('adam', 'sgd')
  )
  few = (
    f'{num_samples} arrangements drawn blind to the data are not those of a'
    ' good network; Adam is free to choose'
  )
  return [
    Check('plane: best Adam over worst convex (%)', adam, 0),
    Check('plane: best SGD over worst convex (%)', sgd, 0),
    Check(
      'images: Adam over convex, worst seed (%)',
      above(images, 'adam', 'convex'),
      0,
      why=few,
    ),
    Check(
      'images: Adam over convex on its own patterns (%)',
      above(images, 'adam', 'adam, then convex'),
      0,
    ),
  ]


def checks_of_box(part: str, table: tables.Cells) -> list[Check]:
  robust = table['convex robust', 'pgd']
  clean = table['convex', 'clean'] - table['convex robust', 'clean']
  gained = {
    other: (robust - table[other, 'pgd']).mean() for other in BOXED[:-1]
  }
  why = 'SGD is hardly attacked there: little is left to gain'
  return [
    Check(f'{part}: points under PGD over sgd', gained['sgd'], 5, why=why),
    Check(f'{part}: over convex', gained['convex'], 5),
    Check(f'{part}: over sgd on pgd', gained['sgd on pgd'], -1),
    Check(f'{part}: clean points lost', clean.mean(), at_most=5),
  ]


def checks_of_workers(workers: dict[str, tables.Cells]) -> list[Check]:
  at_optimum = np.abs(workers['none']['mean', 'excess']).max()
  # A mean that diverges is not a number.
  mean = np.nan_to_num(workers['sign flip']['mean', 'excess'], nan=np.inf)
  return [
    Check('excess of the mean, no attack (%)', at_optimum, at_most=1),
    *(
      Check(
        f'excess of the geometric median, {attack} (%)',
        workers[attack]['geometric median', 'excess'].mean(),
        at_most=10,
      )
      for attack in ('sign flip', 'alie')
    ),
    Check('excess of the mean, sign flip (%)', mean.mean(), 20),
  ]
