"""The runs of the study: sharpness along a trajectory, and training."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util

import byzjax
from byzjax import analysis, data, models

from ...harness.cells import Program
from ...harness.settings import Settings as Base
from ...harness.settings import option
from .. import language, opponents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Base):
  parts: tuple[str, ...] = option(('characters',), 'characters, words')
  text: str = option('sonnets', 'sonnets, or a text of --data_dir.')
  data_dir: str | None = option(None, 'Folder with texts.')
  width: int = option(32, 'Of the transformer.', low=1)
  batch_size: int = option(16, 'Documents or images of a step.', low=1)
  steps: tuple[int, ...] = option((28, 70, 140), 'Where sharpness is measured.')
  fractions: tuple[float, ...] = option(
    (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5), 'p, clipped.'
  )
  num_steps: int = option(140, 'Of training.', low=1)
  attacked_steps: int = option(70, 'Of training under attack.', low=1)
  num_workers: int = option(10, 'n, under attack.', low=1)
  worker_batch_size: int = option(4, 'Documents of a worker.', low=1)
  num_byzantine: int = option(2, 'f, under attack.', low=1)


class Task(NamedTuple):
  """What is learned."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  examples: Any  # leaves [N, ...], to train on
  seen: Any  # some of them, where the training loss is measured
  held_out: Any  # where sharpness is measured
  validation: Any = None  # where rates are chosen, if they are

  def batch(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Random examples, leaves `[*shape, ...]`."""
    count = len(jax.tree.leaves(self.examples)[0])
    chosen = jax.random.randint(key, shape, 0, count)
    return jax.tree.map(lambda x: x[chosen], self.examples)


@functools.cache
def text(name: str, data_dir: str | None, width: int) -> Task:
  """The next character, in contexts of 32."""
  task = language.language(name, data_dir, length=32, width=width)
  documents = jnp.asarray(task.documents)
  params = functools.cache(task.params)
  held_out = task.held_out[:64]
  return Task(params, task.loss_fn, documents, documents[::2], held_out)


@functools.cache
def digits() -> Task:
  dataset = data.load('digits')
  shape = dataset.train_images.shape[1:]

  @functools.cache
  def model(seed):
    return models.split(
      models.make('cnn', shape, dataset.num_classes, seed=seed)
    )

  def of(images, labels):
    return jnp.asarray(images / dataset.scale, jnp.float32), jnp.asarray(labels)

  examples = of(dataset.train_images, dataset.train_labels)
  return Task(
    lambda seed: model(seed)[1],
    models.cross_entropy_loss(model(0)[0]),
    examples,
    jax.tree.map(lambda x: x[:256], examples),
    of(dataset.test_images[:64], dataset.test_labels[:64]),
  )


@functools.cache
def words(name: str, data_dir: str | None, width: int, num_words: int) -> Task:
  """The next word, in contexts of 16; 256 of them are for validation."""
  task = language.language(
    name, data_dir, length=16, width=width, num_words=num_words
  )
  order = np.random.default_rng(0).permutation(len(task.documents))
  documents = jnp.asarray(task.documents[order])
  validation, documents = documents[:256], documents[256:]
  params = functools.cache(task.params)
  held_out = task.held_out[:64]
  return Task(
    params, task.loss_fn, documents, documents[:256], held_out, validation
  )


def task_of(settings: Settings, name: str) -> Task:
  kind, _, num_words = name.partition(' ')
  if kind == 'words':
    return words(
      settings.text, settings.data_dir, settings.width, int(num_words)
    )
  if name == 'cnn':
    return digits()
  return text(settings.text, settings.data_dir, settings.width)


@optax.stateless
def normalize_leaves(updates, params):
  """Every tensor to a root mean square of one."""
  del params
  return jax.tree.map(
    lambda u: u * jnp.sqrt(u.size) / jnp.maximum(optax.tree.norm(u), 1e-30),
    updates,
  )


MOMENTUM = byzjax.worker_momentum(0.9)
SIGN = optax.stateless(lambda u, _: jax.tree.map(jnp.sign, u))
METHODS = {
  'sgd': MOMENTUM,
  'sgd, clip 10%': optax.chain(byzjax.clip_coordinates(fraction=0.1), MOMENTUM),
  'adam': optax.scale_by_adam(),
  'adam, clip 50%': byzjax.scale_by_clipped_adam(fraction=0.5),
  'sign': optax.chain(MOMENTUM, SIGN),
  'normalised': optax.chain(normalize_leaves, MOMENTUM),
}
# What trains by itself, too; along a trajectory p = 0 is the plain step.
TRAINED = METHODS | {'sgd, no momentum': optax.identity()}
DISTANCES = np.geomspace(0.003, 10, 10)


def cuts(settings: Settings) -> list[str]:
  """The names of the clipped gradients."""
  return [f'p = {p:g}' for p in settings.fractions]


def measured(settings: Settings, task: Task, params, gradient, updates):
  """Columns of the next steps, on examples that nothing is trained on."""

  def clipped(p):
    return byzjax.clip_coordinates(fraction=p).update(gradient, ())[0]

  vectors = jax.tree.map(
    lambda cut, *u: jnp.concatenate([jnp.stack(u), cut]),
    jax.vmap(clipped)(jnp.array(settings.fractions)),
    *updates.values(),
  )
  sharpness = jax.vmap(
    analysis.directional_sharpness(task.loss_fn), (None, None, 0)
  )(params, task.held_out, vectors)
  steps = jax.tree.map(lambda u: -u[: len(METHODS)], vectors)
  losses = jax.vmap(
    analysis.loss_along_direction(task.loss_fn), (None, None, 0, None)
  )(params, task.held_out, steps, jnp.asarray(DISTANCES))
  loss = task.loss_fn(params, task.held_out)
  # The share of |g|^2 that the `floor(p D)` largest coordinates hold.
  flat, _ = flatten_util.ravel_pytree(gradient)
  squares = jnp.sort(flat**2, descending=True)
  counts = [int(p * flat.size) for p in settings.fractions]
  held = jnp.stack([squares[:n].sum() for n in counts]) / squares.sum()
  columns = {
    'sharpness': ([*METHODS, *cuts(settings)], sharpness),
    'gain': (METHODS, loss - losses.min(axis=1)),
    'held': (cuts(settings), held),
  }
  if task.validation is not None:
    columns['carried'] = cuts(settings), carried(settings, task, params, flat)
  return {'loss': loss} | {
    f'{kind} {name}': value
    for kind, (names, values) in columns.items()
    for name, value in zip(names, values)
  }


def carried(settings: Settings, task: Task, params, flat) -> jax.Array:
  """`<g_S, H g_S> / <g, H g>`, S the `floor(p D)` largest coordinates of g."""
  _, unravel = flatten_util.ravel_pytree(params)
  sizes = jnp.sort(jnp.abs(flat), descending=True)
  counts = [int(p * flat.size) for p in settings.fractions]

  def curvature(vector):
    """Sharpness has the square of the length in its denominator."""
    sharpness = analysis.directional_sharpness(task.loss_fn)
    return sharpness(params, task.held_out, unravel(vector)) * (vector**2).sum()

  # No coordinates have no curvature; sharpness would divide zero by zero.
  parts = [
    curvature(jnp.where(jnp.abs(flat) >= sizes[n - 1], flat, 0)) if n else 0.0
    for n in counts
  ]
  return jnp.array(parts) / curvature(flat)


def program(runs, stops, task: Task, seeds, rates, begin, run) -> Program:
  """Of all seeds and rates: `begin(params)`, `run(state, key, rate, from, to)`.

  The latter returns the state and what is measured.
  """
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  over = jax.vmap(run, (0, None, 0, None, None))
  over = jax.jit(jax.vmap(over, (0, 0, None, None, None)))

  def start():
    params = byzjax.stack([task.params(seed) for seed in seeds])
    return jax.tree.map(
      lambda x: jnp.repeat(x[:, None], len(rates), axis=1),
      jax.vmap(begin)(params),
    )

  def trace():
    def one(params):
      return run(begin(params), keys[0], rates[0], 0, 1)[1]

    return jax.eval_shape(one, task.params(seeds[0]))

  return Program(
    runs,
    start,
    lambda states, done, length: over(
      states, keys, jnp.array(rates), done, done + length
    ),
    stops,
    trace,
  )


def runs_of(labels, seeds, rates) -> list[dict[str, Any]]:
  return [
    {**labels, 'rate': rate, 'seed': seed} for seed in seeds for rate in rates
  ]


def along(
  settings: Settings, labels, rates: Sequence[float], seeds: Sequence[int]
) -> Program:
  """All methods see the gradients of a trajectory, and keep their states."""
  task = task_of(settings, labels['task'])

  def run(carry, key, rate, begin, end):
    def next_of(i, params, states):
      batch = task.batch(jax.random.fold_in(key, i), (settings.batch_size,))
      gradient = jax.grad(task.loss_fn)(params, batch)
      pairs = {
        name: tx.update(gradient, states[name], params)
        for name, tx in METHODS.items()
      }
      updates = {name: pair[0] for name, pair in pairs.items()}
      return gradient, updates, {name: pair[1] for name, pair in pairs.items()}

    def step(i, carry):
      _, updates, states = next_of(i, *carry)
      return jax.tree.map(
        lambda p, u: p - rate * u, carry[0], updates[labels['method']]
      ), states

    params, states = jax.lax.fori_loop(begin, end, step, carry)
    # Of the step that comes next.
    gradient, updates, _ = next_of(end, params, states)
    metrics = measured(settings, task, params, gradient, updates)
    return (params, states), metrics

  def begin(params):
    return params, {name: tx.init(params) for name, tx in METHODS.items()}

  runs = runs_of(labels, seeds, rates)
  return program(runs, settings.steps, task, seeds, rates, begin, run)


def training(
  settings: Settings, labels, rates: Sequence[float], seeds: Sequence[int]
) -> Program:
  """A method by itself, at several rates."""
  task, attacked = task_of(settings, labels['task']), labels['part'] == 'attack'
  n = settings.num_workers if attacked else 1
  f = settings.num_byzantine if attacked else 0
  size = settings.worker_batch_size if attacked else settings.batch_size

  def of_rate(rate):
    return byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      worker=TRAINED[labels['method']],
      aggregator=opponents.RULES[labels['rule']](f),
      optimizer=optax.sgd(rate),
      attack=byzjax.sign_flip(scale=5.0) if attacked else None,
      byzantine=f,
    )

  def run(state, key, rate, begin, end):
    def step(_, state):
      batch = task.batch(jax.random.fold_in(key, state.step), (n, size))
      return of_rate(rate).step(state, batch, key)[0]

    state = jax.lax.fori_loop(begin, end, step, state)
    metrics = {'loss': task.loss_fn(state.params, task.seen)}
    if task.validation is not None:
      metrics['validation_loss'] = task.loss_fn(state.params, task.validation)
    return state, metrics

  stop = settings.attacked_steps if attacked else settings.num_steps
  runs = runs_of(labels, seeds, rates)
  return program(runs, [stop], task, seeds, rates, of_rate(1.0).init, run)
