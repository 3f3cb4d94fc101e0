"""From a cell on images to its program."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import byzjax
from byzjax import data, models
from experiments.harness import distributed, specs
from experiments.harness.cells import Cell, Program, Task, even_stops


class Options(NamedTuple):
  """What all cells of a study, a grid or a training run share."""

  model: str
  seeds: Sequence[int]
  augment: bool = False
  validation: bool = True  # a tenth of the training examples is kept apart
  mesh: jax.sharding.Mesh | None = None


def split_validation(dataset: data.Dataset) -> tuple[data.Dataset, Any, Any]:
  """A tenth of the training examples apart, to choose hyper-parameters by."""
  count = len(dataset.train_labels) // 10
  images, labels = dataset.train_images, dataset.train_labels
  rest = dataset._replace(
    train_images=images[count:], train_labels=labels[count:]
  )
  return rest, images[:count], labels[:count]


# Of its own, so that all cells of a study share what is slow to compile; less
# optimised it compiles in a fifth of the time. Integers stay exact.
@functools.partial(
  jax.jit,
  static_argnames=('length', 'batch_size'),
  compiler_options={'xla_backend_optimization_level': 1},
)
def _choose(partitions, keys, labels, done, length, batch_size):
  """The examples of the next rounds: int32 [num_starts, length, n, B]."""
  numbers = jnp.arange(len(labels))

  def of_round(partition, key, i):
    key = jax.random.fold_in(jax.random.split(key, 4)[0], done + i)
    # The labels of examples that are their own labels.
    return data.sample_batch(
      numbers[:, None], numbers, partition, key, batch_size
    )[1]

  of_start = jax.vmap(of_round, (None, None, 0))
  return jax.vmap(of_start, (0, 0, None))(partitions, keys, jnp.arange(length))


def num_runs(cell: Cell, options: Options) -> int:
  """Models that a cell trains."""
  return len(cell.partitions) * len(options.seeds) * len(cell.values)


class _Arrays(NamedTuple):
  """What the programs of a cell are given: as constants it would be compiled.

  All but the labels of examples have the starts in front, pairs of a
  partition and a seed; images only where every start has its own.
  """

  partitions: data.Partition
  images: jax.Array
  labels: jax.Array
  sets: dict[str, tuple[jax.Array, jax.Array]]  # prefix: images, labels


def of_images(
  cell: Cell,
  dataset: data.Dataset,
  options: Options,
  stops: Sequence[int] | None = None,
) -> Program:
  """The program of a cell, measured at evenly spaced rounds or at `stops`."""
  stops = list(stops or even_stops(cell.rounds, cell.num_evals))
  starts = [(p, seed) for p in cell.partitions for seed in options.seeds]
  arrays = _arrays(cell, dataset, options, starts)
  graphdef, params = _networks(cell, dataset, options, starts)
  values = cell.values
  grid = {k: jnp.array([v[k] for v in values], jnp.float32) for k in cell.grid}
  keys = jax.vmap(jax.random.key)(jnp.array([seed for _, seed in starts]))
  by_start = None if cell.make_images is None else 0
  image_axes = (by_start, {k: (by_start, None) for k in arrays.sets})
  # Stretches of all lengths are one executable.
  longest = max(b - a for a, b in zip([0, *stops], stops))

  def task_of(partition, images, labels):
    needs_key = models.has_dropout(graphdef)
    return Task(
      graphdef,
      models.cross_entropy_loss(graphdef, needs_key=needs_key),
      needs_key,
      images,
      labels,
      partition,
      dataset.scale,
      dataset.num_classes,
    )

  def over_runs(one_run, *more):
    """Of all starts and all values: leaves [num_starts, num_values, ...]."""

    def of_start(state, partition, key, *more):
      return jax.vmap(
        lambda state, value: one_run(state, partition, key, value, *more)
      )(state, grid)

    return jax.vmap(of_start, (0, 0, 0, *more))

  @jax.jit
  def start(params, partitions, images, labels):
    def one_run(params, partition, key, value, images):
      params = cell.make_params(params, jax.random.fold_in(key, 0))
      task = task_of(partition, images, labels)
      return cell.make_round(task, key, **value).init(params)

    tiled = jax.tree.map(
      lambda p: jnp.repeat(p[:, None], len(values), axis=1), params
    )
    return over_runs(one_run, by_start)(tiled, partitions, keys, images)

  def one_round(state, partition, key, value, chosen, images, labels):
    _, crop_key, round_key, byzantine_key = jax.random.split(key, 4)
    batch = partition
    if not cell.is_local:
      pixels = images[chosen].astype(jnp.float32) / dataset.scale
      if options.augment:
        crop = jax.random.fold_in(crop_key, state.step)
        pixels = data.random_crop_and_flip(pixels, crop)
      batch = cell.make_batch((pixels, labels[chosen]))
    task = task_of(partition, images, labels)
    step = cell.make_round(task, byzantine_key, **value).step
    state, info = step(state, batch, round_key)
    metrics = cell.metrics(state, info)
    return state, {k: jnp.float32(v) for k, v in metrics.items()}

  def evaluated(state, partition, key, value, images, sets, labels):
    del value
    round_key = jax.random.split(key, 4)[2]
    task = task_of(partition, images, labels)
    return _evaluated(cell, task, state.params, sets, round_key)

  chosen_axis = None if cell.is_local else 0

  @functools.partial(jax.jit, donate_argnums=0)
  def stretch(states, length, chosen, partitions, images, labels, sets):
    rounds = over_runs(one_round, chosen_axis, image_axes[0], None)

    def add(i, carry):
      states, total = carry
      now = None if chosen is None else chosen[:, i]
      states, metrics = rounds(states, partitions, keys, now, images, labels)
      return states, jax.tree.map(jnp.add, total, metrics)

    first = None if chosen is None else chosen[:, 0]
    _, shapes = jax.eval_shape(
      rounds, states, partitions, keys, first, images, labels
    )
    zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in shapes.items()}
    # A traced length: stretches of all lengths are one executable.
    states, total = jax.lax.fori_loop(0, length, add, (states, zeros))
    metrics = {k: v / length for k, v in total.items()}
    measured = over_runs(evaluated, *image_axes, None)(
      states, partitions, keys, images, sets, labels
    )
    return states, {**metrics, **measured}

  def next_stretch(states, done, length):
    partitions, images, labels, sets = arrays
    chosen = None
    if not cell.is_local:
      chosen = _choose(partitions, keys, labels, done, longest, cell.batch_size)
    return stretch(states, length, chosen, partitions, images, labels, sets)

  def trace():
    """One round and one evaluation of one run."""
    partitions, images, labels, sets = arrays
    at = jax.tree.map(lambda x: x[0], (params, partitions, keys, grid))
    if by_start is not None:
      images = images[0]
      sets = {k: (x[0], y) for k, (x, y) in sets.items()}
    chosen = jnp.zeros((cell.num_workers, cell.batch_size), jnp.int32)

    def run(params, partition, key, value, images, labels, sets):
      params = cell.make_params(params, key)
      task = task_of(partition, images, labels)
      state = cell.make_round(task, key, **value).init(params)
      state, metrics = one_round(
        state, partition, key, value, chosen, images, labels
      )
      measured = evaluated(state, partition, key, value, images, sets, labels)
      return {**metrics, **measured}

    return jax.eval_shape(run, *at, images, labels, sets)

  return Program(
    _runs(cell, starts),
    lambda: start(params, arrays.partitions, arrays.images, arrays.labels),
    next_stretch,
    stops,
    trace,
  )


def _evaluated(cell, task, params, sets, key) -> dict[str, jax.Array]:
  """What is measured of one run at the end of a stretch."""
  model = cell.model_of(params)
  metrics: dict[str, jax.Array] = {}
  for prefix, examples in sets.items():
    scores = models.evaluate(
      task.graphdef,
      model,
      *examples,
      num_classes=task.num_classes,
      scale=task.scale,
    )._asdict()
    if cell.measure is not None:
      scores |= cell.measure(task, params, *examples)
    metrics |= {f'{prefix}{name}': value for name, value in scores.items()}
  if cell.probe is not None:
    metrics |= cell.probe(task, model, key)
  return metrics


def _arrays(cell: Cell, dataset: data.Dataset, options: Options, starts):
  sets = {'': (dataset.test_images, dataset.test_labels)}
  if options.validation:
    dataset, *validation = split_validation(dataset)
    sets['validation_'] = tuple(validation)
  parts = [
    specs.partition(partition, dataset.train_labels, cell.num_workers, seed)
    for partition, seed in starts
  ]

  def of_starts(images, parts):
    if cell.make_images is None:
      return jnp.asarray(images)
    made = [cell.make_images(images, *x) for x in zip(parts, seeds)]
    return jnp.stack(made)

  seeds = [seed for _, seed in starts]
  arrays = _Arrays(
    specs.stack(parts),
    of_starts(dataset.train_images, parts),
    jnp.asarray(dataset.train_labels),
    {
      prefix: (of_starts(images, [None] * len(starts)), jnp.asarray(labels))
      for prefix, (images, labels) in sets.items()
    },
  )
  return distributed.replicate(arrays, options.mesh)


def _networks(cell: Cell, dataset: data.Dataset, options: Options, starts):
  """The graph of the network, and parameters of every start, stacked."""
  shape, count = dataset.train_images.shape[1:], dataset.num_classes

  def network(seed):
    if cell.make_model is not None:
      return models.split(cell.make_model(shape, count, seed))
    return models.split(models.make(options.model, shape, count, seed=seed))

  networks = {seed: network(seed) for seed in options.seeds}
  graphdef = networks[options.seeds[0]][0]
  return graphdef, byzjax.stack([networks[seed][1] for _, seed in starts])


def _runs(cell: Cell, starts) -> list[dict[str, Any]]:
  several = not isinstance(cell.partition, str)
  return [
    {
      **cell.labels,
      **({'partition': partition} if several else {}),
      **cell.describe(value),
      'seed': seed,
    }
    for partition, seed in starts
    for value in cell.values
  ]
