r"""Ordered momentum (OrMo) and other momenta without a barrier.

  python -m experiments.ordered_momentum.run --check

K workers send single gradients of fresh data. Under a barrier the server adds
up K of them and takes a momentum step; without one it does something for every
message, and methods differ in how momentum is to decay and what late gradients
count. All take the same number of gradients; the clock is simulated.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import asynchrony, models
from experiments import report, study
from experiments.ordered_momentum import mixture
from experiments.ordered_momentum.methods import (
  BARRIER,
  BASELINES,
  NUM_COMPARED,
  methods,
)

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_messages', 8000, 'Gradients of a run.', 1)
flags.DEFINE_integer('batch_size', 16, 'Examples of a gradient.', 1)
flags.DEFINE_float('momentum', 0.9, 'Of all methods that have one.')
flags.DEFINE_list('rates', '0.003,0.01,0.02,0.04,0.08', 'Of a gradient.')
flags.DEFINE_list('more_rates', '0.2,0.4', 'Of ASGD, beside these.')
flags.DEFINE_list('less_rates', '0.0003,0.001', 'Beside them, if attacked.')
flags.DEFINE_float('slowdown', 10.0, 'Seconds of a slow worker for a job.')
flags.DEFINE_integer('num_byzantine', 3, 'f of 16, the first ones.', 1)
flags.DEFINE_list('norms', '0.3,1', 'To which messages are clipped.')
flags.DEFINE_integer('num_evals', 25, 'Evaluations of a run.', 1)

SCHEDULES = {  # K and how many of them are slow
  '16, equal': (16, 0),
  '16, 1 slow': (16, 1),
  '64, 4 slow': (64, 4),
}
ATTACKED = '16, 1 slow'
# Of the claims about a schedule, in their order.
NEEDED = {
  '16, equal': (0, -10, -10, 0, 1),
  '16, 1 slow': (-5, -10, -10, 0, 5),
  '64, 4 slow': (-15, -20, -25, -5),
}
NEAR = 0.01  # A loss that is so much above another is as good on the clock.


class Cell(NamedTuple):
  """Of a table: all rates and seeds of a method."""

  schedule: str
  attack: str
  method: str
  rates: list[float]

  @property
  def labels(self):
    return {k: v for k, v in self._asdict().items() if k != 'rates'}

  @property
  def name(self):
    return '; '.join(self.labels.values())


def methods_of(k: int) -> dict[str, Any]:
  return methods(k, FLAGS.momentum, study.floats('norms'))


def names() -> tuple[list[str], list[str]]:
  """Of the methods that are compared, and of the robust ones."""
  methods = list(methods_of(1))
  return methods[:NUM_COMPARED], methods[NUM_COMPARED:]


def events_of(schedule: str, method: str) -> asynchrony.Events:
  """Slow workers are the last, attackers the first."""
  k, slow = SCHEDULES[schedule]
  seconds = np.ones(k)
  seconds[k - slow :] *= FLAGS.slowdown
  return asynchrony.simulate(
    seconds,
    num_events=FLAGS.num_messages,
    variation=0.1,
    grace=math.inf if method.startswith(BARRIER) else 0.0,
    seed=0,
  )


def make_round(cell: Cell, events, loss_fn, rate) -> byzjax.Round:
  """The rate falls to a tenth at half of the messages, again at 3/4."""
  count, batch_size = len(events.worker), FLAGS.batch_size
  arguments = methods_of(events.num_workers)[cell.method](
    optax.piecewise_constant_schedule(
      rate, {count // 2: 0.1, 3 * count // 4: 0.1}
    )
  )
  if num_rows := arguments.pop('num_rows', None):
    arguments['buffer'] = asynchrony.by_distinct_workers(
      events, num_rows=num_rows
    )
  is_attacked = cell.attack != 'none'
  return byzjax.asynchronous_round(
    loss_fn,
    events=events,
    attack=byzjax.sign_flip(scale=5.0) if is_attacked else None,
    byzantine=FLAGS.num_byzantine if is_attacked else 0,
    sampler=byzjax.LocalSampler(
      init=lambda params: (),
      start=lambda state, params, data, key: (),
      draw=lambda plan, data, step, key: (
        mixture.examples(key, batch_size),
        plan,
      ),
      finish=lambda state, params: state,
    ),
    **arguments,
  )


def run_cell(cell: Cell, seeds) -> report.Rows:
  """A row for every evaluation of every seed and rate: one program."""
  events, tests = events_of(cell.schedule, cell.method), mixture.held_out()
  loss_fn = models.cross_entropy_loss(mixture.model(0)[0])
  count = len(events.worker)
  stops = np.linspace(0, count, FLAGS.num_evals + 1).astype(int)[1:]
  no_data = jnp.zeros(events.num_workers)

  def run(params, key, rate):
    training = make_round(cell, events, loss_fn, rate)

    def stretch(state, stop):
      state = jax.lax.fori_loop(
        state.step,
        stop,
        lambda _, state: training.step(state, no_data, key)[0],
        state,
      )
      return state, loss_fn(state.params, tests['loss'])

    state, losses = jax.lax.scan(stretch, training.init(params), stops)
    return losses, loss_fn(state.params, tests['validation_loss'])

  # The schedule is the same for all, and stays out of what is batched.
  over_rates = jax.vmap(run, (None, None, 0))
  params = jax.tree.map(
    lambda *x: jnp.stack(x), *(mixture.model(seed)[1] for seed in seeds)
  )
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  losses, validation = jax.jit(jax.vmap(over_rates, (0, 0, None)))(
    params, keys, jnp.array(cell.rates)
  )
  losses, validation = np.asarray(losses), np.asarray(validation)
  return [
    {
      **cell.labels,
      'rate': rate,
      'seed': seed,
      'messages': int(stop),
      'time': float(events.time[stop - 1]),
      'loss': float(losses[s, i, e]),
      'validation_loss': float(validation[s, i]),
    }
    for s, seed in enumerate(seeds)
    for i, rate in enumerate(cell.rates)
    for e, stop in enumerate(stops)
  ]


def cells() -> list[Cell]:
  """All methods on all schedules; robust ones with and without attackers."""
  rates = study.floats('rates')
  more = rates + study.floats('more_rates')
  less = study.floats('less_rates') + rates
  plain, robust = names()
  queue = [
    Cell(schedule, 'none', method, more if 'ASGD' in method else rates)
    for schedule in SCHEDULES
    for method in plain
  ]
  queue += [Cell(ATTACKED, 'none', method, rates) for method in robust]
  return queue + [
    Cell(ATTACKED, 'sign flip', method, less)
    for method in (BARRIER, 'OrMo', *robust)
  ]


def end(rows: report.Rows, column: str = 'loss') -> np.ndarray:
  """The loss at the end, per seed; what diverged counts as 10."""
  return np.minimum(np.nan_to_num(report.final(rows, column, 1), nan=10), 10)


def best(rows: report.Rows) -> report.Rows:
  """The rows of the rate with the lowest validation loss."""
  by_rate = {
    rate: report.select(rows, rate=rate)
    for rate in dict.fromkeys(row['rate'] for row in rows)
  }
  return min(by_rate.values(), key=lambda r: end(r, 'validation_loss').mean())


def until(rows: report.Rows, target: np.ndarray) -> np.ndarray | None:
  """Simulated seconds until a loss is reached, per seed; None if not by all."""
  times = []
  for seed, goal in enumerate(target):
    mine = report.select(rows, seed=seed)
    reached = [row['time'] for row in mine if row['loss'] <= goal]
    times.append(min(reached, default=None))
  return None if None in times else np.array(times)


def print_schedules() -> None:
  print('\nMessages that came between a job and its message; seconds of all')
  for schedule in SCHEDULES:
    for name, method in (('barrier', BARRIER), ('no barrier', 'OrMo')):
      events = events_of(schedule, method)
      print(
        f'{schedule:11} {name:11} mean {events.staleness.mean():5.1f}, largest'
        f' {events.staleness.max():4d}; {events.time[-1]:6.0f} s'
      )


def compare(rows, title) -> dict[str, Any]:
  """Prints the tables of a schedule; returns what claims are about."""
  of = {name: report.select(rows, method=name) for name in names()[0]}
  tuned = {name: best(mine) for name, mine in of.items()}
  rates = {name: mine[0]['rate'] for name, mine in tuned.items()}
  rate = rates[BARRIER]
  same = {name: report.select(mine, rate=rate) for name, mine in of.items()}
  column = f'rate {rate:g}'
  losses, clock = {}, {}
  goal = end(same[BARRIER]) + NEAR
  for name in of:
    losses[name, 'own rate'] = end(tuned[name])
    losses[name, column] = end(same[name])
    losses[name, 'less OrMo'] = end(same[name]) - end(same['OrMo'])
    for label, mine in (('own rate', tuned[name]), (column, same[name])):
      reached = until(mine, goal)
      if reached is not None:
        clock[name, label] = reached
    clock[name, 'to the end'] = np.array(same[name][-1]['time'])
  print(f'\n{title}: test loss')
  print(report.pivot(losses, digits=4))
  print(f'own rates: {rates}')
  by_rate = {
    (name, f'rate {rate}'): end(report.select(of[name], rate=float(rate)))
    for name in of
    for rate in FLAGS.rates
  }
  print(f'\n{title}: test loss by rate')
  print(report.pivot(by_rate, digits=3))
  print(f'\n{title}: seconds until {NEAR:g} above the loss of {BARRIER}')
  print(report.pivot(clock, digits=0))
  return {
    'same': {name: end(mine).mean() for name, mine in same.items()},
    'own': {name: end(mine).mean() for name, mine in tuned.items()},
    'clock': {k[0]: v.mean() for k, v in clock.items() if k[1] == column},
    'rate': rate,
  }


def compare_robust(rows) -> dict[tuple[str, str], np.ndarray]:
  table, rates = {}, {}
  for method in [BARRIER, 'OrMo', *names()[1]]:
    for attack in ('none', 'sign flip'):
      mine = best(report.select(rows, method=method, attack=attack))
      table[method, attack] = end(mine)
      rates[method, attack] = mine[0]['rate']
  print(f'\n{ATTACKED}, {FLAGS.num_byzantine} attackers: test loss, own rates')
  print(report.pivot(table, digits=3))
  print('rates, none and sign flip:')
  for method in dict.fromkeys(m for m, _ in rates):
    print(f'  {method}: {rates[method, "none"]}, {rates[method, "sign flip"]}')
  return table


def picture(rows, results, path) -> None:
  figure, panels = plt.subplots(
    2, len(results), figsize=(4.3 * len(results), 7), layout='constrained'
  )
  for (schedule, of), column in zip(results.items(), panels.T):
    rate = of['rate']
    shown = np.inf
    for i, method in enumerate(names()[0]):
      mine = report.select(
        rows, schedule=schedule, method=method, attack='none', rate=rate
      )
      loss = np.array([r['loss'] for r in mine]).reshape(-1, FLAGS.num_evals)
      for axes, name in zip(column, ('messages', 'time')):
        x = np.array([r[name] for r in mine[: FLAGS.num_evals]])
        style = '--' if i == 0 else '-' if 'OrMo' in method else ':'
        axes.plot(x, loss.mean(axis=0), style, color=f'C{i}', label=method)
      shown = min(shown, loss.mean(axis=0).min())
    column[0].set(title=f'K = {schedule}, rate {rate:g}', xlabel='messages')
    column[1].set(xlabel='simulated seconds', xscale='log')
    column[1].tick_params(axis='x', which='minor', labelbottom=False)
    for axes in column:
      axes.set(ylabel='test loss', ylim=(shown - 0.01, shown + 0.3))
      axes.grid(alpha=0.3)
  panels[0, 0].legend(fontsize='small')
  report.save(figure, path, dpi=62)
  plt.close(figure)


def claims_of(schedule, result) -> list[tuple[str, float, float]]:
  """What is claimed of a schedule; losses in thousandths."""
  same, own, clock = result['same'], result['own'], result['clock']

  def ahead(losses, *others):
    return 1000 * (min(losses[x] for x in others) - losses['OrMo'])

  at = f'rate of {BARRIER}'
  values = {
    f'baselines less OrMo, {at}': ahead(same, *BASELINES),
    'baselines less OrMo, own rates': ahead(own, *BASELINES),
    f'{BARRIER} less OrMo, {at}': ahead(same, BARRIER),
    f'plain step less OrMo, {at}': ahead(same, 'OrMo, plain step'),
    f'seconds of {BARRIER} over those of OrMo': (
      clock[BARRIER] / clock.get('OrMo', math.inf)
    ),
  }
  return [
    (f'{schedule}: {text}', value, needed)
    for (text, value), needed in zip(values.items(), NEEDED[schedule])
  ]


def main(argv):
  del argv
  folder, rows = study.run('ordered_momentum', cells, run_cell)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  print_schedules()
  print(f'\ntest loss of the Bayes rule: {mixture.bayes_loss():.4f}')
  results = {
    schedule: compare(
      report.select(rows, schedule=schedule, attack='none'), schedule
    )
    for schedule in SCHEDULES
  }
  table = compare_robust(report.select(rows, schedule=ATTACKED))
  picture(rows, results, folder / 'ordered_momentum.png')
  claims = [
    claim for name, of in results.items() for claim in claims_of(name, of)
  ]
  last = results['64, 4 slow']['same']
  attacked = {k[0]: v.mean() for k, v in table.items() if k[1] != 'none'}
  median = attacked['OrMo, places, median']
  claims += [
    (
      f'64, 4 slow: naive less OrMo, rate of {BARRIER}',
      1000 * (last['naive'] - last['OrMo']),
      50,
    ),
    (
      'sign flip: OrMo less OrMo with places and median',
      1000 * (attacked['OrMo'] - median),
      100,
    ),
  ]
  print('\nClaims; differences of losses in thousandths')
  study.finish([study.claim(*claim) for claim in claims])


if __name__ == '__main__':
  app.run(main)
