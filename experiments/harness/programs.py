"""From a cell on images to its program."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import byzjax
from byzjax import data, models

from . import distributed, specs
from .cells import Cell, Program, Task, even_stops


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
  static_argnames=('length', 'batch_size', 'batches_per_pass'),
  compiler_options={'xla_backend_optimization_level': 1},
)
def _choose(
  partitions, keys, labels, done, length, batch_size, batches_per_pass
):
  """The examples of the next rounds: int32 [num_starts, length, n, B]."""
  numbers = jnp.arange(len(labels))

  def of_round(partition, key, i):
    key = jax.random.split(key, 4)[0]
    # The labels of examples that are their own labels.
    examples = (numbers[:, None], numbers, partition)
    if batches_per_pass is None:
      key = jax.random.fold_in(key, done + i)
      return data.sample_batch(*examples, key, batch_size)[1]
    return data.shuffled_batch(
      *examples,
      key,
      batch_size,
      step=done + i,
      batches_per_pass=batches_per_pass,
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


class _Run(NamedTuple):
  """What is one run's own; or, with axes in front, that of all runs."""

  partition: data.Partition
  key: jax.Array
  value: dict[str, jax.Array]  # one number of every entry of the grid


class _Setup(NamedTuple):
  """What all runs of a cell share, and no program is given."""

  cell: Cell
  augment: bool
  graphdef: Any
  scale: float
  num_classes: int


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
  shape = arrays.images.shape[-3:]
  graphdef, params = _networks(
    cell, shape, dataset.num_classes, options, starts
  )
  setup = _Setup(
    cell, options.augment, graphdef, dataset.scale, dataset.num_classes
  )
  grid = {
    name: jnp.array([value[name] for value in cell.values], jnp.float32)
    for name in cell.grid
  }
  keys = jax.vmap(jax.random.key)(jnp.array([seed for _, seed in starts]))
  # Stretches of all lengths are one executable.
  longest = max(b - a for a, b in zip([0, *stops], stops))
  # Jitted by itself: checks, shapes of metrics and the loop share one trace.
  one_round = jax.jit(functools.partial(_one_round, setup))

  @jax.jit
  def start(params, arrays):
    tiled = jax.tree.map(
      lambda p: jnp.repeat(p[:, None], len(cell.values), axis=1), params
    )
    runs = _Run(arrays.partitions, keys, grid)
    one_run = functools.partial(_begun, setup)
    return _over_runs(setup, one_run, tiled, runs, arrays)

  @functools.partial(jax.jit, donate_argnums=0)
  def stretch(states, length, chosen, arrays):
    runs = _Run(arrays.partitions, keys, grid)
    one_run = functools.partial(_stretched, setup, one_round, length)
    return _over_runs(setup, one_run, states, runs, arrays, chosen)

  def next_stretch(states, done, length):
    chosen = None
    if not cell.is_local:
      chosen = _choose(
        arrays.partitions,
        keys,
        arrays.labels,
        done,
        longest,
        cell.batch_size,
        cell.batches_per_pass,
      )
    return stretch(states, length, chosen, arrays)

  def trace():
    first = _Run(*jax.tree.map(lambda x: x[0], (arrays.partitions, keys, grid)))
    alone = jax.tree.map(lambda x: x[0], params)
    own = jax.tree.map(lambda x: x[0], _own_images(setup, arrays))
    of_first = _with_images(arrays, own)
    one_run = functools.partial(_tried, setup, one_round)
    return jax.eval_shape(one_run, alone, first, of_first)

  return Program(
    _runs(cell, starts),
    lambda: start(params, arrays),
    next_stretch,
    stops,
    trace,
  )


def _own_images(setup: _Setup, arrays: _Arrays):
  """Images with the starts in front, of every set; None if all share them."""
  if setup.cell.make_images is None:
    return None
  return arrays.images, {name: x for name, (x, _) in arrays.sets.items()}


def _with_images(arrays: _Arrays, own) -> _Arrays:
  """The arrays of a start whose own images these are."""
  if own is None:
    return arrays
  images, made = own
  sets = {name: (made[name], y) for name, (_, y) in arrays.sets.items()}
  return arrays._replace(images=images, sets=sets)


def _over_runs(setup: _Setup, one_run, states, runs: _Run, arrays, *more):
  """`one_run` of all starts and all values: leaves [starts, values, ...].

  What is more has the starts in front, if it is there.
  """
  maps = {
    'vmap': lambda function, xs: jax.vmap(function)(xs),
    'map': jax.lax.map,
  }
  each = maps[setup.cell.run_map]

  def of_start(xs):
    state, partition, key, own, more = xs
    here = _with_images(arrays, own)
    return each(
      lambda x: one_run(x[0], _Run(partition, key, x[1]), here, *more),
      (state, runs.value),
    )

  own = _own_images(setup, arrays)
  return each(of_start, (states, runs.partition, runs.key, own, more))


def _task(setup: _Setup, run: _Run, arrays: _Arrays) -> Task:
  needs_key = models.has_dropout(setup.graphdef)
  return Task(
    setup.graphdef,
    models.cross_entropy_loss(setup.graphdef, needs_key=needs_key),
    needs_key,
    arrays.images,
    arrays.labels,
    run.partition,
    setup.scale,
    setup.num_classes,
  )


def _begun(setup: _Setup, params, run: _Run, arrays: _Arrays):
  """The state of one run at round 0."""
  params = setup.cell.make_params(params, jax.random.fold_in(run.key, 0))
  task = _task(setup, run, arrays)
  return setup.cell.make_round(task, run.key, **run.value).init(params)


def _one_round(setup: _Setup, state, run: _Run, arrays: _Arrays, chosen):
  """The next state of one run, and the metrics of the round."""
  cell = setup.cell
  _, crop_key, round_key, byzantine_key = jax.random.split(run.key, 4)
  batch = run.partition
  if not cell.is_local:
    pixels = arrays.images[chosen].astype(jnp.float32) / setup.scale
    if setup.augment:
      crop = jax.random.fold_in(crop_key, state.step)
      pixels = data.random_crop_and_flip(pixels, crop)
    batch = cell.make_batch((pixels, arrays.labels[chosen]))
  task = _task(setup, run, arrays)
  step = cell.make_round(task, byzantine_key, **run.value).step
  state, info = step(state, batch, round_key)
  metrics = cell.metrics(state, info)
  return state, {k: jnp.float32(v) for k, v in metrics.items()}


def _measured(setup: _Setup, state, run: _Run, arrays: _Arrays):
  """What is measured of one run at the end of a stretch."""
  key = jax.random.split(run.key, 4)[2]
  task = _task(setup, run, arrays)
  return _evaluated(setup.cell, task, state.params, arrays.sets, key)


def _stretched(
  setup: _Setup, one_round, length, state, run: _Run, arrays, chosen
):
  """One run after so many rounds more, and what is measured then."""

  def after(state, i):
    now = None if chosen is None else chosen[i]
    return one_round(state, run, arrays, now)

  def add(i, carry):
    state, total = carry
    state, metrics = after(state, i)
    return state, jax.tree.map(jnp.add, total, metrics)

  _, shapes = jax.eval_shape(after, state, 0)
  zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in shapes.items()}
  # A traced length: stretches of all lengths are one executable.
  state, total = jax.lax.fori_loop(0, length, add, (state, zeros))
  measured = _measured(setup, state, run, arrays)
  return state, {**{k: v / length for k, v in total.items()}, **measured}


def _tried(setup: _Setup, one_round, params, run: _Run, arrays: _Arrays):
  """One round and one evaluation of one run."""
  cell = setup.cell
  chosen = None
  if not cell.is_local:
    chosen = jnp.zeros((cell.num_workers, cell.batch_size), jnp.int32)
  state = _begun(setup, params, run, arrays)
  state, metrics = one_round(state, run, arrays, chosen)
  return {**metrics, **_measured(setup, state, run, arrays)}


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
    partition(dataset.train_labels, cell.num_workers, seed)
    if callable(partition)
    else specs.partition(
      partition, dataset.train_labels, cell.num_workers, seed
    )
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


def _networks(cell: Cell, shape, count: int, options: Options, starts):
  """The graph of the network, and parameters of every start, stacked."""

  def network(seed):
    if cell.make_model is not None:
      return models.split(cell.make_model(shape, count, seed))
    specs.check_name('model', options.model, specs.MODELS)
    return models.split(models.make(options.model, shape, count, seed=seed))

  networks = {seed: network(seed) for seed in options.seeds}
  graphdef = networks[options.seeds[0]][0]
  return graphdef, byzjax.stack([networks[seed][1] for _, seed in starts])


def _runs(cell: Cell, starts) -> list[dict[str, Any]]:
  several = cell.partitions != (cell.partition,)
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
