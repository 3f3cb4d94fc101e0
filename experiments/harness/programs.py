"""A cell of a study: all its seeds and all its numbers, one program."""

import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import byzjax
from byzjax import data, models
from experiments import output, queue, report, specs


class Setting(NamedTuple):
  """What a round with local steps is made of, beside a loss."""

  graphdef: nnx.GraphDef
  images: jax.Array  # [N, H, W, C], of the training examples
  labels: jax.Array  # int32[N]
  partition: data.Partition  # what the round is given
  scale: float
  num_classes: int


class Cell(NamedTuple):
  """One program of a study.

  Attributes:
    make_round: `(loss_fn, key, **values) -> Round`, where the values are one
      number of every entry of `grid`; with `is_local` it is given `setting`,
      too.
    labels: what the cell is, for the columns of the table.
    grid: the numbers to run for, all combinations in one program.
    num_workers: n, rows of a batch before `make_batch`.
    rounds: rounds of training.
    batch_size: examples per worker and round.
    partition: how examples are divided among workers, as for `train.py`; or
      several such, in one program, with which it was in the column `partition`.
    make_batch: what is done to a batch, such as repeating it within groups.
    num_evals: evaluations, evenly spaced.
    is_local: whether the round draws its own batches, by a sampler, and is
      given the partition.
    make_images: `(images, partition or None, seed) -> images`, made once on the
      host of the training images, and (without a partition) of the others.
    make_model: `(image_shape, num_classes, seed) -> module`, in place of the
      model of the flags.
    make_params: `(params, key) -> params`, what is trained beside the model.
    model_of: `params -> params`, the model in what is trained.
    make_metrics: `(setting, model's params, images, labels, key) -> {name:
      scalar}`, more columns, measured on the test examples.
    measure: `(setting, params, images, labels) -> {name: scalar}`, columns that
      are of all that is trained, and measured on every set of examples; they
      may replace those of the model.
    describe: `values -> columns`, what a row says about its numbers of the
      grid; it may replace labels.
  """

  make_round: Callable[..., byzjax.Round]
  labels: dict[str, Any]
  grid: Mapping[str, Sequence[float]]
  num_workers: int
  rounds: int
  batch_size: int
  partition: str | Sequence[str] = 'iid'
  make_batch: Callable = lambda batch: batch
  num_evals: int = 20
  is_local: bool = False
  make_images: Callable | None = None
  make_model: Callable | None = None
  make_params: Callable = lambda params, key: params
  model_of: Callable = lambda params: params
  make_metrics: Callable | None = None
  measure: Callable | None = None
  describe: Callable[[dict[str, float]], dict[str, Any]] = lambda values: values

  @property
  def name(self) -> str:
    return ', '.join(str(label) for label in self.labels.values())

  @property
  def partitions(self) -> tuple[str, ...]:
    if isinstance(self.partition, str):
      return (self.partition,)
    return tuple(self.partition)

  @property
  def values(self) -> list[dict[str, float]]:
    """All combinations of the numbers of the grid."""
    return [
      dict(zip(self.grid, combination))
      for combination in itertools.product(*self.grid.values())
    ]


class Options(NamedTuple):
  """The flags that all studies share, as far as a cell is concerned."""

  model: str
  seeds: Sequence[int]
  augment: bool
  checkpoint_seconds: float


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


def run_cell(
  cell: Cell,
  dataset: data.Dataset,
  folder: pathlib.Path,
  options: Options,
  advance: Callable[[int], Any] = lambda rounds: None,
) -> report.Rows:
  """A row for every evaluation of every partition, seed and value of the grid.

  A long run leaves checkpoints in the folder, and goes on from the newest.
  `advance` is told how many rounds are done, counted for every run.
  """
  rest, *validation = split_validation(dataset)
  # Each with its data, its initialisation and its draws.
  starts = [(p, seed) for p in cell.partitions for seed in options.seeds]
  seeds = [seed for _, seed in starts]
  parts = _parts(cell, rest, starts)
  partitions = specs.stack(parts)
  labels = jnp.asarray(rest.train_labels)
  tests = {
    '': (dataset.test_images, jnp.asarray(dataset.test_labels)),
    'validation_': (validation[0], jnp.asarray(validation[1])),
  }
  make = cell.make_images

  def of_seeds(images, parts):
    """Images, for all seeds or for each of them."""
    if make is None:
      return jnp.asarray(images)
    return jnp.stack([make(images, p, s) for p, s in zip(parts, seeds)])

  images = of_seeds(rest.train_images, parts)
  sets = {
    k: (of_seeds(x, [None] * len(seeds)), y) for k, (x, y) in tests.items()
  }
  shape = dataset.train_images.shape[1:]
  networks = {
    seed: models.split(_model(cell, options, shape, rest.num_classes, seed))
    for seed in options.seeds
  }
  graphdef = networks[seeds[0]][0]
  initial = [networks[seed][1] for seed in seeds]
  params = jax.tree.map(lambda *x: jnp.stack(x), *initial)
  values = cell.values
  grid = {k: jnp.array([v[k] for v in values], jnp.float32) for k in cell.grid}
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  by_seed = None if make is None else 0
  image_axes = (by_seed, {k: (by_seed, None) for k in sets})

  def setting_of(partition, images):
    return Setting(
      graphdef, images, labels, partition, rest.scale, rest.num_classes
    )

  def over_runs(one_run, *more):
    """Of all starts and all values: leaves [num_starts, num_values, ...]."""

    def of_seed(state, partition, key, *more):
      return jax.vmap(
        lambda state, value: one_run(state, partition, key, value, *more)
      )(state, grid)

    return jax.vmap(of_seed, (0, 0, 0, *more))

  # Images are arguments: as constants they would be compiled in.
  @jax.jit
  def start(params, partitions, images):
    def one_run(params, partition, key, value, images):
      params = cell.make_params(params, jax.random.fold_in(key, 0))
      training = _training(cell, setting_of(partition, images), key, value)
      return training.init(params)

    tiled = jax.tree.map(
      lambda p: jnp.repeat(p[:, None], len(values), axis=1), params
    )
    return over_runs(one_run, by_seed)(tiled, partitions, keys, images)

  @functools.partial(jax.jit, donate_argnums=0)
  def stretch(states, length, chosen, partitions, labels, images, sets):
    def one_run(state, partition, key, value, chosen, images, sets):
      _, crop_key, round_key, byzantine_key = jax.random.split(key, 4)
      setting = setting_of(partition, images)._replace(labels=labels)
      step = _training(cell, setting, byzantine_key, value).step

      def one_round(i, state):
        batch = partition
        if not cell.is_local:
          pixels = images[chosen[i]].astype(jnp.float32) / rest.scale
          targets = labels[chosen[i]]
          if options.augment:
            pixels = data.random_crop_and_flip(
              pixels, jax.random.fold_in(crop_key, state.step)
            )
          batch = cell.make_batch((pixels, targets))
        state, info = step(state, batch, round_key)
        numbers = (
          info.loss,
          info.aggregation_error,
          info.bits_up,
          info.bits_down,
        )
        return state, jnp.stack([jnp.asarray(x, jnp.float32) for x in numbers])

      def add(i, carry):
        state, total = carry
        state, numbers = one_round(i, state)
        return state, total + numbers

      # A traced length: stretches of all lengths are one executable.
      state, total = jax.lax.fori_loop(0, length, add, (state, jnp.zeros(4)))
      names = ('train_loss', 'aggregation_error', 'bits_up', 'bits_down')
      metrics = dict(zip(names, total / length))
      model = cell.model_of(state.params)
      for prefix, examples in sets.items():
        scores = models.evaluate(
          graphdef,
          model,
          *examples,
          num_classes=rest.num_classes,
          scale=rest.scale,
        )
        metrics |= {f'{prefix}{k}': v for k, v in scores._asdict().items()}
        if cell.measure is not None:
          more = cell.measure(setting, state.params, *examples)
          metrics |= {f'{prefix}{k}': v for k, v in more.items()}
      if cell.make_metrics is not None:
        metrics |= cell.make_metrics(setting, model, *sets[''], round_key)
      return state, metrics

    chosen_axis = None if cell.is_local else 0
    return over_runs(one_run, chosen_axis, *image_axes)(
      states, partitions, keys, chosen, images, sets
    )

  length = max(cell.rounds // cell.num_evals, 1)
  states, rows, done = start(params, partitions, images), [], 0
  kept = _kept_rows(folder)

  def has_rows(done):
    number = -(-done // length) * num_runs(cell, options)
    return sum(row['round'] <= done for row in kept) == number

  try:
    restored = output.restore_checkpoint(folder, states, has_rows)
  except ValueError as error:
    sys.exit(str(error))
  if restored:
    done, states = restored
    rows = [row for row in kept if row['round'] <= done]
    advance(done * num_runs(cell, options))
  several = not isinstance(cell.partition, str)
  saved = time.monotonic()
  while done < cell.rounds:
    now = min(length, cell.rounds - done)
    chosen = None
    if not cell.is_local:
      chosen = _choose(partitions, keys, labels, done, length, cell.batch_size)
    states, metrics = stretch(
      states, now, chosen, partitions, labels, images, sets
    )
    done += now
    metrics = {k: np.asarray(v) for k, v in metrics.items()}
    rows += [
      {
        **cell.labels,
        **({'partition': partition} if several else {}),
        **cell.describe(value),
        'seed': seed,
        'round': done,
        **{k: float(v[i, j]) for k, v in metrics.items()},
      }
      for i, (partition, seed) in enumerate(starts)
      for j, value in enumerate(values)
    ]
    advance(now * num_runs(cell, options))
    if time.monotonic() - saved > options.checkpoint_seconds:
      with output.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
      output.write_rows(folder / 'rows.csv', rows)
      output.save_checkpoint(folder, done, states)
      saved = time.monotonic()
  return rows


def _kept_rows(folder: pathlib.Path) -> report.Rows:
  path = folder / 'rows.csv'
  if not path.exists():
    return []
  try:
    return queue.numbers(output.read_whole_rows(path)[0])
  except ValueError:
    return []  # It is done again.


def check_cell(cell: Cell, dataset: data.Dataset, options: Options) -> None:
  """Traces one step, so that what refuses its arguments does so up front."""
  rest = split_validation(dataset)[0]
  shape = dataset.train_images.shape[1:]
  graphdef, params = models.split(
    _model(cell, options, shape, dataset.num_classes, 0)
  )
  value = {k: v[0] for k, v in cell.grid.items()}

  def step(params, partition, images, labels):
    key = jax.random.key(0)
    setting = Setting(
      graphdef, images, labels, partition, rest.scale, rest.num_classes
    )
    training = _training(cell, setting, key, value)
    size = (cell.num_workers, cell.batch_size)
    batch: Any = (jnp.zeros((*size, *shape)), jnp.zeros(size, jnp.int32))
    batch = partition if cell.is_local else cell.make_batch(batch)
    return training.step(
      training.init(cell.make_params(params, key)), batch, key
    )

  try:
    starts = [(p, seed) for p in cell.partitions for seed in options.seeds]
    partition = _parts(cell, rest, starts)[0]
    jax.eval_shape(
      step, params, partition, rest.train_images, rest.train_labels
    )
  except ValueError as error:
    raise ValueError(f'{cell.name}: {error}') from error


def _model(cell: Cell, options: Options, shape, num_classes, seed):
  if cell.make_model is not None:
    return cell.make_model(shape, num_classes, seed)
  return models.make(options.model, shape, num_classes, seed=seed)


def _training(cell: Cell, setting: Setting, key, value) -> byzjax.Round:
  loss_fn = models.cross_entropy_loss(setting.graphdef)
  if cell.is_local:
    return cell.make_round(loss_fn, key, setting, **value)
  return cell.make_round(loss_fn, key, **value)


def _parts(cell: Cell, rest: data.Dataset, starts) -> list[data.Partition]:
  return [
    specs.partition(partition, rest.train_labels, cell.num_workers, seed)
    for partition, seed in starts
  ]
