"""Where the targets of a layer are: what mends convolutions and recurrence.

A convolution has targets of every pixel, of pooled pixels, or of a fixed random
product with them; a recurrent layer of every step, of the last one, or of the
last one with the gradient through its own steps. The rates of the last layer,
of hidden layers and of convolutions are chosen for each of them, and all go
linearly to zero, so that nothing is judged by the noise of its last steps.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from byzjax import data, models

from ...harness.cells import Cell, OwnCell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import (
  OURS,
  Check,
  Claim,
  Summary,
  claims_about,
  pivots,
)
from .. import pooling
from . import parts

KEYS = ('network', 'method', 'targets')
GRID = ('learning_rate', 'share', 'of_conv')
# By network, the best place of targets is last.
PLACES = {
  'mlp 2': ('',),
  'cnn': ('pixels', 'pools', 'readout'),
  'rnn': ('every step', 'last step', 'through time'),
}
# Of all parameters, or of the last layer on those that do not learn.
BP_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
FROZEN_RATES = (1.0, 3.0, 10.0, 30.0, 100.0)
# Where hidden layers have targets: of the last layer, shares of hidden layers
# with l2, and what convolutions have of them. With l1 shares are a third.
LOCAL_RATES = {
  'mlp 2': ((1.0, 3.0, 10.0), (0.03, 0.1, 0.3), (1.0,)),
  'cnn': ((10.0, 30.0, 100.0), (0.03,), (0.01, 0.03, 0.1)),
  'rnn': ((1.0, 3.0, 10.0), (0.01, 0.03, 0.1), (1.0,)),
}
BEST = {name: places[-1] for name, places in PLACES.items()}
# Network, place of its targets, another place, and points over that.
MENDED = (
  ('cnn', 'pools', 'pixels', 3),
  ('cnn', 'readout', 'pixels', 3),
  ('rnn', 'last step', 'every step', 3),
  ('rnn', 'through time', 'last step', 1),
)
REPEATS = 7
COST_BATCH = 512


def runs_of(name: str) -> list[tuple[str, str, str]]:
  """Network, method and place of the targets of every cell."""
  return [
    (name, 'bp', ''),
    *((name, 'l2', place) for place in PLACES[name]),
    (name, 'l1', BEST[name]),
    (name, 'frozen', ''),
  ]


def define(settings: Any) -> list[Cell | OwnCell]:
  runs = [run for name in PLACES for run in runs_of(name)]
  return [
    *(cell(settings, *run) for run in runs),
    *(cost(settings, *run) for run in runs if run[1] != 'frozen'),
  ]


def grid(name: str, method: str) -> dict[str, tuple[float, ...]]:
  """Rates of the last layer, shares of them, and what convolutions have."""
  if method == 'bp':
    return dict(zip(GRID, (BP_RATES, (1.0,), (1.0,))))
  if method == 'frozen':
    return dict(zip(GRID, (FROZEN_RATES, (0.0,), (1.0,))))
  rates, shares, of_conv = LOCAL_RATES[name]
  if method == 'l1':
    shares = tuple(share / 3 for share in shares)
  return dict(zip(GRID, (rates, shares, of_conv)))


def cell(settings: Any, name: str, method: str, place: str) -> Cell:
  def make_round(task, key, learning_rate, share, of_conv):
    del key
    return byzjax.robust_round(
      task.loss_fn,
      value_and_grad=parts.estimator(task, method, settings.scale, place),
      num_workers=1,
      worker=byzjax.worker_momentum(settings.momentum),
      aggregator=byzjax.mean(),
      optimizer=parts.optimizer(
        task,
        learning_rate,
        share,
        of_conv,
        lambda rate: lambda step: rate * (1 - step / settings.rounds),
      ),
    )

  return Cell(
    labels=dict(zip(KEYS, (name, method, place))),
    make_round=make_round,
    grid=grid(name, method),
    num_workers=1,
    rounds=settings.rounds,
    batch_size=settings.batch_size,
    make_model=functools.partial(parts.network, settings.width, name),
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    num_evals=1,
  )


def cost(settings: Any, name: str, method: str, place: str) -> OwnCell:
  """Temporary bytes of an estimate, and seconds of the processor."""
  labels = dict(zip(KEYS, (f'{name}, cost', method, place)))

  def make_rows(seeds) -> Rows:
    del seeds
    task, params, batch = example(settings, name)
    estimate = parts.estimator(task, method, settings.scale, place)
    plain = jax.value_and_grad(task.loss_fn)

    def of_batch(params, batch):
      if estimate is None:
        return plain(params, batch)
      return estimate(params, batch, jax.random.key(0))

    compiled = jax.jit(of_batch).lower(params, batch).compile()
    seconds = []
    for _ in range(REPEATS + 1):
      start = time.process_time()
      jax.block_until_ready(compiled(params, batch))
      seconds.append(time.process_time() - start)
    memory = compiled.memory_analysis()
    assert memory is not None  # Every backend here plans its memory.
    run = dict.fromkeys(GRID, 0.0) | {'seed': 0, 'round': REPEATS}
    best = min(seconds[1:])
    return [
      labels
      | run
      | {'megabytes': memory.temp_size_in_bytes / 1e6, 'seconds': best}
    ]

  return OwnCell(labels=labels, make_rows=make_rows)


def example(settings: Any, name: str):
  """A task and its parameters, and a batch."""
  images = data.load(settings.dataset, settings.data_dir)
  few = pooling.pooled(images.train_images[:COST_BATCH], settings.pooling)
  model = parts.network(
    settings.width, name, few.shape[1:], images.num_classes, 0
  )
  graphdef, params = models.split(model)
  labels = images.train_labels[:COST_BATCH]
  task = parts.Task(
    graphdef,
    models.cross_entropy_loss(graphdef),
    False,
    jnp.asarray(few),
    jnp.asarray(labels),
    data.iid(labels, 1),
    images.scale,
    images.num_classes,
  )
  return task, params, (jnp.float32(few) / images.scale, jnp.asarray(labels))


def keep(rows: Rows, settings: Any) -> Rows:
  """Of every cell its best rates, and what its estimates cost."""
  del settings
  costs = [row for row in rows if row['network'].endswith('cost')]
  finals = tables.keep(
    [row for row in rows if not row['network'].endswith('cost')],
    tail=1,
    metrics=('accuracy', 'validation_accuracy'),
  )
  return tables.tuned_each(finals, KEYS, *GRID) + costs


def column_of(method: str, place: str) -> str:
  return f'{method}, {place}' if place else method


def summarise(rows: Rows, settings: Any, about: dict[str, str]) -> Summary:
  """Claims and tables; `about` has the method and the paper of the claims."""
  accuracy, rates, costs = tables_of(rows)
  over_bp = {
    (f'{name}: {column_of(method, place)}', title): value
    for (name, method, place), found in accuracy.items()
    for title, value in [
      ('test accuracy (%)', found),
      ('over bp', found - accuracy[name, 'bp', '']),
    ]
  }
  return Summary(
    claims=claims_of(accuracy, claims_about(**about, data=settings.dataset)),
    tables=pivots(
      [
        (
          'Test accuracy (%), and points over backpropagation, paired by seed',
          over_bp,
          2,
        ),
        ('Chosen rates', rates, 3),
        (
          f'Cost of an estimate from {COST_BATCH} images: temporary memory, and'
          ' time of the processor',
          costs,
          2,
        ),
      ]
    ),
    figures={f'{settings.dataset}.png': lambda: picture(accuracy)},
  )


def tables_of(rows: Rows) -> tuple[tables.Cells, tables.Cells, tables.Cells]:
  """Accuracy by network, method and place of targets; rates, and costs."""
  accuracy, rates, costs = tables.Cells(), tables.Cells(), tables.Cells()
  for (name, method, place), part in tables.split_by(rows, *KEYS):
    line = f'{name.partition(",")[0]}: {column_of(method, place)}'
    if name.endswith('cost'):
      costs[line, 'megabytes'] = tables.final(part, 'megabytes')
      costs[line, 'milliseconds'] = 1000 * tables.final(part, 'seconds')
      continue
    accuracy[name, method, place] = tables.percent(part)
    for key in GRID:
      rates[line, key] = tables.final(part, key)[:1]
  return accuracy, rates, costs


def claims_of(accuracy: tables.Cells, claim) -> list[Claim]:
  def over(name, method, place, other, other_place=''):
    """Points, paired by seed."""
    apart = accuracy[name, method, place] - accuracy[name, other, other_place]
    return float(apart.mean())

  return [
    claim(
      'within 5 points of backpropagation on dense, convolutional and'
      ' recurrent networks',
      *(
        Check(
          f'{name}: {column_of(method, place)} over bp',
          over(name, method, place, 'bp'),
          at_least=-5,
          why='its rates are inside the grid; more than 1200 steps were not'
          ' tried',
        )
        for name, place in BEST.items()
        for method in ('l2', 'l1')
      ),
      published='within 5 %',
      evidence='A',
    ),
    claim(
      'points better than hidden layers that do not learn',
      *(
        Check(
          f'{name}: {column_of("l2", place)} over frozen',
          over(name, 'l2', place, 'frozen'),
          at_least=0,
        )
        for name, place in BEST.items()
      ),
    ),
    claim(
      'convolutions want targets behind pooling, recurrent layers at the last'
      ' step',
      *(
        Check(
          f'{name}: l2, {place} over {other}',
          over(name, 'l2', place, 'l2', other),
          at_least=low,
        )
        for name, place, other, low in MENDED
      ),
      **OURS,
    ),
  ]


def picture(accuracy):
  """Points behind backpropagation, by network and place of the targets."""
  figure, (axes,) = pictures.panels(1, len(PLACES), figsize=(13, 3.2))
  for panel, name in zip(axes, PLACES):
    behind = {
      column_of(method, place): accuracy[name, 'bp', '']
      - accuracy[name, method, place]
      for _, method, place in runs_of(name)[1:]
    }
    pictures.bars(panel, behind, 'points behind backpropagation')
    best = np.mean(accuracy[name, 'bp', ''])
    panel.set_title(f'{name} ({best:.1f} %)')
    panel.axvline(5, color='gray', linestyle=':')
  return figure
