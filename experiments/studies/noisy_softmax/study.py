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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, models, objectives

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table
from .. import opponents
from . import normalised

KINDS: dict[str, tuple[Any, Any]] = {  # amplitude and direction of noise
  'annealed': ('annealed', 'lower'),
  'norms': ('norms', 'lower'),
  'constant': ('constant', 'lower'),
  'both': ('annealed', 'both'),
  'raise': ('annealed', 'raise'),
}
ROBUST = 'nnm, median'
KEPT = (
  *('accuracy', 'deviation', 'train_loss'),
  *('target_probability', 'early_probability'),
)
PAPER = 'Chen, Deng, Du 2017, arXiv:1708.03769'
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

    def step(state, partition, round_key):
      batch = data.sample_batch(
        task.images,
        task.labels,
        normalised.few(partition, settings.examples),
        jax.random.fold_in(key, state.step),
        settings.batch_size,
        scale=task.scale,
      )
      return training.step(state, batch, round_key)

    return training._replace(step=step)

  def target_probability(task, params, key):
    """Without noise, on the examples that workers have."""
    del key
    inputs, labels = normalised.known(task, settings.examples)
    features, classify = models.features_and_classifier(task.graphdef)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      classify(params, features(params, inputs)), labels
    )
    return {'target_probability': jnp.exp(-losses).mean()}

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
    about = {'method': 'Noisy Softmax', 'paper': PAPER}
    return normalised.summarise(rows, settings, about)
  squares, positive = settings.squares, settings.squares[1:]
  noise, f = max(settings.attacked_squares), settings.num_byzantine

  def of(column, square, kind='annealed', *run):
    attack, rule, momentum = run or ('none', 'mean', settings.momentum)
    labels = {'attack': attack, 'rule': rule, 'momentum': momentum}
    return tables.final(
      tables.select(rows, kind=kind, square=square, **labels), column
    )

  def gain(square, kind='annealed', *run):
    """Paired by seed, over no noise."""
    none = of('accuracy', squares[0], 'annealed', *run)
    return 100 * (of('accuracy', square, kind, *run) - none)

  def times(column):
    return of(column, noise).mean() / of(column, squares[0]).mean()

  def best(kind):
    return max(gain(square, kind).mean() for square in positive)

  amounts = tables.Cells()
  for square in squares:
    row = f'alpha² {square:g}'
    amounts[row, 'accuracy'] = 100 * of('accuracy', square)
    amounts[row, 'gain'] = gain(square)
    amounts[row, 'median gain'] = np.median(gain(square))
    amounts[row, 'p early, %'] = 100 * of('early_probability', square)
    amounts[row, 'p at end, %'] = 100 * of('target_probability', square)
    amounts[row, 'training loss'] = of('train_loss', square)
    amounts[row, 'deviation'] = of('deviation', square)
  kinds = {
    (f'{kind}, {name}', f'alpha² {square:g}'): value(gain(square, kind))
    for kind in KINDS
    for name, value in (('mean', np.asarray), ('median', np.median))
    for square in positive
  }
  attacks = {}
  for attack, rule, momentum in dict.fromkeys(
    (row['attack'], row['rule'], row['momentum']) for row in rows
  ):
    run = attack, rule, momentum
    row = f'{rule}, {attack}, momentum {momentum:g}'
    for square in settings.attacked_squares:
      values = 100 * of('accuracy', square, 'annealed', *run)
      attacks[row, f'alpha² {square:g}'] = values
    attacks[row, 'gain of last'] = gain(noise, 'annealed', *run)
    attacks[row, 'median gain'] = np.median(gain(noise, 'annealed', *run))
    for square in (squares[0], noise):
      values = of('deviation', square, 'annealed', *run)
      attacks[row, f'deviation {square:g}'] = values

  little, much = min(positive), max(positive)
  early, late = (of('early_probability', s) for s in (noise, squares[0]))
  alie = [
    of('deviation', noise, 'annealed', 'alie', ROBUST, m).mean()
    for m in (0.0, settings.momentum)
  ]
  other = max(best(kind) for kind in KINDS if kind != 'annealed')
  about = {
    'method': 'Noisy Softmax',
    'paper': PAPER,
    'data': settings.dataset,
  }
  return Summary(
    claims=[
      Claim(
        says='a little noise in training is better than none, and than much',
        checks=[
          Check(f'points gained, alpha² {little:g}', gain(little).mean(), 0.2),
          Check(
            f'points over alpha² {much:g}',
            (gain(little) - gain(much)).mean(),
            5,
          ),
        ],
        **about,
      ),
      Claim(
        says='annealed noise is level with the best kind, raising is worst',
        published='annealed > constant, norms > none > raise',
        evidence='T',
        checks=[
          Check('none over raise, points, each at its best', -best('raise'), 0),
          Check('norms over none', best('norms'), 0),
          Check('constant over none', best('constant'), 0),
          Check('annealed over all others', best('annealed') - other, -0.5),
        ],
        **about,
      ),
      Claim(
        says='the training loss is higher, the target probability grows later',
        checks=[
          Check(f'times the loss, alpha² {noise:g}', times('train_loss'), 1.5),
          Check(
            'points of probability less at a quarter of the rounds',
            100 * (late - early).mean(),
            5,
          ),
        ],
        **about,
      ),
      Claim(
        says='noise sets honest messages apart; worker momentum averages it',
        checks=[
          Check(
            f'times the deviation, alpha² {noise:g}', times('deviation'), 1.1
          ),
          Check('alie: without over with momentum', alie[0] / alie[1], 1.5),
          *[
            Check(
              f'{attack}, {ROBUST}, momentum: points gained, alpha² {noise:g}',
              gain(noise, 'annealed', attack, ROBUST, settings.momentum).mean(),
              -1,
            )
            for attack in opponents.ATTACKS
          ],
        ],
        **about | {'method': '', 'paper': 'not in the paper'},
      ),
    ],
    tables=[
      Table('Annealed noise, without attackers', tables.pivot(amounts, 2)),
      Table('Points gained over no noise', tables.pivot(kinds)),
      Table(
        f'Test accuracy (%), {f} of {settings.num_workers} attack',
        tables.pivot(attacks, 2),
      ),
    ],
    figures={'noise.png': lambda: picture(amounts, kinds, settings)},
  )


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
