"""Entropy-SGD on a network of the paper, fully connected with dropout.

One worker, whose walk has the number of steps of the paper. The rate of its
steps and the weight of the newest one in their mean are chosen, as the rate of
SGD is. All outer rates go linearly to zero. How flat a solution is, is measured
without dropout, on training examples: by the largest eigenvalue of the Hessian
and by the loss at weights with relative noise.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import models

from ...harness.cells import Cell, Rows
from ...reporting import pictures, tables
from ...reporting.summary import Check, Claim, Summary, Table
from .. import pooling
from . import claims as said

STEPS = {'sgd': 1, 'entropy 20': 20}
WALKS = [*STEPS][1:]
GRID = ('learning_rate', 'inner_rate', 'averaging')
DROPOUT = {'input': 0.2, 'hidden': 0.5}
LOSS_EXAMPLES = 5000
FLAT_EXAMPLES, POWER_STEPS, NOISES = 200, 10, 4
RADII = (0.1, 0.3)  # Norm of the noise of a layer over that of its weights.
FLAT = ('sharpness', *(f'noise_{radius:g}' for radius in RADII))
METRICS = ('accuracy', 'loss', 'validation_accuracy', 'full_loss', *FLAT)


class DropoutMLP(nnx.Module):
  """Dense layers with ReLU, and dropout on the input and between them."""

  def __init__(self, sizes, *, rngs: nnx.Rngs):
    self.layers = nnx.List(
      [nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:])]
    )
    self.drop_input = nnx.Dropout(DROPOUT['input'])
    self.drop = nnx.Dropout(DROPOUT['hidden'])

  def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
    off = rngs is None
    x = x.reshape(x.shape[0], -1)
    x = self.drop_input(x, deterministic=off, rngs=rngs)
    *hidden, last = self.layers
    for layer in hidden:
      x = self.drop(jax.nn.relu(layer(x)), deterministic=off, rngs=rngs)
    return last(x)


def network(settings: Any, shape, num_classes: int, seed: int) -> DropoutMLP:
  sizes = (math.prod(shape), *settings.hidden, num_classes)
  return DropoutMLP(sizes, rngs=nnx.Rngs(seed))


def flatness(task, params, key) -> dict[str, jax.Array]:
  """The loss of some training examples around these weights."""
  images = task.images[:FLAT_EXAMPLES].astype(jnp.float32) / task.scale
  batch = images, task.labels[:FLAT_EXAMPLES]
  plain = models.cross_entropy_loss(task.graphdef)

  def loss(params):
    return plain(params, batch)

  def rise(radius, key):
    keys = jax.random.split(key, NOISES)
    far = jax.vmap(lambda key: loss(noisy(params, radius, key)))(keys)
    return far.mean() - loss(params)

  return {
    'sharpness': largest_eigenvalue(loss, params, key),
    **{f'noise_{radius:g}': rise(radius, key) for radius in RADII},
  }


def noisy(params, radius: float, key):
  """Weights with normal noise, of a share of the norm of every leaf."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))

  def moved(leaf, key):
    noise = jax.random.normal(key, leaf.shape, leaf.dtype)
    size = jnp.linalg.norm(leaf) / jnp.linalg.norm(noise)
    return leaf + radius * size * noise

  return jax.tree.unflatten(treedef, map(moved, leaves, keys))


def largest_eigenvalue(loss, params, key) -> jax.Array:
  """Of the Hessian, by size, from power steps: of the last, v' H v."""
  gradient = jax.grad(loss)

  def times_hessian(v):
    return jax.jvp(gradient, (params,), (v,))[1]

  def unit(v):
    norm = optax.tree.norm(v)
    return jax.tree.map(lambda x: x / norm, v)

  def step(v, _):
    image = times_hessian(v)
    return unit(image), optax.tree.vdot(v, image)

  start = unit(optax.tree.random_like(key, params))
  return jax.lax.scan(step, start, length=POWER_STEPS)[1][-1]


def slices(num_steps: int):
  """Leaves `[n, L B, ...] -> [n, L, B, ...]`."""

  def make_batch(batch):
    return jax.tree.map(
      lambda x: x.reshape(x.shape[0], num_steps, -1, *x.shape[2:]), batch
    )

  return make_batch


def cell(settings: Any, method: str) -> Cell:
  num_steps = STEPS[method]
  rounds = settings.gradients // num_steps

  def make_round(task, key, learning_rate, inner_rate, averaging):
    del key
    walk = byzjax.entropy_gradient(
      task.loss_fn,
      num_steps=num_steps,
      gamma=optax.exponential_decay(settings.gamma, 1, 1 + settings.scoping),
      step_size=inner_rate,
      averaging=averaging,
      needs_key=True,
    )

    def rate(step):
      return learning_rate * (1 - step / rounds)

    if method in WALKS:
      return byzjax.robust_round(
        task.loss_fn,
        value_and_grad=walk,
        num_workers=1,
        aggregator=byzjax.mean(),
        optimizer=optax.sgd(rate),
      )
    return byzjax.robust_round(
      task.loss_fn,
      needs_key=True,
      num_workers=1,
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(rate, momentum=0.9, nesterov=True),
    )

  def probe(task, params, key):
    full = models.evaluate(
      task.graphdef,
      params,
      task.images[:LOSS_EXAMPLES],
      task.labels[:LOSS_EXAMPLES],
      num_classes=task.num_classes,
      scale=task.scale,
    )
    return {'full_loss': full.loss, **flatness(task, params, key)}

  return Cell(
    labels={'method': method},
    make_round=make_round,
    grid=grid(settings, method),
    num_workers=1,
    rounds=rounds,
    batch_size=settings.batch_size * num_steps,
    make_batch=slices(num_steps) if method in WALKS else lambda batch: batch,
    make_model=functools.partial(network, settings),
    make_images=lambda images, *_: pooling.pooled(images, settings.pooling),
    num_evals=settings.num_evals,
    probe=probe,
  )


def grid(settings: Any, method: str) -> dict[str, tuple[float, ...]]:
  if method == 'sgd':
    return {
      'learning_rate': settings.sgd_rates,
      'inner_rate': (0.0,),
      'averaging': (0.0,),
    }
  return {
    'learning_rate': settings.entropy_rates,
    'inner_rate': settings.inner_rates,
    'averaging': settings.averagings,
  }


def define(settings: Any) -> list[Cell]:
  return [cell(settings, method) for method in STEPS]


def keep(rows: Rows, settings: Any) -> Rows:
  """The last row of every run, and the curves of the best rates."""
  del settings
  chosen = {
    tables.identity(row)
    for part in tables.split(rows, 'method').values()
    for row in tables.tuned(tables.keep(part, tail=1), *GRID)
  }
  return tables.keep(
    rows,
    tail=1,
    metrics=METRICS,
    curves=lambda row: tables.identity(row) in chosen,
  )


def best_of(rows: Rows) -> dict[str, Rows]:
  """The rows of the best rates of every method."""
  found = {}
  for method, part in tables.split(rows, 'method').items():
    finals = tables.keep(part, tail=1)
    best = tables.tuned(finals, *GRID)[0]
    chosen = {key: best[key] for key in GRID}
    found[method] = tables.select(part, **chosen)
  return found


def summarise(rows: Rows, settings: Any) -> Summary:
  best = best_of(rows)
  chosen, every = {}, tables.Cells()
  for method in best:
    for key in GRID:
      chosen[method, key] = said.of(best, method, key)[:1]
    accuracy = said.of(best, method, 'accuracy')
    chosen[method, 'error (%)'] = 100 - 100 * accuracy
    chosen[method, 'points over sgd'] = said.less_sgd(best, method)
    for name, column in (('train', 'full_loss'), ('test', 'loss')):
      loss = said.of(best, method, column)
      chosen[method, f'-lg {name} loss'] = -np.log10(loss)
    for column in FLAT:
      chosen[method, column] = said.of(best, method, column)
  for (method, *numbers), part in tables.split_by(rows, 'method', *GRID):
    rate, inner, averaging = numbers
    line = f'{method}, {rate:g}'
    column = f'{inner:g}, {averaging:g}' if inner else 'sgd'
    every[line, column] = 100 - tables.percent(part)
  return Summary(
    claims=claims(best, settings.dataset),
    tables=[
      Table(
        f'{settings.gradients} gradients, at the best rates',
        tables.pivot(chosen, 3),
      ),
      Table(
        'Test error (%), by outer rate and by inner rate and averaging',
        tables.pivot(every, 2),
      ),
    ],
    figures={f'{settings.dataset}.png': lambda: picture(best)},
  )


def claims(best: dict[str, Rows], data: str) -> list[Claim]:
  about = {'method': 'Entropy-SGD', 'paper': said.PAPER, 'data': data}

  def checks(prediction, low, column):
    """By how many decades a column is below that of SGD; medians."""
    of_sgd = said.of(best, 'sgd', column)
    return [
      Check(
        f'{m}: {prediction}',
        float(np.median(np.log10(of_sgd / said.of(best, m, column)))),
        at_least=low,
        why='one epoch, and one outer rate',
      )
      for m in WALKS
    ]

  return [
    Claim(
      says='at equal gradients as accurate as SGD',
      published='error 1.39 % after 22 epochs of rounds, version 1',
      evidence='P',
      checks=[
        Check(
          f'{m}: points over SGD',
          float(said.less_sgd(best, m).mean()),
          -0.3,
          why='one epoch, and one outer rate',
        )
        for m in WALKS
      ],
      **about,
    ),
    Claim(
      says='its training loss ends lower than that of SGD',
      checks=checks('decades below SGD', 0, 'full_loss'),
      **about,
    ),
    Claim(
      says='its solution is flatter than that of SGD',
      checks=[
        *checks('decades of the largest eigenvalue below SGD', 0, FLAT[0]),
        *checks('decades of the rise by noise below SGD', 0, FLAT[-1]),
      ],
      **about,
    ),
  ]


def picture(
  methods: dict[str, Rows],
  steps: dict[str, int] = STEPS,
  x: str = 'gradients',
  loss: str = 'training loss, without dropout',
):
  """Training loss and test error over gradients, `steps` in a round."""
  figure, (panels,) = pictures.panels(1, 2, figsize=(11, 4), sharex=True)
  series = {
    name: [
      row
      | {'gradients': row['round'] * steps[name], 'error': 1 - row['accuracy']}
      for row in rows
    ]
    for name, rows in methods.items()
  }
  for axes, y, scale, label in (
    (panels[0], 'full_loss', 1, loss),
    (panels[1], 'error', 100, 'test error (%)'),
  ):
    pictures.curves(axes, series, 'gradients', y, scale=scale)
    axes.set(xlabel=x, ylabel=label, yscale='log')
    axes.legend(fontsize=8)
  return figure
