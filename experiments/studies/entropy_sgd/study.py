r"""Entropy-SGD and its kin at equal gradients (Chaudhari et al.).

  python -m experiments.studies entropy_sgd --check               # digits
  python -m experiments.studies entropy_sgd --variant=mnist --data_dir=FOLDER

Workers send gradients to a server with Nesterov momentum (SGD), or how far the
mean of a walk of L steps is from where it began (Entropy-SGD): at equal numbers
of gradients the latter has L times fewer rounds. Parle and elastic averaging
keep a replica on every worker. Then three of eleven workers attack, before the
mean or a robust rule. Learning rates are the best of a few on a validation
split, for every method.

The variant mnist (module `mnistfc`) has one worker and a network with dropout,
the rates of walks chosen too, and how flat the solutions are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import data, models

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import tables
from ...reporting.summary import Summary, pivots
from .. import opponents
from . import claims, mnistfc
from .claims import ENTROPIES, ROBUST

# Steps between two messages.
STEPS = {'sgd': 1, 'entropy 5': 5, 'entropy 20': 20, 'easgd': 5, 'parle': 20}
COSINES = ('gradient', 'walk', 'large_batch')
ATTACKS = opponents.ATTACKS | {'sign flip': lambda: byzjax.sign_flip(scale=3.0)}
RULES = opponents.RULES | {'median': lambda f: byzjax.coordinate_median()}
QUICK = {'gradients': 40, 'entropy_rates': (1.0,), 'replica_rates': (0.1,)}
QUICK_CELLS = ('entropy 20', 'parle, none, mean')
PARTS = ('methods', 'mnistfc')
VARIANTS = {
  'mnist': {
    'parts': ('mnistfc',),
    'dataset': 'mnist',
    'pooling': 2,
    'gradients': 1000,
    'batch_size': 64,
    'gamma': 1e-4,
    'sgd_rates': (0.03, 0.1, 0.3),
    'entropy_rates': (1.0,),
    'num_evals': 2,
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  parts: tuple[str, ...] = option(PARTS[:1], ', '.join(PARTS))
  num_workers: int = option(11, 'n.', low=1)
  num_byzantine: int = option(3, 'f, in the second part.', low=1)
  gradients: int = option(1200, 'Of every worker, in all.', low=1)
  batch_size: int = option(12, 'Examples per worker and gradient.', low=1)
  gamma: float = option(0.03, 'Of Entropy-SGD, in the first round.')
  scoping: float = option(1e-3, 'Growth of gamma in a round.')
  inner_rate: float = option(0.1, 'Of the steps of its walk: not tuned.')
  sgd_rates: tuple[float, ...] = option(
    (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), 'To choose from.'
  )
  entropy_rates: tuple[float, ...] = option((0.5, 1.0, 2.0), 'To choose from.')
  replica_rates: tuple[float, ...] = option(
    (0.03, 0.1, 0.3), 'Of Parle and EASGD.'
  )
  inner_rates: tuple[float, ...] = option(
    (0.03, 0.1, 0.3), 'Of the steps of walks, in the part mnistfc.'
  )
  averagings: tuple[float, ...] = option(
    (0.25, 0.75), 'Weights of the newest step in a mean, there.'
  )
  hidden: tuple[int, ...] = option((1024, 1024), 'Hidden layers there.')
  pooling: int = option(1, 'Pixels of an image, k x k, that are one.', low=1)
  num_evals: int = option(20, 'Evaluations there.', low=1)


def entropy(settings: Settings, loss_fn, num_steps: int):
  return byzjax.entropy_gradient(
    loss_fn,
    num_steps=num_steps,
    gamma=optax.exponential_decay(settings.gamma, 1, 1 + settings.scoping),
    step_size=settings.inner_rate,
  )


def agreement(messages, n: int) -> jax.Array:
  """The cosine of the angle between two messages, mean over all pairs."""
  rows = jnp.concatenate(
    [x.reshape(n, -1) for x in jax.tree.leaves(messages)], axis=1
  )
  rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)
  return (jnp.sum(rows.sum(axis=0) ** 2) - n) / (n * (n - 1))


def probe_of(settings: Settings, method: str):
  """The loss on all training examples, and how honest messages agree."""
  n, num_steps = settings.num_workers, STEPS[method]

  def cosines(task, params, key):
    keys = jax.random.split(key, n + 1)
    batch = data.sample_batch(
      task.images,
      task.labels,
      task.partition,
      keys[0],
      num_steps * settings.batch_size,
      scale=task.scale,
    )
    first = jax.tree.map(lambda x: x[:, : settings.batch_size], batch)
    gradients = jax.vmap(jax.grad(task.loss_fn), (None, 0))
    walk = entropy(settings, task.loss_fn, num_steps)
    _, walks = jax.vmap(lambda *one: walk(*one), (None, 0, 0))(
      params, mnistfc.slices(num_steps)(batch), keys[1:]
    )
    messages = gradients(params, first), walks, gradients(params, batch)
    return {k: agreement(m, n) for k, m in zip(COSINES, messages)}

  def probe(task, params, key):
    full = models.evaluate(
      task.graphdef,
      params,
      task.images,
      task.labels,
      num_classes=task.num_classes,
      scale=task.scale,
    )
    more = cosines(task, params, key) if method in ENTROPIES else {}
    return {'full_loss': full.loss, **more}

  return probe


def cell(settings: Settings, method: str, attack='none', rule='mean') -> Cell:
  n, f, num_steps = settings.num_workers, settings.num_byzantine, STEPS[method]
  is_local, is_entropy = method in ('easgd', 'parle'), method in ENTROPIES
  size = settings.batch_size
  rates = 'replica' if is_local else method.split()[0]

  def make_round(task, key, learning_rate):
    del key
    shared = dict(
      num_workers=n,
      aggregator=RULES[rule](f),
      attack=ATTACKS[attack](),
      byzantine=0 if attack == 'none' else f,
    )
    nesterov = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
    if method == 'sgd':
      return byzjax.robust_round(task.loss_fn, optimizer=nesterov, **shared)
    if is_entropy:
      return byzjax.robust_round(
        task.loss_fn,
        optimizer=optax.sgd(learning_rate),
        value_and_grad=entropy(settings, task.loss_fn, num_steps),
        **shared,
      )
    shared['num_local_steps'] = num_steps
    shared['sampler'] = task.sampler(size)
    if method == 'easgd':
      return byzjax.elastic_averaging(
        task.loss_fn, local_optimizer=nesterov, **shared
      )
    return byzjax.parle(
      task.loss_fn,
      learning_rate=learning_rate,
      batches_per_epoch=max(len(task.labels) // (n * size), 1),
      **shared,
    )

  is_calm = (attack, rule) == ('none', 'mean')
  return Cell(
    labels={'method': method, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={'learning_rate': getattr(settings, f'{rates}_rates')},
    num_workers=n,
    rounds=settings.gradients // num_steps,
    batch_size=size * (1 if is_local else num_steps),
    make_batch=mnistfc.slices(num_steps) if is_entropy else lambda batch: batch,
    is_local=is_local,
    probe=probe_of(settings, method) if is_calm else None,
  )


def define(settings: Settings) -> list[Cell]:
  if settings.gradients % 20:
    raise ValueError(
      'entropy_sgd needs gradients to be a multiple of 20 (the longest walk),'
      f' got {settings.gradients}'
    )
  if settings.parts == ('mnistfc',):
    return mnistfc.define(settings)
  if settings.parts != ('methods',):
    raise ValueError(f'--parts: {settings.parts} is no one of {PARTS}')
  attacked = [
    (method, attack, rule)
    for method, robust in ROBUST.items()
    for attack in ATTACKS
    for rule in ('mean', robust)
    if (attack, rule) != ('none', 'mean')
    if (attack, robust) != ('alie', 'median')
  ]
  return [cell(settings, method) for method in STEPS] + [
    cell(settings, *labels) for labels in attacked
  ]


def keep(rows: Rows, settings: Settings) -> Rows:
  """Of every cell its best rate; without attackers also half of the curve."""
  if settings.parts == ('mnistfc',):
    return mnistfc.keep(rows, settings)

  def of_run(run):
    rise = np.diff(np.log10(tables.column(run, 'full_loss')))
    cosines = [name for name in COSINES if name in run[0]]
    more = {name: tables.column(run, name).mean() for name in cosines}
    return {'rises': np.maximum(rise, 0).sum(), **more}

  def of_cell(attack, rule, part):
    best = tables.tuned(tables.keep(part), 'learning_rate')
    part = tables.select(part, learning_rate=best[0]['learning_rate'])
    if (attack, rule) != ('none', 'mean'):
      return tables.keep(part, metrics=('accuracy',))
    every = 2 * part[0]['round']
    return tables.keep(
      tables.added(part, of_run),
      metrics=('accuracy', 'full_loss', 'loss', 'rises', *COSINES),
      curves=lambda row: row['round'] % every == 0,
    )

  cells = tables.split_by(rows, 'method', 'attack', 'rule')
  return [
    row
    for (_, attack, rule), part in cells
    for row in of_cell(attack, rule, part)
  ]


def summarise(rows: Rows, settings: Settings) -> Summary:
  if settings.parts == ('mnistfc',):
    return mnistfc.summarise(rows, settings)
  calm = tables.select(rows, attack='none', rule='mean')
  methods, accuracy = tables.split(calm, 'method'), accuracies(rows)
  cosines = {
    (method, name): claims.of(methods, method, name)
    for method in ENTROPIES
    for name in COSINES
  }
  f, n = settings.num_byzantine, settings.num_workers
  title = f'Without attackers, {settings.gradients} gradients of every worker'
  return Summary(
    claims=claims.of_entropy(methods, accuracy, settings.dataset),
    tables=pivots(
      [
        (title, at_best_rates(methods), 2),
        ('Cosine of two honest messages, mean over the training', cosines, 2),
        (f'Test accuracy (%), {f} of {n} attack', accuracy),
      ]
    ),
    figures={
      'curves.png': lambda: mnistfc.picture(
        methods, STEPS, 'gradients of a worker', 'training loss'
      )
    },
  )


def at_best_rates(methods: claims.Methods) -> tables.Cells:
  table = tables.Cells()
  for name, part in methods.items():
    row = f'{name}, rate {part[0]["learning_rate"]:g}'
    table[row, 'test accuracy (%)'] = tables.percent(part)
    table[row, 'less SGD'] = claims.less_sgd(methods, name)
    table[row, '-lg train loss'] = -np.log10(tables.final(part, 'full_loss'))
    table[row, '-lg test loss'] = -np.log10(tables.final(part, 'loss'))
    table[row, 'rises (decades)'] = tables.final(part, 'rises')
  return table


def accuracies(rows: Rows) -> tables.Cells:
  """By method with its rule, and attack; first without one."""
  table = tables.Cells()
  for (method, rule, attack), part in tables.split_by(
    sorted(rows, key=lambda row: row['attack'] != 'none'),
    *('method', 'rule', 'attack'),
  ):
    if method != 'entropy 20':
      table[f'{method}, {rule}', attack] = tables.percent(part)
  return table
