r"""Clients that find their own step size: Delta-SGD (Kim et al.).

  python -m experiments.delta_sgd.run --check                     # digits
  python -m experiments.delta_sgd.run --dataset=fashion_mnist --data_dir=FOLDER

Federated averaging in which clients run one of seven optimizers. Six of them
are tuned once, on the first of four tasks, and then used as they are on the
others: other mixes of classes, other sizes of the pixels. Delta-SGD has the
constants of the paper everywhere. What counts is how far behind the best a
method is on its worst task. Then a fifth of the clients attack.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import data
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 20, 'Clients.', 1)
flags.DEFINE_integer('participation', 10, 'Clients in a round.', 1)
flags.DEFINE_integer('num_byzantine', 4, 'f, of the attacked runs.', 1)
flags.DEFINE_integer('rounds', 100, 'Rounds of training.', 1)
flags.DEFINE_integer('local_steps', 8, 'H, of a client in a round.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples per client and step.', 1)
flags.DEFINE_float('gamma', 2.0, 'Of Delta-SGD.', 0.0)
flags.DEFINE_float('step_size', 0.2, 'Of Delta-SGD, the first of a round.', 0.0)
flags.DEFINE_float('damping', 0.1, 'Of Delta-SGD, delta.', 0.0)


class Task(NamedTuple):
  """What changes from task to task."""

  alpha: float  # of the Dirichlet distribution of labels
  factor: float  # of the pixels


class Method(NamedTuple):
  """An optimizer of clients, by its learning rate."""

  optimizer: Callable[..., optax.GradientTransformation]
  learning_rates: tuple[float, ...]
  state: Literal['keep', 'reset'] = 'reset'  # of the optimizer, by round


TASKS = {
  'A': Task(1.0, 1.0),
  'B: alpha 0.1': Task(0.1, 1.0),
  'C: x 0.25': Task(1.0, 0.25),
  'D: x 4': Task(1.0, 4.0),
}
ATTACKS = {
  'sign flip': lambda: byzjax.sign_flip(scale=10.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0.16 for 4 of 20.
}


def decaying_sgd(learning_rate):
  """A tenth after half, and again after three quarters, of training.

  A client counts its own steps, in the rounds it takes part in.
  """
  share = FLAGS.participation / FLAGS.num_workers
  steps = FLAGS.rounds * FLAGS.local_steps * share
  return optax.sgd(
    optax.piecewise_constant_schedule(
      learning_rate, {int(0.5 * steps): 0.1, int(0.75 * steps): 0.1}
    )
  )


def polyak_sgd(learning_rate):
  """Stochastic Polyak steps without a cap; the learning rate is 1 / c.

  `optax.polyak_sgd(scaling=s)` scales the gradient before its norm is taken,
  and so divides by s.
  """
  return optax.chain(
    optax.scale_by_polyak(max_learning_rate=jnp.inf), optax.sgd(learning_rate)
  )


def delta_sgd(learning_rate):
  return byzjax.scale_by_delta_sgd(
    initial_step_size=learning_rate, gamma=FLAGS.gamma, damping=FLAGS.damping
  )


def methods() -> dict[str, Method]:
  return {
    'sgd': Method(optax.sgd, (0.03, 0.1, 0.3, 1.0)),
    'sgd, decaying': Method(decaying_sgd, (0.03, 0.1, 0.3, 1.0), 'keep'),
    'sgdm': Method(lambda x: optax.sgd(x, 0.9), (0.01, 0.03, 0.1, 0.3)),
    'adam': Method(optax.adam, (0.001, 0.003, 0.01, 0.03)),
    'adagrad': Method(optax.adagrad, (0.01, 0.03, 0.1, 0.3)),
    'sps': Method(polyak_sgd, (0.5, 1.0, 2.0)),
    'delta-sgd': Method(delta_sgd, (FLAGS.step_size,)),
  }


def rule_of(name: str) -> byzjax.Aggregator:
  f = FLAGS.num_byzantine
  trimmed = byzjax.trimmed_mean(num_byzantine=f)
  return {
    'mean': byzjax.mean(),
    'trimmed mean': trimmed,
    'clipped, trimmed': byzjax.pre_aggregate(
      byzjax.adaptive_clipping(num_byzantine=f), trimmed
    ),
  }[name]


def cell(method: str, task: str, attack: str = 'none', rule: str = 'mean'):
  optimizer, learning_rates, state = methods()[method]
  alpha, factor = TASKS[task]

  def make_round(loss_fn, key, setting, learning_rate):
    del key
    return byzjax.local_round(
      loss_fn,
      num_workers=FLAGS.num_workers,
      participation=FLAGS.participation,
      num_local_steps=FLAGS.local_steps,
      local_optimizer=optimizer(learning_rate),
      local_state=state,
      aggregator=rule_of(rule),
      optimizer=optax.sgd(1.0),
      attack=None if attack == 'none' else ATTACKS[attack](),
      byzantine=0 if attack == 'none' else FLAGS.num_byzantine,
      sampler=data.local_sampler(
        setting.images,
        setting.labels,
        batch_size=FLAGS.batch_size,
        scale=setting.scale,
      ),
    )

  def scaled(images, partition, seed):
    del partition, seed
    return np.float32(factor) * images.astype(np.float32)

  return study.Cell(
    make_round,
    {'method': method, 'task': task, 'attack': attack, 'rule': rule},
    {'learning_rate': learning_rates},
    FLAGS.num_workers,
    FLAGS.rounds,
    FLAGS.batch_size,
    f'dirichlet_by_worker(alpha={alpha})',
    is_local=True,
    make_images=None if factor == 1 else scaled,
  )


def attacked() -> list[tuple[str, str, str]]:
  """(method, attack, rule) of the runs with attackers, on the first task."""
  return [
    (method, attack, rule)
    for method in ('sgd', 'delta-sgd')
    for attack in ATTACKS
    for rule in ('mean', 'trimmed mean', 'clipped, trimmed')
  ]


def cells() -> list[study.Cell]:
  first = next(iter(TASKS))
  return [cell(method, task) for task in TASKS for method in methods()] + [
    cell(method, first, attack, rule) for method, attack, rule in attacked()
  ]


def gaps(accuracy: dict) -> dict:
  """By how much the mean over seeds is behind the best of its column."""
  behind = {}
  for method, task in accuracy:
    best = max(v.mean() for k, v in accuracy.items() if k[1] == task)
    behind[method, task] = best - accuracy[method, task].mean()
  for method in dict.fromkeys(method for method, _ in accuracy):
    mine = [v for k, v in behind.items() if k[0] == method]
    behind[method, 'worst'] = np.max(mine)
  return behind


def picture(tables, path) -> None:
  """Gaps to the best, tuned once and tuned on every task."""
  figure, panels = plt.subplots(
    1, len(tables), figsize=(12, 4), layout='constrained', sharey=True
  )
  for axes, (title, table) in zip(panels, tables.items()):
    names = list(dict.fromkeys(method for method, _ in table))
    for i, name in enumerate(names):
      values = [table[name, task] for task in TASKS]
      places = np.arange(len(TASKS)) + (i - len(names) / 2) * 0.11
      axes.bar(places, values, 0.11, label=name)
    axes.set_xticks(range(len(TASKS)), TASKS, fontsize=8)
    axes.set_yscale('symlog', linthresh=1)
    axes.set_title(title)
    axes.grid(alpha=0.3, axis='y')
  panels[0].set_ylabel('points behind the best')
  panels[0].legend(fontsize=7)
  report.save(figure, path, dpi=90)
  plt.close(figure)


def main(argv):
  del argv
  folder, rows = study.run('delta_sgd', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  first = next(iter(TASKS))
  once, anew, rates = {}, {}, {}
  for method in methods():
    runs = report.select(rows, method=method, attack='none')
    on_first = report.tuned(report.select(runs, task=first), 'learning_rate')
    rate = rates[method] = on_first[0]['learning_rate']
    for task in TASKS:
      on_task = report.select(runs, task=task)
      same = report.select(on_task, learning_rate=rate)
      best = report.tuned(on_task, 'learning_rate')
      once[method, task] = 100 * report.final(same)
      anew[method, task] = 100 * report.final(best)
  print(f'Test accuracy (%), tuned on {first} alone')
  print(report.pivot(once))
  print('learning rates:', rates)
  once_gaps, anew_gaps = gaps(once), gaps(anew)
  print('\nPoints behind the best of the column')
  print(_plain(once_gaps))
  print('\nThe same if all but Delta-SGD are tuned on every task')
  print(_plain(anew_gaps))
  print(
    '\nEvery learning rate: points behind the best of any, on the worst task'
  )
  print(_by_rate(report.select(rows, attack='none'), first))
  under = {}
  for method, attack, rule in attacked():
    runs = report.select(
      rows,
      method=method,
      task=first,
      attack=attack,
      rule=rule,
      learning_rate=rates[method],
    )
    under[f'{method}, {rule}', attack] = 100 * report.final(runs)
  print(
    f'\n{FLAGS.num_byzantine} of {FLAGS.num_workers} clients attack on {first}:'
    ' test accuracy (%)'
  )
  print(report.pivot(under))
  picture(
    {'tuned on A': once_gaps, 'tuned on every task': anew_gaps},
    folder / 'gaps.png',
  )

  mine = once_gaps['delta-sgd', 'worst']
  others = [once_gaps[m, 'worst'] for m in methods() if m != 'delta-sgd']
  study.finish(
    [
      study.claim(
        'worst gap, the best of the others less Delta-SGD',
        min(others) - mine,
        0,
      ),
      study.claim('worst gap of Delta-SGD, negative', -mine, -2),
      study.claim(
        'methods whose worst gap is over 3 points',
        sum(gap > 3 for gap in others),
        3,
      ),
      study.claim(
        'sign flip, Delta-SGD: trimmed mean over mean',
        (
          under['delta-sgd, trimmed mean', 'sign flip']
          - under['delta-sgd, mean', 'sign flip']
        ).mean(),
        30,
      ),
      study.claim(
        'alie, Delta-SGD: clipped, trimmed over mean',
        (
          under['delta-sgd, clipped, trimmed', 'alie']
          - under['delta-sgd, mean', 'alie']
        ).mean(),
        -1,
      ),
    ]
  )


def _plain(table: dict) -> str:
  """A table without deviations: gaps are of means."""
  columns = [*TASKS, 'worst']
  lines = ['  '.join([' ' * 13, *(f'{c:>12}' for c in columns)])]
  for method in methods():
    values = (f'{table[method, column]:12.1f}' for column in columns)
    lines.append('  '.join([f'{method:13}', *values]))
  return '\n'.join(lines)


def _by_rate(rows: report.Rows, first: str) -> str:
  """What tuning on the first task could have chosen, and what it costs."""
  accuracy = {
    (method, rate, task): 100
    * report.final(
      report.select(rows, method=method, learning_rate=rate, task=task)
    ).mean()
    for method, made in methods().items()
    for rate in made.learning_rates
    for task in TASKS
  }
  best = {
    task: max(v for k, v in accuracy.items() if k[2] == task) for task in TASKS
  }
  lines = []
  for method, made in methods().items():
    for rate in made.learning_rates:
      behind = [best[task] - accuracy[method, rate, task] for task in TASKS]
      on_first = behind[list(TASKS).index(first)]
      lines.append(
        f'{method:13}  rate {rate:<5g}  {on_first:5.1f} on {first}'
        f'  {max(behind):5.1f} worst'
      )
  return '\n'.join(lines)


if __name__ == '__main__':
  app.run(main)
