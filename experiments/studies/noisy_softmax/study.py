r"""Noisy Softmax: a cross entropy that does not saturate (Chen, Deng, Du).

  python -m experiments.studies noisy_softmax --check              # digits
  python -m experiments.studies noisy_softmax --variant=mnist --data_dir=FOLDER

Workers hold few examples each, which the model soon knows by heart, and send
gradients of the cross entropy with noise in the target logit, to SGD with
momentum on the workers. First without attackers: how much noise, and what kind
of it. Then two workers attack, before a robust rule, with and without momentum.
All amounts of noise are one program, and differ in nothing else.

The variant mnist (module `normalised`) has a network with normalisation, and a
learning rate for every amount of noise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import models, objectives

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Summary, pivots
from .. import opponents
from . import claims, normalised
from .claims import KEPT, KINDS, ROBUST

PARTS = ('methods', 'normalised')
VARIANTS = {
  'mnist': {
    'parts': ('normalised',),
    'dataset': 'mnist',
    'pooling': 2,
    'examples': 1000,
    'batch_size': 100,
    'squares': (0.0, 0.05, 0.1, 0.5, 1.0),
  },
}
QUICK = {'rounds': 4, 'squares': (0.0, 0.1), 'attacked_squares': (0.0, 0.1)}
QUICK_CELLS = ('annealed, none, mean', 'norms')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  parts: tuple[str, ...] = option(PARTS[:1], ', '.join(PARTS))
  num_seeds: int = option(20, 'Seeds 0, 1, ... in one program.', low=1)
  num_workers: int = option(10, 'n.', low=1)
  num_byzantine: int = option(2, 'f, in the second part.', low=1)
  examples: int = option(20, 'Of each worker.', low=1)
  rounds: int = option(400, 'Rounds of training.', low=1)
  batch_size: int = option(10, 'Examples per worker and round.', low=1)
  squares: tuple[float, ...] = option(
    (0.0, 0.01, 0.05, 0.1, 0.5, 1.0), 'Of alpha; the first is 0, no noise.'
  )
  attacked_squares: tuple[float, ...] = option(
    (0.0, 0.01, 0.1), 'In the second part.'
  )
  learning_rate: float = option(0.3, 'Of the server, for all.', low=0)
  momentum: float = option(0.9, 'Of the workers.', low=0)
  learning_rates: tuple[float, ...] = option(
    (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), 'To choose from, in the part normalised.'
  )
  noise: float = option(0.1, 'The amount that is looked at closely there.')
  width: int = option(64, 'Of the layers there.', low=1)
  pooling: int = option(1, 'Pixels of an image, k x k, that are one.', low=1)


def metrics(state, info: byzjax.RoundInfo) -> dict[str, jax.Array]:
  """The loss with noise, and how far apart honest messages are.

  The deviation is `sqrt(mean_i |m_i - m|^2)` over honest i, m their mean.
  """
  honest = ~info.is_byzantine
  shares = honest / jnp.sum(honest)
  messages = state.workers.momentum  # What they have sent: [n, d].
  apart = messages - (shares @ messages)[None]
  return {
    'train_loss': info.loss,
    'deviation': jnp.sqrt(shares @ jnp.sum(jnp.square(apart), axis=1)),
  }


def cell(
  settings: Settings, kind: str, *, attack='none', rule='mean', grid
) -> Cell:
  amplitude, direction = KINDS[kind]

  def make_round(task, key, square, momentum):
    features, _ = models.features_and_classifier(task.graphdef)
    objective = objectives.noisy_softmax(
      features,
      models.classifier_weights(task.graphdef),
      alpha=jnp.sqrt(square),
      amplitude=amplitude,
      direction=direction,
    )
    training = byzjax.robust_round(
      objective,
      worker=byzjax.worker_momentum(momentum),
      aggregator=opponents.RULES[rule](settings.num_byzantine),
      optimizer=optax.sgd(settings.learning_rate),
      num_workers=settings.num_workers,
      attack=opponents.ATTACKS[attack](),
      byzantine=0 if attack == 'none' else settings.num_byzantine,
    )

    return normalised.on_few(training, task, key, settings)

  def target_probability(task, params, key):
    del key
    return normalised.without_noise(task, params, settings.examples)[1]

  return Cell(
    labels={'kind': kind, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid=grid,
    num_workers=settings.num_workers,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    partition='random_shards',
    is_local=True,
    metrics=metrics,
    probe=target_probability,
  )


def define(settings: Settings) -> list[Cell]:
  if settings.parts == ('normalised',):
    return normalised.define(settings)
  if settings.parts != ('methods',):
    raise ValueError(f'--parts: {settings.parts} is no one of {PARTS}')
  kinds = {'square': settings.squares, 'momentum': [settings.momentum]}
  attacked = {
    'square': settings.attacked_squares,
    'momentum': [0.0, settings.momentum],
  }
  return [cell(settings, kind, grid=kinds) for kind in KINDS] + [
    cell(settings, 'annealed', attack=attack, rule=rule, grid=attacked)
    for attack, rule in [
      ('sign flip', 'mean'),
      *((attack, ROBUST) for attack in opponents.ATTACKS),
    ]
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  """Of the other kinds only the accuracy: there are many seeds."""
  if settings.parts == ('normalised',):
    return normalised.keep(rows, settings)
  quarter = max(settings.rounds // 4, rows[0]['round'])

  def of_run(run):
    early = [row for row in run if row['round'] <= quarter][-1]
    return {
      'early_probability': early['target_probability'],
      'deviation': np.mean(tables.column(run, 'deviation')),
    }

  def metrics_of(kind, attack, rule):
    if kind != 'annealed':
      return KEPT[:1]
    return KEPT if (attack, rule) == ('none', 'mean') else KEPT[:2]

  return [
    row
    for labels, part in tables.split_by(
      tables.added(rows, of_run), 'kind', 'attack', 'rule'
    )
    for row in tables.keep(part, metrics=metrics_of(*labels))
  ]


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.parts == ('normalised',):
    return normalised.summarise(rows, settings)
  found = claims.measured(rows, settings)
  amounts, kinds = amounts_of(found, settings), kinds_of(found, settings)
  f, n = settings.num_byzantine, settings.num_workers
  attacks = attacks_of(found, settings)
  return Summary(
    claims=claims.of_noise(found, settings),
    tables=pivots(
      [
        ('Annealed noise, without attackers', amounts, 2),
        ('Points gained over no noise', kinds),
        (f'Test accuracy (%), {f} of {n} attack', attacks, 2),
      ]
    ),
    figures={'noise.png': lambda: picture(amounts, kinds, settings)},
  )


def amounts_of(found: claims.Measured, settings: Settings) -> tables.Cells:
  table = tables.Cells()
  for square in settings.squares:
    row, gain = f'alpha² {square:g}', found.gains['annealed', square]
    of = {column: found.calm[column, square] for column in KEPT}
    table[row, 'accuracy'] = 100 * of['accuracy']
    table[row, 'gain'] = gain
    table[row, 'median gain'] = np.median(gain)
    table[row, 'p early, %'] = 100 * of['early_probability']
    table[row, 'p at end, %'] = 100 * of['target_probability']
    table[row, 'training loss'] = of['train_loss']
    table[row, 'deviation'] = of['deviation']
  return table


def kinds_of(found: claims.Measured, settings: Settings):
  return {
    (f'{kind}, {name}', f'alpha² {s:g}'): value(found.gains[kind, s])
    for kind in KINDS
    for name, value in (('mean', np.asarray), ('median', np.median))
    for s in settings.squares[1:]
  }


def attacks_of(found: claims.Measured, settings: Settings) -> tables.Cells:
  table = tables.Cells()
  compared = settings.squares[0], claims.most_noise(settings)
  for run, gain in found.attacked_gains.items():
    attack, rule, momentum = run
    row = f'{rule}, {attack}, momentum {momentum:g}'
    for s in settings.attacked_squares:
      values = found.attacked[run, 'accuracy', s]
      table[row, f'alpha² {s:g}'] = 100 * values
    table[row, 'gain of last'] = gain
    table[row, 'median gain'] = np.median(gain)
    for s in compared:
      table[row, f'deviation {s:g}'] = found.attacked[run, 'deviation', s]
  return table


def picture(amounts, kinds, settings: Settings):
  """Target probability and gain by the amount of noise."""
  figure, ((left, right),) = pictures.panels(1, 2, figsize=(11, 4))
  names = {'p early, %': 'at a quarter', 'p at end, %': 'at the end'}
  pictures.spread_over(
    left,
    settings.squares,
    {
      name: [amounts[f'alpha² {s:g}', column] for s in settings.squares]
      for column, name in names.items()
    },
  )
  left.set_xscale('symlog', linthresh=0.01)
  left.set(xlabel='alpha²', ylabel='target probability (%)', ylim=(0, 100))
  positive = settings.squares[1:]
  for kind, colour in palette.colours([*KINDS]).items():
    for name, style in (('mean', ':'), ('median', '.-')):
      gains = [kinds[f'{kind}, {name}', f'alpha² {s:g}'] for s in positive]
      label = {'color': colour, 'label': kind if name == 'median' else None}
      right.plot(positive, [np.mean(g) for g in gains], style, **label)
  right.axhline(0, color='gray', linewidth=1)
  right.set(xscale='log', xlabel='alpha²', ylim=(-10, 3))
  right.set_ylabel('points gained (median; mean dotted)')
  for axes in (left, right):
    axes.legend(fontsize=8)
  return figure
