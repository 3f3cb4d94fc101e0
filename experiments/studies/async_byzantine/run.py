r"""Attackers in asynchronous training, some of them faster than the others.

  python -m experiments.async_byzantine.run --check               # digits
  python -m experiments.async_byzantine.run --dataset=mnist --data_dir=FOLDER

Ten workers send gradients without waiting for each other, two of them lie. The
server makes a step for every message, or collects messages first and takes a
robust mean of them, or lets only some messages pass. All runs last as long in
simulated time, in which an honest worker sends about as many messages; an
attacker may send several times as many.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax
from absl import app, flags
from matplotlib import pyplot as plt

import byzjax
from byzjax import asynchrony, data
from experiments import report, study

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_workers', 10, 'K.', 5)
flags.DEFINE_integer('num_byzantine', 2, 'f.', 1)
flags.DEFINE_float('seconds', 200.0, 'Of a run; a job takes one on average.')
flags.DEFINE_float('speedup', 6.0, 'By which fast attackers are faster.', 1.0)
flags.DEFINE_integer('batch_size', 8, 'Examples of a gradient.', 1)
flags.DEFINE_list('learning_rates', '0.03,0.1,0.3,1', 'Of the server.')
flags.DEFINE_float('momentum', 0.9, 'Of workers, where the server is robust.')
flags.DEFINE_float('max_norm', 1.0, 'Of messages, in front of a filter.')
flags.DEFINE_float('radius', 0.3, 'Of centered clipping.')

ATTACKS: dict[str, Callable[[], byzjax.Attack | None]] = {
  'none': lambda: None,
  'sign flip': lambda: byzjax.sign_flip(scale=5.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 10.
}


class Server(NamedTuple):
  """What is done with messages."""

  name: str
  buffer: Callable | None = None
  rule: Callable[[], byzjax.Aggregator] | None = None
  wrap: Callable = lambda optimizer: optimizer
  incoming: optax.GradientTransformation | None = None
  has_momentum: bool = True


def servers() -> list[Server]:
  n, f = FLAGS.num_workers, FLAGS.num_byzantine

  def arrivals(events):
    return asynchrony.by_arrival(events, num_rows=n)

  def places(events):
    return asynchrony.by_worker(events, num_rows=n)

  def first(events):
    return asynchrony.by_distinct_workers(events, num_rows=n - f)

  short = optax.clip_by_global_norm(FLAGS.max_norm)

  def clipping():
    return byzjax.centered_clipping(radius=FLAGS.radius)

  def filtered(optimizer):
    return byzjax.lipschitz_filter(optimizer, num_workers=n, num_byzantine=f)

  return [
    Server('each', has_momentum=False),
    Server('Lipschitz filter', wrap=filtered, has_momentum=False),
    Server('short', incoming=short, has_momentum=False),
    Server(
      'short, Lipschitz', wrap=filtered, incoming=short, has_momentum=False
    ),
    Server('clipped', rule=clipping),
    Server('arrivals, mean', arrivals, byzjax.mean),
    Server('arrivals, median', arrivals, byzjax.coordinate_median),
    Server('places, mean', places, byzjax.mean),
    Server('places, median', places, byzjax.coordinate_median),
    Server('places, clipping', places, clipping),
    Server('first, median', first, byzjax.coordinate_median),
  ]


def schedule(speeds: str) -> asynchrony.Events:
  """Everybody's messages; attackers are the first workers."""
  seconds = np.ones(FLAGS.num_workers)
  if speeds == 'fast attackers':
    seconds[: FLAGS.num_byzantine] /= FLAGS.speedup
  return asynchrony.simulate(
    seconds, max_time=FLAGS.seconds, variation=0.2, seed=0
  )


def cell(speeds: str, attack: str, server: Server) -> study.Cell:
  events = schedule(speeds)

  def make_round(loss_fn, key, setting, learning_rate):
    del key
    return byzjax.asynchronous_round(
      loss_fn,
      events=events,
      optimizer=server.wrap(optax.sgd(learning_rate)),
      incoming=server.incoming,
      worker=(
        byzjax.worker_momentum(FLAGS.momentum) if server.has_momentum else None
      ),
      buffer=server.buffer(events) if server.buffer else None,
      aggregator=server.rule() if server.rule else None,
      attack=ATTACKS[attack](),
      byzantine=FLAGS.num_byzantine,
      sampler=data.local_sampler(
        setting.images,
        setting.labels,
        batch_size=FLAGS.batch_size,
        scale=setting.scale,
      ),
    )

  return study.Cell(
    make_round,
    {'speeds': speeds, 'attack': attack, 'server': server.name},
    {'learning_rate': study.floats('learning_rates')},
    FLAGS.num_workers,
    len(events.worker),
    FLAGS.batch_size,
    is_local=True,
  )


def cells() -> list[study.Cell]:
  return [
    cell(speeds, attack, server)
    for speeds, attacks in (
      ('equal', ('sign flip',)),
      ('fast attackers', tuple(ATTACKS)),
    )
    for attack in attacks
    for server in servers()
  ]


def shares() -> dict[tuple[str, str], np.ndarray]:
  """What part of the buffer's places attackers have when it is full."""
  shares_of = {}
  for speeds in ('equal', 'fast attackers'):
    events = schedule(speeds)
    is_byzantine = events.worker < FLAGS.num_byzantine
    shares_of[speeds, 'messages'] = 100 * is_byzantine.mean()
    for server in servers():
      if server.buffer is None or server.rule is not byzjax.coordinate_median:
        continue
      buffer = server.buffer(events)
      starts = np.concatenate([[0], np.nonzero(buffer.is_full)[0] + 1])
      ends = [
        len(set(buffer.row[a:b][is_byzantine[a:b]])) / buffer.num_rows
        for a, b in zip(starts, starts[1:])
      ]
      shares_of[speeds, server.name.split(',')[0]] = 100 * np.array(ends)
  return {key: np.asarray(value) for key, value in shares_of.items()}


def picture(rows, path) -> None:
  figure, panels = plt.subplots(1, 2, figsize=(12, 4), layout='constrained')
  for axes, speeds in zip(panels, ('equal', 'fast attackers')):
    for server in servers():
      mine = report.tuned(
        report.select(
          rows, speeds=speeds, attack='sign flip', server=server.name
        ),
        'learning_rate',
      )
      curve = 100 * report.column(mine, 'accuracy').reshape(-1, FLAGS.num_seeds)
      steps = [row['round'] for row in report.select(mine, seed=0)]
      time = schedule(speeds).time[np.array(steps) - 1]
      axes.plot(
        time,
        curve.mean(axis=1),
        label=server.name,
        linestyle='-' if server.buffer else '--',
      )
    axes.set(xlabel='simulated seconds', ylabel='test accuracy (%)')
    axes.set_title(f'sign flip, {speeds}')
    axes.grid(alpha=0.3)
  panels[1].legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
  report.save(figure, path, dpi=90)
  plt.close(figure)


def main(argv):
  del argv
  folder, rows = study.run('async_byzantine', cells)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  print("Attackers' share, %: of all messages, and of the places of a buffer")
  print(report.pivot(shares()))
  table, rates = {}, {}
  for one in cells():
    speeds, attack, server = one.labels.values()
    best = report.tuned(
      report.select(rows, speeds=speeds, attack=attack, server=server),
      'learning_rate',
    )
    column = attack if speeds == 'equal' else f'{attack}, fast'
    table[server, column] = 100 * report.final(best)
    rates[server, column] = np.array(best[0]['learning_rate'])
  print('\nTest accuracy (%) at the end, learning rate chosen on validation')
  print(report.pivot(table))
  print('\nLearning rates')
  print(report.pivot(rates, digits=2).replace(' ± 0.00', ' ' * 7))
  picture(rows, folder / 'async_byzantine.png')

  def gap(a, b, column):
    return (table[a, column] - table[b, column]).mean()

  study.finish(
    [
      study.claim(
        'fast sign flip: places over arrivals, median',
        gap('places, median', 'arrivals, median', 'sign flip, fast'),
        30,
      ),
      study.claim(
        'fast sign flip: places, median over a step for each message',
        gap('places, median', 'each', 'sign flip, fast'),
        30,
      ),
      study.claim(
        'fast sign flip: Lipschitz filter behind clipping over clipping alone',
        gap('short, Lipschitz', 'short', 'sign flip, fast'),
        20,
      ),
      study.claim(
        'equal speeds, sign flip: arrivals, median over mean',
        gap('arrivals, median', 'arrivals, mean', 'sign flip'),
        20,
      ),
      study.claim(
        'fast attackers, worst attack: places, median',
        min(
          table['places, median', f'{attack}, fast'].mean()
          for attack in ATTACKS
        ),
        80,
      ),
      study.claim(
        'no attackers: places, median less a step for each message',
        gap('places, median', 'each', 'none, fast'),
        -5,
      ),
    ]
  )


if __name__ == '__main__':
  app.run(main)
