"""Seconds of aggregation and of gradients, with and without a vote.

Both calls of a pair run in turn, in one process; `faster` is the median of
their ratios. Seconds are those of the processor, all threads together, which
other programs on the machine hardly change: on one core they are the time that
a call takes. Nothing is sent, so communication is not counted.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import byzjax
from byzjax import data, models

from ...harness.cells import OwnCell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import Table

KEYS = ('attack', 'placement', 'rule', 'groups')
DRAWN = ('none', 'alie')
TARGET = 0.7
REPEATS = 5
# By rule and groups: seconds of the gradient of a worker, of aggregation.
Costs = Mapping[tuple[str, str], tuple[float, float]]


def in_turn(functions: Sequence[Callable[[], Any]]) -> list[list[float]]:
  """Seconds of every repeat of each function, after one that compiles."""
  for function in functions:
    jax.block_until_ready(function())
  seconds: list[list[float]] = [[] for _ in functions]
  for _ in range(REPEATS):
    for function, mine in zip(functions, seconds):
      start = time.process_time()
      jax.block_until_ready(function())
      mine.append(time.process_time() - start)
  return seconds


def cell_of(
  labels: Mapping[str, Any],
  make_pair: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]],
) -> OwnCell:
  """One row: median seconds without and with groups, and their ratio."""

  def make_rows(seeds) -> Rows:
    del seeds
    plain, grouped = in_turn(make_pair())
    return [
      {
        **labels,
        'learning_rate': 0.0,
        'seed': 0,
        'round': REPEATS,
        'seconds': statistics.median(plain),
        'seconds_groups': statistics.median(grouped),
        'faster': statistics.median(a / b for a, b in zip(plain, grouped)),
      }
    ]

  return OwnCell(labels=labels, make_rows=make_rows)


def aggregation(
  labels: Mapping[str, Any],
  rule: byzjax.Aggregator,
  redundant: byzjax.Aggregator,
  byzantine: jax.Array,
  group_size: int,
  size: int,
) -> OwnCell:
  """Both rules on the same n messages, of groups that send the same."""

  def make_pair():
    n = len(byzantine)
    key = jax.random.key(0)
    sent = jax.random.normal(key, (n // group_size, size))
    sent = jnp.repeat(sent, group_size, axis=0)
    sent = jnp.where(byzantine[:, None], -100.0, sent)
    return lambda: rule(sent, key=key), lambda: redundant(sent, key=key)

  return cell_of(labels, make_pair)


def gradient(
  labels: Mapping[str, Any],
  dataset: str,
  data_dir: str | None,
  make_model: Callable,
  batch_size: int,
  group_size: int,
) -> OwnCell:
  """The gradient of one worker: its examples, and r times as many."""

  def make_pair():
    images = data.load(dataset, data_dir)
    shape = images.train_images.shape[1:]
    graphdef, params = models.split(make_model(shape, images.num_classes, 0))
    compiled = jax.jit(jax.grad(models.cross_entropy_loss(graphdef)))

    def call(size):
      pixels = jnp.float32(images.train_images[:size]) / images.scale
      labels = jnp.asarray(images.train_labels[:size])
      return lambda: compiled(params, (pixels, labels))

    return call(batch_size), call(batch_size * group_size)

  return cell_of(labels, make_pair)


def tuned(rows: Rows) -> Rows:
  """The rows of the best rate of every cell that trains."""
  training = [row for row in rows if row['attack'] not in ('count', 'time')]
  return tables.tuned_each(training, KEYS, 'learning_rate')


def measured(rows: Rows, what: str, name: str, column: str) -> float:
  """A column of the row of one pair; not a number without it."""
  found = tables.select(rows, attack='time', placement=what, rule=name)
  return float(tables.final(found, column).mean())


def of_round(rows: Rows, size: int, batch_sizes: Mapping[str, int]) -> Costs:
  """What a round takes: all workers at the same time, and then the server."""
  return {
    (rule, groups): (
      measured(rows, 'gradient', f'{batch} examples', column),
      measured(rows, f'd = {size}', rule.partition(':')[0], column),
    )
    for rule, batch in batch_sizes.items()
    for groups, column in (('-', 'seconds'), ('D', 'seconds_groups'))
  }


def curves(rows: Rows, attack: str, costs: Costs) -> dict[str, Rows]:
  """The rows of every rule under an attack, with their `seconds`."""
  runs = tables.select(tuned(rows), attack=attack, placement='random')
  return {
    f'D-{rule}' if groups == 'D' else rule: [
      row | {'seconds': row['round'] * sum(cost)}
      for row in tables.select(runs, rule=rule, groups=groups)
    ]
    for (rule, groups), cost in costs.items()
  }


def reached(rows: Rows) -> float:
  """Seconds to the first evaluation at TARGET, the mean over seeds; or inf."""
  for at in tables.split(rows, 'round').values():
    if tables.column(at, 'accuracy').mean() >= TARGET:
      return float(at[0]['seconds'])
  return float('inf')


def aggregation_table(rows: Rows, sizes: Sequence[int]) -> Table:
  cells = {
    (str(name), f'{title}, d = {size}'): np.array(
      scale * measured(rows, what, name, column)
    )
    for size in sizes
    for what in [f'd = {size}']
    for name in tables.values_of(
      tables.select(rows, attack='time', placement=what), 'rule'
    )
    for title, column, scale in (
      ('X', 'seconds', 1e3),
      ('D-X', 'seconds_groups', 1e3),
      ('X / D-X', 'faster', 1.0),
    )
  }
  text = tables.pivot(cells, digits=2)
  return Table('Aggregation of all messages, milliseconds', text)


def round_table(rows: Rows, costs: Costs) -> Table:
  cells: dict[tuple[str, str], np.ndarray] = {}
  for (rule, groups), (gradient_seconds, seconds) in costs.items():
    name = f'D-{rule}' if groups == 'D' else rule
    parts = gradient_seconds, seconds, gradient_seconds + seconds
    until = [reached(curves(rows, attack, costs)[name]) for attack in DRAWN]
    titles = 'a gradient', 'aggregation', 'both', *DRAWN
    for title, value in zip(titles, (*parts, *until)):
      cells[name, title] = np.array(1e3 * value)
  return Table(
    'A round, and all rounds to a test accuracy of'
    f' {TARGET:.0%} without attack and under ALIE, milliseconds',
    tables.pivot(cells, digits=2),
  )


def picture(rows: Rows, costs: Costs) -> plt.Figure:
  """Accuracy over seconds."""
  figure, axes = pictures.panels(1, len(DRAWN), sharey=True)
  for attack, each in zip(DRAWN, axes[0]):
    series = curves(rows, attack, costs)
    styles = {name: '-' if name[:2] == 'D-' else '--' for name in series}
    pictures.curves(each, series, x='seconds', scale=100, styles=styles)
    each.set(title=attack, xlabel='seconds', xscale='log')
  axes[0, 0].set(ylabel='test accuracy (%)')
  axes[0, -1].legend(fontsize='small')
  return figure
