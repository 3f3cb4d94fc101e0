"""Arrangements of hyperplanes through the data, beside those blind to it.

The value of the program of as many draws of each kind is compared with that of
Adam, on handwritten digits and on shirts against T-shirts; and the robust
program with training on inputs that FGSM or PGD has moved, on birds against
ships.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import convex, data

from ...harness.cells import OwnCell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import (
  OURS,
  Check,
  Claim,
  Summary,
  claims_about,
  pivots,
)
from . import methods

KINDS = ('gaussian', 'centred', 'pairs')
# Data set, the two classes, pixels cut off at each side, side of the squares.
TASKS = {
  'digits': ('digits', (3, 8), 0, 2),
  'shirts': ('fashion_mnist', (6, 0), 0, 4),
  'birds': ('cifar10', (2, 8), 2, 4),
}
NAMES = 'digits, fashion_mnist, cifar10'
FITTED, BOXED = ('digits', 'shirts'), 'birds'
ROBUST = 'robust, pairs'
TRAINED = {'sgd': 0, 'sgd on fgsm': 1, 'sgd on pgd': 10}  # Steps of attacks.
HELD = (*TRAINED, 'convex, pairs', 'robust, gaussian', ROBUST)
BOX_SAMPLES = 10  # Of the robust program, whose cost is cubic in them.
LEVEL = 'level with it, within the spread over seeds; 10 hyperplanes are few'
NUMBERS = ('patterns', 'unbalanced', 'program', 'objective', 'violation')


def define(settings: Any) -> list[OwnCell]:
  names = [
    *((task, method) for task in FITTED for method in (*KINDS, 'adam')),
    *((BOXED, method) for method in HELD),
  ]
  return [cell(settings, *name) for name in names]


def cell(settings: Any, task: str, method: str) -> OwnCell:
  labels = {'part': task, 'method': method}
  measured = boxed if task == BOXED else fitted

  def make_rows(seeds) -> Rows:
    rows = []
    with jax.enable_x64(True):
      for seed in seeds:
        found = measured(settings, task, method, seed)
        numbers = {name: float(value) for name, value in found.items()}
        rows.append({**labels, 'seed': seed, 'round': 0, **numbers})
    return rows

  return OwnCell(labels=labels, make_rows=make_rows)


@functools.cache
def examples(
  settings: Any, task: str
) -> tuple[methods.Examples, methods.Examples]:
  """The first of both classes for training, and all for testing.

  Colours stay apart; pixels are from 0 to 1, before a column of ones.
  """
  name, classes, cut, pool = TASKS[task]
  dataset = data.load(name, settings.data_dir)

  def prepare(images, labels, limit):
    chosen = np.flatnonzero(np.isin(labels, classes))[:limit]
    x = images[chosen].astype(np.float64) / dataset.scale
    x = x[:, cut : x.shape[1] - cut, cut : x.shape[2] - cut]
    n, height, width, colours = x.shape
    x = x.reshape(n, height // pool, pool, width // pool, pool, colours)
    y = np.where(labels[chosen] == classes[0], -1.0, 1.0)
    x = np.c_[x.mean((2, 4)).reshape(n, -1), np.ones(n)]
    return jnp.array(x), jnp.array(y)

  return (
    prepare(dataset.train_images, dataset.train_labels, settings.num_examples),
    prepare(dataset.test_images, dataset.test_labels, None),
  )


def balance(active: np.ndarray) -> dict[str, float]:
  """How many patterns there are, and the share that are nearly all or none."""
  share = active.mean(axis=1)
  return {
    'patterns': len(active),
    'unbalanced': 100 * np.mean((share < 0.1) | (share > 0.9)),
  }


def fitted(settings: Any, task: str, method: str, seed: int) -> dict:
  """On the squared loss, without attacks."""
  (x, y), test = examples(settings, task)
  more, beta = {}, settings.beta
  if method == 'adam':
    network = methods.descended(
      x, y, seed, jnp.array(settings.rates), loss='squared', beta=beta,
      num_units=settings.num_samples, num_steps=settings.num_steps,
    )  # fmt: skip
  else:
    active = methods.patterns(
      x, settings.num_samples, jax.random.key(seed), hyperplanes=method
    )
    state, history = convex.admm(
      x, y, active, beta=beta, rho=0.1, dual_ratio=1.6,
      num_iterations=settings.num_iterations,
      record_every=settings.num_iterations,
    )  # fmt: skip
    network = convex.recover_network(state.blocks)
    more = balance(active) | {
      'program': history.objective[-1],
      'violation': history.violation[-1],
    }
  return more | {
    'objective': convex.network_objective(network, x, y, beta=beta),
    'accuracy': methods.accuracy(network, *test),
  }


def boxed(settings: Any, task: str, method: str, seed: int) -> dict:
  """On the hinge loss, with inputs in a box."""
  (x, y), test = examples(settings, task)
  epsilon, beta, more = settings.epsilon, settings.hinge_beta, {}
  if method in TRAINED:
    steps = TRAINED[method]
    network = methods.descended(
      x, y, seed, jnp.array(settings.rates), loss='hinge', beta=beta,
      num_units=settings.num_samples, num_steps=settings.num_steps,
      momentum=0.9, batch_size=32, epsilon=epsilon if steps else 0.0,
      attack_steps=steps,
    )  # fmt: skip
  else:
    kind, _, hyperplanes = method.partition(', ')
    sides = methods.sides(x, epsilon)
    active = methods.patterns(
      x, BOX_SAMPLES, jax.random.key(seed), hyperplanes=hyperplanes,
      epsilon=sides, num_perturbations=1,
    )  # fmt: skip
    num_iterations = settings.num_iterations // 3
    options = {
      'beta': beta, 'rho': 0.003, 'dual_ratio': 1.6, 'loss': 'hinge',
      'num_iterations': num_iterations, 'record_every': num_iterations,
    }  # fmt: skip
    if kind == 'robust':
      state, history = convex.robust_admm(
        x, y, active, epsilon=sides, **options
      )
    else:
      state, history = convex.admm(x, y, active, **options)
    network = convex.recover_network(state.blocks)
    more = balance(active) | {'violation': history.violation[-1]}
  hidden, output = network
  weight = jnp.linalg.norm(hidden, axis=0) * jnp.abs(output)
  bent = (weight > 0) & ~(x @ hidden > 0).all(axis=0)
  return (
    more
    | methods.attacked_accuracies(network, *test, epsilon)
    | {'units': (weight > 0).sum(), 'bent': bent.sum()}
  )


def summarise(rows: Rows, settings: Any) -> Summary:
  found = tables.Cells()
  for (task, method), part in tables.split_by(rows, 'part', 'method'):
    for name in (*NUMBERS, 'accuracy', 'clean', 'fgsm', 'pgd', 'units', 'bent'):
      # A column that this kind of cell lacks is empty in a file.
      if part[0].get(name, '') != '' and not np.isnan(part[0][name]):
        found[task, method, name] = tables.final(part, name)

  def shown(task, names):
    return {
      (m, n): value
      for (t, m, n), value in found.items()
      if t == task and n in names
    }

  fit = (*NUMBERS, 'accuracy')
  held = ('clean', 'fgsm', 'pgd', 'units', 'bent', 'patterns', 'unbalanced')
  return Summary(
    claims=claims_of(found),
    tables=pivots(
      [
        *(
          (
            f'{task.capitalize()}: distinct patterns of'
            f' {settings.num_samples} and the bias, those active on less than'
            ' 10 or more than 90 % (%), values, test accuracy (%)',
            shown(task, fit),
            2,
          )
          for task in FITTED
        ),
        (
          f'{BOXED.capitalize()}, box {settings.epsilon:.3f}: test accuracy'
          ' (%), units, units that bend, patterns',
          shown(BOXED, held),
        ),
      ]
    ),
    figures={'pairs.png': lambda: picture(found)},
  )


def claims_of(found: tables.Cells) -> list[Claim]:
  claim = claims_about(
    'convex two-layer ReLU training',
    'Bai, Gautam, Sojoudi 2022, arXiv:2201.01965',
    NAMES,
  )

  def above(task: str, one: str, other: str) -> np.ndarray:
    """By how many % the value is more, per seed."""
    values = (
      found[task, m, 'objective' if m == 'adam' else 'program']
      for m in (one, other)
    )
    first, second = values
    return 100 * (first / second - 1)

  def pgd(other: str) -> float:
    return (found[BOXED, ROBUST, 'pgd'] - found[BOXED, other, 'pgd']).mean()

  clean = found[BOXED, 'convex, pairs', 'clean'] - found[BOXED, ROBUST, 'clean']
  return [
    claim(
      'gradient descent finds nothing below the convex program',
      *(
        Check(
          f'{task}: Adam over pairs, worst seed (%)',
          above(task, 'adam', 'pairs').min(),
          at_least=0,
          why='80 hyperplanes are drawn, and Adam turns those of its units to'
          ' where they serve',
        )
        for task in FITTED
      ),
    ),
    claim(
      'hyperplanes through the data lower the value of the program',
      *checks_of_kinds(found, above),
      **OURS,
    ),
    claim(
      'robust convex training keeps more than training on FGSM or PGD inputs',
      Check('points under PGD over sgd', pgd('sgd'), at_least=5),
      Check('over convex', pgd('convex, pairs'), at_least=5),
      Check('over sgd on fgsm', pgd('sgd on fgsm'), at_least=0, why=LEVEL),
      Check('over sgd on pgd', pgd('sgd on pgd'), at_least=0, why=LEVEL),
      Check('clean points lost', clean.mean(), at_most=5),
    ),
    claim(
      'with hyperplanes through the data the robust network is no linear one',
      Check(
        'units that bend, worst seed',
        found[BOXED, ROBUST, 'bent'].min(),
        at_least=1,
      ),
      Check(
        'units that bend with Gaussian ones, a control',
        found[BOXED, 'robust, gaussian', 'bent'].max(),
        at_most=0,
        why='added after the run: it is due to the data, too',
      ),
      **OURS,
    ),
  ]


def checks_of_kinds(found: tables.Cells, above) -> list[Check]:
  checks = []
  for task in FITTED:
    blind, mine = (found[task, kind, 'patterns'] for kind in KINDS[::2])
    less = (
      found[task, KINDS[0], 'unbalanced'] - found[task, 'pairs', 'unbalanced']
    )
    checks += [
      Check(
        f'{task}: Gaussian over pairs (%)',
        above(task, 'gaussian', 'pairs').mean(),
        at_least=10,
        why='lower by less than was asked for',
      ),
      Check(
        f'{task}: times as many distinct patterns',
        (mine / blind).mean(),
        at_least=1.3,
      ),
      Check(f'{task}: points less unbalanced', less.mean(), at_least=20),
    ]
  return checks


def picture(found: tables.Cells):
  """Values by kind of hyperplane and of Adam, and accuracy in the box."""
  figure, (axes,) = pictures.panels(1, 3, figsize=(13, 3.2))
  for panel, task in zip(axes, FITTED):
    values = {kind: found[task, kind, 'program'] for kind in KINDS}
    values['adam'] = found[task, 'adam', 'objective']
    pictures.bars(panel, values, 'value of the program, or of the network')
    panel.set_title(task)
  accuracy = {method: found[BOXED, method, 'pgd'] for method in HELD}
  pictures.bars(axes[-1], accuracy, 'test accuracy under PGD (%)')
  axes[-1].set_title(BOXED)
  return figure
