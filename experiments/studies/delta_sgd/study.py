r"""Clients that find their own step size: Delta-SGD (Kim et al.).

  python -m experiments.studies delta_sgd --check                 # digits
  python -m experiments.studies delta_sgd --variant=images --data_dir=FOLDER

Federated averaging in which clients run one of seven optimizers. Six of them
are tuned once, on the first of several tasks, and then used as they are on the
others: other mixes of classes, other sizes of the pixels; or, in the variant
images, other data sets. Delta-SGD has the constants of the paper everywhere.
What counts is how far behind the best a method is on its worst task. Then some
of the clients attack.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import byzjax

from ...harness.cells import Cell, Rows
from ...harness.settings import ImageSettings, option
from ...reporting import palette, pictures, tables
from ...reporting.summary import Check, Claim, Summary, pivots
from . import images


class Method(NamedTuple):
  """An optimizer of clients, by its learning rate."""

  optimizer: Callable[..., optax.GradientTransformation]
  learning_rates: tuple[float, ...]


# By name, alpha of the Dirichlet distribution of labels, factor of the pixels.
TASKS = {
  'A': (1.0, 1.0),
  'B: alpha 0.1': (0.1, 1.0),
  'C: x 0.25': (1.0, 0.25),
  'D: x 4': (1.0, 4.0),
}
MINE = 'delta-sgd'
ATTACKS = {
  'sign flip': lambda: byzjax.sign_flip(scale=10.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0.16 for 4 of 20.
}
RULES: dict[str, Callable] = {
  'mean': lambda f: byzjax.mean(),
  'trimmed mean': lambda f: byzjax.trimmed_mean(num_byzantine=f),
  'clipped, trimmed': lambda f: byzjax.pre_aggregate(
    byzjax.adaptive_clipping(num_byzantine=f),
    byzjax.trimmed_mean(num_byzantine=f),
  ),
}
# Learning rates to choose of, on the digits and on the other data sets.
RATES = {
  'sgd': ((0.03, 0.1, 0.3, 1.0), (0.03, 0.1, 0.3, 1.0)),
  'sgd, decaying': ((0.03, 0.1, 0.3, 1.0), (0.1, 0.3, 1.0, 3.0)),
  'sgdm': ((0.01, 0.03, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0)),
  'adam': ((0.001, 0.003, 0.01, 0.03), (0.001, 0.003, 0.01, 0.03)),
  'adagrad': ((0.01, 0.03, 0.1, 0.3), (0.01, 0.03, 0.1, 0.3)),
  'sps': ((0.5, 1.0, 2.0), (0.5, 1.0, 2.0, 4.0)),
}
# Why predictions fell short, on the digits and on the other data sets.
WHY = {
  'least': ('', ''),
  'gap': (
    'on C the step can grow to 0.3 in a round, and SGD has 1.0',
    'on MNIST, where it stays below 0.3 in a round, and momentum goes further',
  ),
  'others': ('', ''),
}
VARIANTS = {
  'images': {
    'datasets': ('mnist', 'fashion_mnist', 'cifar10'),
    'num_workers': 100,
    'num_byzantine': 10,
    'tolerated': 3,
    'attacks': ('sign flip',),
    'rules': ('mean', 'trimmed mean'),
    'batch_size': 32,
    'rounds': 60,
    'num_evals': 6,
  }
}
QUICK = {'rounds': 4, 'local_steps': 2}
QUICK_CELLS = ('sgd, A, none',)  # Of SGD and of Delta-SGD.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ImageSettings):
  num_workers: int = option(20, 'Clients.', low=1)
  participation: int = option(10, 'Clients in a round.', low=1)
  num_byzantine: int = option(4, 'f, of the attacked runs.', low=1)
  tolerated: int = option(4, 'Attackers in a round, for rules.', low=1)
  attacks: tuple[str, ...] = option(tuple(ATTACKS), 'Of those there are.')
  rules: tuple[str, ...] = option(tuple(RULES), 'Of those there are.')
  datasets: tuple[str, ...] = option(
    (), 'Data sets as tasks, each with all alphas; none for those of --dataset.'
  )
  alphas: tuple[float, ...] = option((1.0, 0.1), 'Of these data sets.')
  rounds: int = option(100, 'Rounds of training.', low=1)
  local_steps: int = option(8, 'H, of a client in a round.', low=1)
  batch_size: int = option(16, 'Examples per client and step.', low=1)
  num_evals: int = option(20, 'Evaluations.', low=1)
  gamma: float = option(2.0, 'Of Delta-SGD.', low=0)
  step_size: float = option(0.2, 'Of Delta-SGD, the first of a round.', low=0)
  damping: float = option(0.1, 'Of Delta-SGD, delta.', low=0)


def tasks(settings: Settings) -> list[str]:
  """All of them; the first is the one to tune on."""
  if not settings.datasets:
    return list(TASKS)
  return [
    images.name(dataset, alpha)
    for dataset in settings.datasets
    for alpha in settings.alphas
  ]


def methods(settings: Settings) -> dict[str, Method]:
  drops = {
    int(0.5 * settings.rounds): 0.1,
    int(0.75 * settings.rounds): 0.1,
  }

  def decaying_sgd(learning_rate):
    return byzjax.scale_by_round(
      optax.piecewise_constant_schedule(learning_rate, drops)
    )

  def polyak_sgd(learning_rate):
    # Without a cap; the learning rate is 1 / c. `optax.polyak_sgd(scaling=s)`
    # scales the gradient before its norm is taken, and so divides by s.
    return optax.chain(
      optax.scale_by_polyak(max_learning_rate=jnp.inf), optax.sgd(learning_rate)
    )

  def delta_sgd(learning_rate):
    return byzjax.scale_by_delta_sgd(
      initial_step_size=learning_rate,
      gamma=settings.gamma,
      damping=settings.damping,
    )

  optimizers = {
    'sgd': optax.sgd,
    'sgd, decaying': decaying_sgd,
    'sgdm': lambda learning_rate: optax.sgd(learning_rate, 0.9),
    'adam': optax.adam,
    'adagrad': optax.adagrad,
    'sps': polyak_sgd,
  }
  which = bool(settings.datasets)
  return {
    **{x: Method(optimizers[x], rates[which]) for x, rates in RATES.items()},
    MINE: Method(delta_sgd, (settings.step_size,)),
  }


def cell(
  settings: Settings, method: str, task: str, attack='none', rule='mean'
) -> Cell:
  """On a task of the data set of the settings, or on a data set itself."""
  optimizer, learning_rates = methods(settings)[method]
  alpha, factor = TASKS.get(task, (None, 1.0))
  attacked = attack != 'none'

  def make_round(task, key, learning_rate):
    del key
    return byzjax.local_round(
      task.loss_fn,
      num_workers=settings.num_workers,
      participation=settings.participation,
      num_local_steps=settings.local_steps,
      local_optimizer=optimizer(learning_rate),
      local_state='reset',
      aggregator=RULES[rule](settings.tolerated),
      optimizer=optax.sgd(1.0),
      attack=ATTACKS[attack]() if attacked else None,
      byzantine=settings.num_byzantine if attacked else 0,
      sampler=task.sampler(settings.batch_size),
    )

  def scaled(pixels, partition, seed):
    del partition, seed
    return np.float32(factor) * pixels.astype(np.float32)

  partition: str | list[str] = images.PARTITION.format(alpha)
  if alpha is None:  # Attackers are met on the first task alone.
    alphas = settings.alphas[:1] if attacked else settings.alphas
    partition = [images.PARTITION.format(x) for x in alphas]

  return Cell(
    labels={'method': method, 'task': task, 'attack': attack, 'rule': rule},
    make_round=make_round,
    grid={'learning_rate': learning_rates},
    load=functools.partial(images.load, task, settings.data_dir)
    if settings.datasets
    else None,
    num_workers=settings.num_workers,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    num_evals=settings.num_evals,
    partition=partition,
    is_local=True,
    make_images=None if factor == 1 else scaled,
  )


def define(settings: Settings) -> list[Cell]:
  known = settings.datasets or tuple(TASKS)
  return [
    *(cell(settings, m, task) for task in known for m in methods(settings)),
    *(
      cell(settings, method, known[0], attack, rule)
      for method in ('sgd', MINE)
      for attack in settings.attacks
      for rule in settings.rules
    ),
  ]


def rate_of(rows: Rows, method: str, first: str) -> float:
  """The learning rate that is best on the first task, without attackers."""
  runs = tables.select(rows, method=method, task=first, attack='none')
  best = tables.tuned(runs, 'learning_rate')
  return best[0]['learning_rate'] if best else np.nan


def keep(rows: Rows, settings: Settings) -> Rows:
  """With attackers, only at the rates that were chosen without."""
  tail = min(3, (settings.num_evals + 1) // 3)
  rows = tables.keep(
    rows, tail=tail, metrics=('accuracy', 'validation_accuracy')
  )
  first, known = tasks(settings)[0], images.named(rows)
  rates = {m: rate_of(known, m, first) for m in methods(settings)}
  return [
    row
    for row in rows
    if row['attack'] == 'none' or row['learning_rate'] == rates[row['method']]
  ]


def gaps(accuracy: Mapping) -> tables.Cells:
  """By how much the mean over seeds is behind the best of its column."""
  behind = tables.Cells()
  for method, task in accuracy:
    best = max(v.mean() for k, v in accuracy.items() if k[1] == task)
    behind[method, task] = best - accuracy[method, task].mean()
  for method in tables.axes(accuracy)[0]:
    mine = [v for k, v in behind.items() if k[0] == method]
    behind[method, 'worst'] = np.max(mine)
  return behind


def summarise(rows: Rows, settings: Settings) -> Summary:
  names, (first, *_) = list(methods(settings)), tasks(settings)
  rows = images.named(rows)
  plain = tables.select(rows, attack='none')
  once, anew = tables.Cells(), tables.Cells()
  for (method, task), runs in tables.split_by(plain, 'method', 'task'):
    same = tables.select(runs, learning_rate=rate_of(rows, method, first))
    once[method, task] = tables.percent(same)
    anew[method, task] = tables.percent(tables.tuned(runs, 'learning_rate'))
  by_rate = tables.Cells(
    ((f'{method}, {rate:g}', task), tables.percent(runs))
    for method in names
    for (rate, task), runs in tables.split_by(
      tables.select(plain, method=method), 'learning_rate', 'task'
    )
  )
  under = tables.Cells(
    ((f'{method}, {rule}', attack), tables.percent(runs))
    for (method, rule, attack), runs in tables.split_by(
      rows, 'method', 'rule', 'attack'
    )
    if attack in ATTACKS
  )
  over = tables.Cells(
    ((method, task), once[MINE, task] - accuracy)
    for (method, task), accuracy in once.items()
    if method != MINE and (MINE, task) in once
  )
  rates = {(m, 'rate'): np.array(rate_of(rows, m, first)) for m in names}
  who = f'{settings.num_byzantine} of {settings.num_workers} clients attack'
  shown = [
    (f'Test accuracy (%), tuned on {first} alone', once, 1),
    (f'Learning rates, tuned on {first} alone', rates, 3),
    ('Points behind the best of the column', gaps(once), 1),
    (f'Points of {MINE} over others, paired by seed', over, 1),
    (
      f'Behind the best, if all but {MINE} are tuned on every task',
      gaps(anew),
      1,
    ),
    ('Every learning rate: points behind the best of any', gaps(by_rate), 1),
    (f'{who} on {first}: test accuracy (%)', under, 1),
  ]
  panels = {f'tuned on {first}': gaps(once), 'tuned on every task': gaps(anew)}
  name = 'images.png' if settings.datasets else 'gaps.png'
  return Summary(
    claims=claims(settings, gaps(once), under),
    tables=pivots(shown),
    figures={name: lambda: picture(names, tasks(settings), panels)},
  )


def claims(settings: Settings, behind, under) -> list[Claim]:
  worst = {m: np.mean(behind[m, 'worst']) for m in methods(settings)}
  mine = worst.pop(MINE)
  source = 'Kim, Toghani, Uribe, Kyrillidis 2023, arXiv:2306.11201'
  data = ', '.join(settings.datasets) or f'{settings.dataset}, four tasks'
  about = {'paper': source, 'data': data}

  def over(rule, attack):
    rows = (under[f'{MINE}, {x}', attack] for x in (rule, 'mean'))
    return np.mean(np.subtract(*rows))

  robust = {
    'sign flip': Check(
      'sign flip: points of the trimmed mean over the mean',
      over('trimmed mean', 'sign flip'),
      30,
    ),
    'alie': Check(
      'alie: points of clipping and trimming over the mean',
      over('clipped, trimmed', 'alie'),
      -1,
    ),
  }
  return [
    Claim(
      'Delta-SGD',
      'one setting is near the best on every task, where others fail somewhere',
      checks=[
        Check(
          'worst gap to the best: the least of the others less Delta-SGD',
          min(worst.values()) - mine,
          0,
          why=WHY['least'][bool(settings.datasets)],
        ),
        Check(
          'worst gap of Delta-SGD to the best, points',
          mine,
          at_most=1,
          why=WHY['gap'][bool(settings.datasets)],
        ),
        Check(
          'other methods whose worst gap is over 3 points',
          sum(gap > 3 for gap in worst.values()),
          3,
          why=WHY['others'][bool(settings.datasets)],
        ),
      ],
      **about,
    ),
    Claim(
      '',
      'robust rules work with clients that choose their own steps',
      published='not in the paper',
      checks=[robust[attack] for attack in settings.attacks],
      **about,
    ),
  ]


def picture(names, places, gaps_of):
  """Gaps to the best, tuned once and tuned on every task."""
  width = 3.0 * len(places)
  figure, (axes,) = pictures.panels(1, 2, figsize=(width, 4), sharey=True)
  colours = palette.colours(names)
  for panel, (title, behind) in zip(axes, gaps_of.items()):
    for i, name in enumerate(names):
      values = [np.mean(behind[name, task]) for task in places]
      where = np.arange(len(places)) + (i - len(names) / 2) * 0.11
      panel.bar(where, values, 0.11, label=name, color=colours[name])
    labels = [place.replace(', ', '\n') for place in places]
    panel.set_xticks(range(len(places)), labels)
    panel.set_yscale('symlog', linthresh=1)
    panel.set_title(title)
  axes[0].set_ylabel('points behind the best')
  axes[0].legend(fontsize='small')
  return figure
