r"""Asynchronous Local-SGD with Delayed Nesterov and dynamic local updates.

  python -m experiments.async_local.run --check
  python -m experiments.async_local.run --tasks=mixture,language \
    --text=tiny_shakespeare --data_dir=FOLDER --check

Four workers take AdamW steps on their shards and send pseudo-gradients. Under a
barrier the server averages them and takes a Nesterov step (DiLoCo); without one
it does something for every message: a Nesterov step of its own, one for every
four, or Delayed Nesterov, with local steps in proportion to speed (DyLU). All
take the same local steps; the clock is simulated.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import asynchrony
from experiments import report, study
from experiments.async_local import tasks

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(tasks)
flags.DEFINE_list('tasks', 'mixture', 'mixture, language or both.')
flags.DEFINE_float('grace', 0.5, 'Seconds that a finished worker may wait.')
flags.DEFINE_integer('num_evals', 40, 'Evaluations of a run.', 1)

COMPARED = ('DN', 'DN + DyLU')  # At all levels of heterogeneity.
RATE = 0.7  # Of DiLoCo: what the levels are compared at.
MOMENTUM = 0.9
NEAR = 0.05  # A loss so much above another is as low on the clock.


class Method(NamedTuple):
  """What the server does, and how long jobs are."""

  name: str
  optimizer: Callable  # of the rate
  incoming: optax.GradientTransformation | None = None
  is_buffered: bool = False
  is_synchronous: bool = False
  is_dynamic: bool = False


Level = Literal['no', 'slight', 'moderate', 'very']


class Cell(NamedTuple):
  """Of the table: all rates and seeds of a method."""

  task: str
  level: Level
  method: Method
  rates: list[float]

  @property
  def labels(self):
    return {'task': self.task, 'level': self.level, 'method': self.method.name}

  @property
  def name(self):
    return ', '.join(self.labels.values())


def nesterov(rate):
  return optax.sgd(rate, MOMENTUM, nesterov=True)


def methods() -> list[Method]:
  k = FLAGS.num_workers

  def delayed(rate):
    return byzjax.delayed_nesterov(rate, num_buffered=k, momentum=MOMENTUM)

  return [
    Method('synchronous', nesterov, is_buffered=True, is_synchronous=True),
    Method('Nesterov', nesterov),
    Method('Nesterov / K', nesterov, optax.scale(1 / k)),
    Method(
      'polynomial / K',
      nesterov,
      optax.chain(optax.scale(1 / k), byzjax.discount_staleness(0.5)),
    ),
    Method('buffer', nesterov, is_buffered=True),
    Method('DN', delayed),
    Method('DN + DyLU', delayed, is_dynamic=True),
  ]


def methods_of(task: str) -> list[Method]:
  """All of them, or those that a longer task has time for."""
  left_out = ('polynomial / K', 'buffer') if task == 'language' else ()
  return [method for method in methods() if method.name not in left_out]


def schedule(cell: Cell, seed: int = 0) -> asynchrony.Events:
  """Messages until all methods have done the same local steps."""
  h, k = FLAGS.num_local_steps, FLAGS.num_workers
  speeds = asynchrony.seconds_per_step(cell.level, k)
  method = cell.method
  steps = (
    asynchrony.dynamic_local_updates(speeds, h) if method.is_dynamic else h
  )
  return asynchrony.simulate(
    speeds,
    num_local_steps=steps,
    total_steps=h * k * tasks.task_of(cell.task).phases,
    grace=math.inf if method.is_synchronous else FLAGS.grace,
    shards='own' if method.is_synchronous else 'balanced',
    seed=seed,
  )


def run_cell(cell: Cell, seeds) -> report.Rows:
  """A row for every evaluation of every seed and rate: one program."""
  task, events = tasks.task_of(cell.task), schedule(cell)
  buffer = None
  if cell.method.is_buffered:
    buffer = asynchrony.by_arrival(events, num_rows=FLAGS.num_workers)
  count = len(events.worker)
  stops = np.linspace(0, count, FLAGS.num_evals + 1).astype(int)[1:]

  def run(params, key, rate):
    training = byzjax.asynchronous_round(
      task.loss_fn,
      events=events,
      optimizer=cell.method.optimizer(rate),
      local_optimizer=task.local_optimizer,
      sampler=task.sampler,
      incoming=cell.method.incoming,
      buffer=buffer,
    )

    def stretch(state, stop):
      state = jax.lax.fori_loop(
        state.step,
        stop,
        lambda _, state: training.step(state, task.batch, key)[0],
        state,
      )
      return state, task.test_loss(state.params)

    return jax.lax.scan(stretch, training.init(params), stops)[1]

  # The schedule is the same for all, and stays out of what is batched.
  over_rates = jax.vmap(run, (None, None, 0))
  params = jax.tree.map(lambda *x: jnp.stack(x), *map(task.params, seeds))
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  losses = jax.jit(jax.vmap(over_rates, (0, 0, None)))(
    params, keys, jnp.array(cell.rates)
  )
  return [
    {
      **cell.labels,
      'rate': rate,
      'seed': seed,
      'local_steps': int(events.num_local_steps[:stop].sum()),
      'time': float(events.time[stop - 1]),
      'loss': float(losses[seed, i, e]),
    }
    for seed in seeds
    for i, rate in enumerate(cell.rates)
    for e, stop in enumerate(stops)
  ]


def cells() -> list[Cell]:
  """All methods where workers differ most; two of them at all levels."""
  queue = [
    Cell(task, 'very', method, tasks.task_of(task).rates)
    for task in FLAGS.tasks
    for method in methods_of(task)
  ]
  return queue + [
    Cell('mixture', level, method, [RATE])
    for level in get_args(Level)[:-1]
    for method in methods()
    if method.name in COMPARED and 'mixture' in FLAGS.tasks
  ]


def end(rows: report.Rows) -> np.ndarray:
  """The loss at the end, per seed; what diverged is infinite."""
  values = report.final(rows, 'loss', tail=1)
  return np.where(np.isfinite(values), values, np.inf)


def at_best_rate(rows: report.Rows, name: str) -> report.Rows:
  """The runs of a method at the rate with the lowest loss at the end."""
  mine = report.select(rows, method=name)
  rates = dict.fromkeys(row['rate'] for row in mine)
  runs = [report.select(mine, rate=rate) for rate in rates]
  return min(runs, key=lambda run: end(run).mean())


def until(rows: report.Rows, target: np.ndarray) -> np.ndarray | None:
  """Simulated seconds until a loss is reached, per seed; None if not by all."""
  times = []
  for seed, goal in enumerate(target):
    mine = report.select(rows, seed=seed)
    reached = [row['time'] for row in mine if row['loss'] <= goal]
    times.append(min(reached, default=None))
  return None if None in times else np.array(times)


def picture(rows, path) -> None:
  figure, panels = plt.subplots(
    len(FLAGS.tasks),
    2,
    figsize=(11, 4 * len(FLAGS.tasks)),
    squeeze=False,
    layout='constrained',
  )
  for task, row in zip(FLAGS.tasks, panels):
    shown = np.inf
    for method in methods_of(task):
      mine = report.select(
        rows, task=task, level='very', method=method.name, rate=RATE
      )
      loss = np.array([r['loss'] for r in mine]).reshape(-1, FLAGS.num_evals)
      for axes, name in zip(row, ('local_steps', 'time')):
        x = np.array([r[name] for r in mine[: FLAGS.num_evals]])
        color = f'C{[m.name for m in methods()].index(method.name)}'
        axes.plot(x, loss.mean(axis=0), color, label=method.name)
      shown = min(shown, loss.mean(axis=0).min())
    for axes, label in zip(row, ('local steps', 'simulated seconds')):
      axes.set(xlabel=label, ylabel=f'{task}: test loss')
      axes.set_ylim(shown - 0.02, shown + 0.5)
      axes.grid(alpha=0.3)
  panels[0, 0].legend()
  report.save(figure, path, dpi=80)
  plt.close(figure)


def main(argv):
  del argv
  folder, rows = study.run('async_local', cells, run_cell)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  claims = []
  for task in FLAGS.tasks:
    of_task = report.select(rows, task=task)
    very = report.select(of_task, level='very')
    table = {
      (method.name, f'rate {rate:g}'): end(
        report.select(very, method=method.name, rate=rate)
      )
      for method in methods_of(task)
      for rate in tasks.task_of(task).rates
    }
    at_rate = {
      method.name: report.select(very, method=method.name, rate=RATE)
      for method in methods_of(task)
    }
    over_run = {
      name: report.final(mine, 'loss', tail=FLAGS.num_evals)
      for name, mine in at_rate.items()
    }
    table |= {
      (name, f'mean of run, {RATE:g}'): value
      for name, value in over_run.items()
    }
    print(f'\n{task}: test loss at the end, the most different speeds')
    print(report.pivot(table, digits=3))
    clock = {}
    best = {name: at_best_rate(very, name) for name in at_rate}
    for column, chosen in ((f'rate {RATE:g}', at_rate), ('best rate', best)):
      goal = end(chosen['synchronous']) + NEAR
      for name, mine in chosen.items():
        clock[name, 'all'] = np.array(mine[-1]['time'])
        reached = until(mine, goal)
        if reached is not None:
          clock[name, f'{column}, as low'] = reached
    print(
      f'\n{task}: simulated seconds of a run, and until the loss is at most'
      f' {NEAR} above the last one of synchronous'
    )
    print(report.pivot(clock, digits=0))
    gaps = {
      name: 100 * (end(chosen['DN + DyLU']) - end(chosen['synchronous'])).mean()
      for name, chosen in (('fixed', at_rate), ('best', best))
    }
    print(
      f'DN + DyLU over synchronous, hundredths: {gaps["fixed"]:.1f} at rate'
      f' {RATE:g}, {gaps["best"]:.1f} at the best rates'
    )
    seconds = clock.get(('DN + DyLU', 'best rate, as low'), np.array(np.inf))
    naive = 100 * (over_run['Nesterov'] - over_run['DN']).mean()
    claims += [
      study.claim(
        f'{task}: best loss of synchronous less that of DN + DyLU, hundredths',
        -gaps['best'],
        -2,
      ),
      study.claim(
        f'{task}: seconds of synchronous over those of DN + DyLU, as low',
        (clock['synchronous', 'best rate, as low'] / seconds).mean(),
        2,
      ),
      study.claim(
        f'{task}: mean loss of a run, a Nesterov step per message less DN,'
        ' hundredths',
        naive,
        2,
      ),
    ]
  if 'mixture' in FLAGS.tasks:
    levels = {
      (name, level): end(
        report.select(rows, task='mixture', level=level, method=name, rate=RATE)
      )
      for name in COMPARED
      for level in get_args(Level)
    }
    print(f'\nmixture: test loss at rate {RATE:g} by how much speeds differ')
    print(report.pivot(levels, digits=3))
  picture(rows, folder / 'async_local.png')
  study.finish(claims)


if __name__ == '__main__':
  app.run(main)
