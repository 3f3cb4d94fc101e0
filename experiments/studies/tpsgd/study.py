r"""tpSGD: layers that learn from local targets (Lomnitz et al.).

  python -m experiments.studies tpsgd --check                      # digits
  python -m experiments.studies tpsgd --dataset=mnist --data_dir=FOLDER

Networks with tanh learn by backpropagation (bp), by target projection with the
residuals l2 and l1, and by direct random target projection (drtp), all by SGD
with momentum; or only their last layer learns (frozen). First perceptrons of
several depths, a convolutional and a recurrent network, each with one worker.
Then two of ten workers attack, before the mean or a robust rule. The learning
rate, and what hidden layers have of it, are the best of a few on a validation
split, for every network and method, and under every attack.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import models
from experiments.harness.cells import Cell, Rows, Task
from experiments.harness.settings import ImageSettings, option
from experiments.reporting import palette, pictures, tables
from experiments.reporting.summary import Check, Claim, Summary, Table
from experiments.studies import opponents

METHODS = ('bp', 'l2', 'l1', 'drtp', 'frozen')
ATTACKED = 'mlp 2'
ROBUST = 'nnm, median'
ATTACKS = opponents.ATTACKS | {
  'sign flip': lambda: byzjax.sign_flip(scale=10.0)
}
QUICK = {
  'rounds': 4,
  'attacked_rounds': 4,
  'learning_rates': (0.1,),
  'shares': (1.0,),
}
QUICK_CELLS = ('mlp 1, l2', 'rnn, l1', 'l2, sign flip, nnm')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  depths: tuple[int, ...] = option(
    (1, 2, 4, 8), 'Hidden layers of the perceptrons.'
  )
  width: int = option(64, 'Of hidden layers.', low=1)
  rounds: int = option(400, 'Steps of training, of one worker.', low=1)
  batch_size: int = option(64, 'Examples per step, of one worker.', low=1)
  learning_rates: tuple[float, ...] = option((0.1, 0.3, 1.0), 'To choose from.')
  shares: tuple[float, ...] = option(
    (0.01, 0.1, 1.0), 'Of them, for hidden layers.'
  )
  momentum: float = option(0.9, 'Decay of the momentum of a worker.')
  scale: float = option(0.5, 'Of the random signs of l2 and l1.', low=0)
  num_workers: int = option(10, 'n, in the second part.', low=1)
  num_byzantine: int = option(2, 'f, in the second part.', low=1)
  attacked_rounds: int = option(200, 'Of training, in the second part.', low=1)
  attacked_batch_size: int = option(16, 'In the second part.', low=1)


def network(
  settings: Settings, name: str, shape, num_classes: int, seed: int
) -> nnx.Module:
  kind, *depth = name.split()
  rngs, width = nnx.Rngs(seed), settings.width
  if kind == 'cnn':
    return models.CNN(shape, num_classes, activation=jnp.tanh, rngs=rngs)
  if kind == 'rnn':
    steps = math.prod(shape[1:])  # A row of the image.
    return models.RNN((steps, width, width, num_classes), rngs=rngs)
  sizes = (math.prod(shape), *[width] * int(depth[0]), num_classes)
  return models.MLP(sizes, activation=jnp.tanh, rngs=rngs)


def estimator(settings: Settings, method: str, task: Task):
  """What stands for the gradient; None is the gradient."""
  if method in ('bp', 'frozen'):
    return None
  is_drtp = method == 'drtp'
  return byzjax.target_projection(
    models.stages(task.graphdef),
    num_classes=task.num_classes,
    projection_key=jax.random.key(0),
    residual=method,
    projection='he_uniform' if is_drtp else 'signs',
    scale=1.0 if is_drtp else settings.scale,
  )


def optimizer(task: Task, learning_rate, share) -> optax.GradientTransformation:
  """SGD with a rate of its own for the last layer."""
  last = models.stages(task.graphdef)[-1]

  def labels(params):
    leaves, treedef = jax.tree.flatten(params)
    places = jax.tree.unflatten(treedef, range(len(leaves)))
    outer = jax.tree.leaves(last.owns(places))
    names = ['last' if i in outer else 'hidden' for i in range(len(leaves))]
    return jax.tree.unflatten(treedef, names)

  rates = {'last': learning_rate, 'hidden': share * learning_rate}
  return optax.partition({k: optax.sgd(v) for k, v in rates.items()}, labels)


def cell(
  settings: Settings, name: str, method: str, attack='', rule='mean'
) -> Cell:
  n, f = (settings.num_workers, settings.num_byzantine) if attack else (1, 0)

  def make_round(task, key, learning_rate, share):
    del key
    return byzjax.robust_round(
      task.loss_fn,
      value_and_grad=estimator(settings, method, task),
      num_workers=n,
      worker=byzjax.worker_momentum(settings.momentum),
      aggregator=opponents.RULES[rule](f),
      optimizer=optimizer(task, learning_rate, share),
      attack=ATTACKS[attack or 'none'](),
      byzantine=0 if attack == 'none' else f,
    )

  return Cell(
    labels={
      'part': 'attacks' if attack else 'networks',
      'network': name,
      'method': method,
      'attack': attack or 'none',
      'rule': rule,
    },
    make_round=make_round,
    grid={
      'learning_rate': settings.learning_rates,
      'share': (0.0,) if method == 'frozen' else settings.shares,
    },
    num_workers=n,
    rounds=settings.attacked_rounds if attack else settings.rounds,
    batch_size=settings.attacked_batch_size if attack else settings.batch_size,
    make_model=functools.partial(network, settings, name),
  )


def networks(settings: Settings) -> list[str]:
  return [*(f'mlp {depth}' for depth in settings.depths), 'cnn', 'rnn']


def define(settings: Settings) -> list[Cell]:
  return [
    cell(settings, name, method)
    for name in networks(settings)
    for method in METHODS
  ] + [
    cell(settings, ATTACKED, method, attack, rule)
    for method in METHODS[:3]
    for attack in ATTACKS
    for rule in opponents.RULES
    if (attack, rule) != ('none', 'mean')
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  """Of every cell its best rates."""
  del settings
  labels = 'part', 'network', 'method', 'attack', 'rule'
  finals = tables.keep(rows, metrics=('accuracy', 'validation_accuracy'))
  return [
    row
    for _, part in tables.split_by(finals, *labels)
    for row in tables.tuned(part, 'learning_rate', 'share')
  ]


def summarise(rows: Rows, settings: Settings) -> Summary:
  calm = tables.select(rows, part='networks')
  accuracy = tables.Cells(
    (key, tables.percent(part))
    for key, part in tables.split_by(calm, 'network', 'method')
  )
  rates = {
    (name, f'{method} {of}'): np.array(part[0][column])
    for (name, method), part in tables.split_by(calm, 'network', 'method')
    for of, column in (('rate', 'learning_rate'), ('share', 'share'))
  }
  attacks = tables.Cells(
    ((f'{attack}, {rule}', method), tables.percent(part))
    for (attack, rule, method), part in tables.split_by(
      tables.select(rows, part='attacks'), 'attack', 'rule', 'method'
    )
  )

  def over(name, method, other='bp'):
    """Points, paired by seed."""
    return accuracy[name, method] - accuracy[name, other]

  behind = {
    (name, f'{method} - bp'): over(name, method)
    for name in networks(settings)
    for method in METHODS[1:-1]
  }
  shallow, *_, deep = (f'mlp {depth}' for depth in settings.depths)

  def ahead(name, method, other='bp'):
    return over(name, method, other).mean()

  def under(attack, method, other, rule=ROBUST):
    """Points behind the robust rule, over another cell."""
    robust = attacks[f'{attack}, {ROBUST}', method]
    return (robust - attacks[f'{other}, {rule}', method]).mean()

  why = {
    'cnn': 'an artefact: a target for every pixel, before pooling',
    'rnn': 'likely an artefact: a target at every time step',
  }
  about = {
    'method': 'tpSGD',
    'paper': 'Lomnitz, Daniels, Zhang, Piacentino 2022, arXiv:2208.08503',
    'data': settings.dataset,
  }
  both = ('l2', 'l1')
  return Summary(
    claims=[
      Claim(
        says='within 5 points of backpropagation on shallow networks',
        published='within 5 %',
        evidence='A',
        checks=[
          Check(
            f'{name}: points of {m} over bp',
            ahead(name, m),
            at_least=-5,
            why=why.get(name, ''),
          )
          for name in (shallow, 'cnn', 'rnn')
          for m in both
        ],
        **about,
      ),
      Claim(
        says='the gap to backpropagation grows with depth, and l1 is near l2',
        checks=[
          *[
            Check(
              f'{m}: gap at {deep} over gap at {shallow}',
              ahead(shallow, m) - ahead(deep, m),
              at_least=0,
            )
            for m in both
          ],
          Check(
            f'{shallow}: distance of l1 and l2',
            abs(ahead(shallow, 'l1', 'l2')),
            at_most=3,
          ),
        ],
        **about,
      ),
      Claim(
        says='better than DRTP, and than layers that do not learn',
        checks=[
          Check(
            f'{shallow}: points of l2 over drtp',
            ahead(shallow, 'l2', 'drtp'),
            at_least=0,
            why='less than the spread over seeds; the rates of drtp are ours',
          ),
          *[
            Check(
              f'{name}: points of l2 over frozen',
              ahead(name, 'l2', 'frozen'),
              at_least=0,
              why=why.get(name, ''),
            )
            for name in (shallow, deep, 'cnn', 'rnn')
          ],
        ],
        **about,
      ),
      Claim(
        says='in a round with attackers it behaves like a gradient',
        checks=[
          *[
            Check(
              f'{m}, {attack}: points over no attack, {ROBUST}',
              under(attack, m, 'none'),
              at_least=-5,
            )
            for attack in ('sign flip', 'alie')
            for m in both
          ],
          *[
            Check(
              f'{m}, sign flip: points of {ROBUST} over the mean',
              under('sign flip', m, 'sign flip', 'mean'),
              at_least=20,
            )
            for m in both
          ],
        ],
        **about | {'method': '', 'paper': 'not in the paper'},
      ),
    ],
    tables=[
      Table(
        'Test accuracy (%), and points over backpropagation, paired by seed',
        tables.pivot(accuracy | behind),
      ),
      Table(
        'Chosen rates of the last layer, and share of them for hidden layers',
        tables.pivot(rates, 2),
      ),
      Table(
        f'Test accuracy (%), {settings.num_byzantine} of'
        f' {settings.num_workers} attack, {ATTACKED}',
        tables.pivot(attacks),
      ),
    ],
    figures={'accuracy.png': lambda: picture(settings, accuracy, attacks)},
  )


def picture(settings: Settings, accuracy, attacks):
  """Accuracy by depth, and under attacks."""
  figure, ((left, right),) = pictures.panels(1, 2, figsize=(11, 4))
  at_depths = {
    method: [accuracy[f'mlp {depth}', method] for depth in settings.depths]
    for method in METHODS
  }
  pictures.spread_over(left, settings.depths, at_depths)
  left.set(xlabel='hidden layers', ylabel='test accuracy (%)')
  left.set_xticks(settings.depths)
  colours = palette.colours([*METHODS])
  names = tables.axes(attacks)[0]
  for i, method in enumerate(METHODS[:3]):
    heights = [attacks[name, method].mean() for name in names]
    places = np.arange(len(names)) + (i - 1) / 4
    right.bar(places, heights, 0.25, label=method, color=colours[method])
  right.set(ylabel='test accuracy (%)', ylim=(0, 100))
  short = [name.replace('nnm, median', 'nnm') for name in names]
  right.set_xticks(range(len(names)), short, rotation=15)
  for axes in (left, right):
    axes.legend(fontsize=8, loc='lower left')
  return figure
