"""What the studies share: a cell as one program, results that resume, claims.

A *cell* is one row of a study's table: an attack, a rule, whatever changes the
program. Its runs, for all seeds and all values of what may be traced (learning
rates, momenta, radii), are one program and several rows of `results.csv`.
"""

import functools
import itertools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags, logging

import byzjax
from byzjax import data, models
from experiments import output, report, specs

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'dataset', 'digits', 'digits, or an image set of --data_dir such as mnist.'
)
flags.DEFINE_string('data_dir', None, 'Folder with data sets in TFDS format.')
flags.DEFINE_enum('model', 'mlp', ['cnn', 'mlp', 'resnet20'], 'The network.')
flags.DEFINE_bool('augment', False, 'Random crops and mirror images.')
flags.DEFINE_integer('num_seeds', 3, 'Seeds 0, 1, ... in one program.', 1)
flags.DEFINE_string('output_dir', None, 'Where results go; runs/STUDY if none.')
flags.DEFINE_string('only', '', 'Only the cells whose name contains this.')
flags.DEFINE_bool('resume', False, 'Continue the study in --output_dir.')
flags.DEFINE_float(
  'checkpoint_seconds', 60.0, 'Between checkpoints inside a cell.', 0.0
)
flags.DEFINE_bool('check', False, 'Fail unless the claims of the study hold.')

# What may differ between a study and its continuation.
_NOT_CONFIG = (
  'check',
  'checkpoint_seconds',
  'data_dir',
  'only',
  'output_dir',
  'resume',
)


class Cell(NamedTuple):
  """One program of a study.

  Attributes:
    make_round: `(loss_fn, key, **values) -> Round`, where the values are one
      number of every entry of `grid`.
    labels: what the cell is, for the columns of the table.
    grid: the numbers to run for, all combinations in one program.
    num_workers: n, rows of a batch before `make_batch`.
    rounds: rounds of training.
    batch_size: examples per worker and round.
    partition: how examples are divided among workers, as for `train.py`.
    make_batch: what is done to a batch, such as repeating it within groups.
    num_evals: evaluations, evenly spaced.
  """

  make_round: Callable[..., byzjax.Round]
  labels: dict[str, Any]
  grid: Mapping[str, Sequence[float]]
  num_workers: int
  rounds: int
  batch_size: int
  partition: str = 'iid'
  make_batch: Callable = lambda batch: batch
  num_evals: int = 20

  @property
  def name(self) -> str:
    return ', '.join(str(label) for label in self.labels.values())


def split_validation(dataset: data.Dataset) -> tuple[data.Dataset, Any, Any]:
  """A tenth of the training examples apart, to choose hyper-parameters by."""
  count = len(dataset.train_labels) // 10
  images, labels = dataset.train_images, dataset.train_labels
  rest = dataset._replace(
    train_images=images[count:], train_labels=labels[count:]
  )
  return rest, images[:count], labels[:count]


def run_cell(
  cell: Cell, dataset: data.Dataset, folder: pathlib.Path
) -> report.Rows:
  """A row for every evaluation of every seed and value of the grid.

  A long run leaves checkpoints in the folder, and goes on from the newest.
  """
  seeds = range(FLAGS.num_seeds)
  rest, *validation = split_validation(dataset)
  images, labels = (
    jnp.asarray(rest.train_images),
    jnp.asarray(rest.train_labels),
  )
  sets = {
    '': (jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)),
    'validation_': tuple(map(jnp.asarray, validation)),
  }
  parts = [
    specs.partition(cell.partition, rest.train_labels, cell.num_workers, seed)
    for seed in seeds
  ]
  width = max(part.indices.shape[1] for part in parts)
  partitions = data.Partition(
    jnp.stack([_padded(part.indices, width) for part in parts]),
    jnp.stack([part.sizes for part in parts]),
  )
  shape = (images.shape[1], images.shape[2], images.shape[3])
  networks = [
    models.split(models.make(FLAGS.model, shape, rest.num_classes, seed=seed))
    for seed in seeds
  ]
  graphdef = networks[0][0]
  params = jax.tree.map(lambda *x: jnp.stack(x), *(p for _, p in networks))
  values = [
    dict(zip(cell.grid, combination))
    for combination in itertools.product(*cell.grid.values())
  ]
  grid = {k: jnp.array([v[k] for v in values], jnp.float32) for k in cell.grid}
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  loss_fn = models.cross_entropy_loss(graphdef)

  def training(key, value):
    return cell.make_round(loss_fn, key, **value)

  def over_runs(one_run):
    """Of all seeds and all values: leaves [num_seeds, num_values, ...]."""
    return jax.vmap(
      lambda state, partition, key: jax.vmap(
        lambda state, value: one_run(state, partition, key, value)
      )(state, grid)
    )

  @jax.jit
  def start(params):
    def one_run(params, partition, key, value):
      del partition
      return training(key, value).init(params)

    tiled = jax.tree.map(
      lambda p: jnp.repeat(p[:, None], len(values), axis=1), params
    )
    return over_runs(one_run)(tiled, partitions, keys)

  # Images are arguments: as constants they would be compiled in.
  @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
  def stretch(states, length, partitions, images, labels, sets):
    def one_run(state, partition, key, value):
      data_key, crop_key, round_key, byzantine_key = jax.random.split(key, 4)
      step = training(byzantine_key, value).step

      def one_round(state, _):
        pixels, targets = data.sample_batch(
          images,
          labels,
          partition,
          jax.random.fold_in(data_key, state.step),
          cell.batch_size,
          scale=rest.scale,
        )
        if FLAGS.augment:
          pixels = data.random_crop_and_flip(
            pixels, jax.random.fold_in(crop_key, state.step)
          )
        batch = cell.make_batch((pixels, targets))
        state, info = step(state, batch, round_key)
        return state, {
          'train_loss': info.loss,
          'aggregation_error': info.aggregation_error,
          'bits_up': info.bits_up,
          'bits_down': info.bits_down,
        }

      state, infos = jax.lax.scan(one_round, state, length=length)
      metrics = {k: jnp.mean(v) for k, v in infos.items()}
      for prefix, examples in sets.items():
        found = models.evaluate(
          graphdef,
          state.params,
          *examples,
          num_classes=rest.num_classes,
          scale=rest.scale,
        )
        metrics |= {f'{prefix}{k}': v for k, v in found._asdict().items()}
      return state, metrics

    return over_runs(one_run)(states, partitions, keys)

  length = max(cell.rounds // cell.num_evals, 1)
  states, rows, done = start(params), [], 0
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    states,
  )
  if restored := output.restore_checkpoint(folder, like):
    done, states = restored
    rows = _numbers(output.read_rows(folder / 'rows.csv'))
    rows = [row for row in rows if row['round'] <= done]
  saved = time.monotonic()
  while done < cell.rounds:
    now = min(length, cell.rounds - done)
    states, metrics = stretch(states, now, partitions, images, labels, sets)
    done += now
    metrics = {k: np.asarray(v) for k, v in metrics.items()}
    rows += [
      {
        **cell.labels,
        **value,
        'seed': seed,
        'round': done,
        **{k: float(v[seed, j]) for k, v in metrics.items()},
      }
      for seed in seeds
      for j, value in enumerate(values)
    ]
    if time.monotonic() - saved > FLAGS.checkpoint_seconds:
      folder.mkdir(parents=True, exist_ok=True)
      output.write_rows(folder / 'rows.csv', rows)
      output.save_checkpoint(folder, done, states)
      saved = time.monotonic()
  return rows


def run(
  study: str, make_cells: Callable[[], Sequence[Cell]]
) -> tuple[pathlib.Path, report.Rows]:
  """Runs the cells that `results.csv` lacks; returns the folder and all rows.

  Exits with the message of a ValueError, from making the cells or from a rule
  that refuses its arguments, before anything has run.
  """
  logging.set_verbosity(logging.WARNING)  # Checkpointing is talkative.
  folder = pathlib.Path(FLAGS.output_dir or f'runs/{study}')
  shared = FLAGS.get_key_flags_for_module(sys.modules[__name__])
  own = FLAGS.get_key_flags_for_module(sys.argv[0])
  config = {flag.name: flag.value for flag in (*shared, *own)}
  config = {k: v for k, v in config.items() if k not in _NOT_CONFIG}
  try:
    cells = [cell for cell in make_cells() if FLAGS.only in cell.name]
    if not cells:
      raise ValueError(f'--only={FLAGS.only} matches no cell')
    output.check_root(folder, resume=FLAGS.resume)
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
    for cell in cells:
      _check(cell, dataset)
    output.open_folder(folder, config)
  except ValueError as error:
    sys.exit(f'{study}: {error}')
  path = folder / 'results.csv'
  rows = _numbers(output.read_rows(path)) if path.exists() else []
  done = {tuple(str(row[k]) for k in cells[0].labels) for row in rows}
  for cell in (bar := tqdm.tqdm(cells, unit='cells')):
    bar.set_description(cell.name)
    if tuple(map(str, cell.labels.values())) not in done:
      # Of its own, for a study may be killed before it is removed.
      unfinished = folder / 'unfinished' / output.slug(cell.name)
      rows += run_cell(cell, dataset, unfinished)
      output.write_rows(path, rows)
      shutil.rmtree(unfinished, ignore_errors=True)
  return folder, rows


def num_parameters() -> int:
  """Of the model of the flags."""
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  shape = dataset.train_images.shape[1:]
  _, params = models.split(
    models.make(FLAGS.model, shape, dataset.num_classes, seed=0)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _check(cell: Cell, dataset: data.Dataset) -> None:
  """Traces one step, so that what refuses its arguments does so up front."""
  shape = dataset.train_images.shape[1:]
  graphdef, params = models.split(
    models.make(FLAGS.model, shape, dataset.num_classes, seed=0)
  )
  batch = (
    jax.ShapeDtypeStruct(
      (cell.num_workers, cell.batch_size, *shape), 'float32'
    ),
    jax.ShapeDtypeStruct((cell.num_workers, cell.batch_size), 'int32'),
  )
  value = {k: v[0] for k, v in cell.grid.items()}

  def step(params, batch):
    key = jax.random.key(0)
    training = cell.make_round(
      models.cross_entropy_loss(graphdef), key, **value
    )
    return training.step(training.init(params), cell.make_batch(batch), key)

  try:
    for seed in range(FLAGS.num_seeds):
      specs.partition(
        cell.partition,
        split_validation(dataset)[0].train_labels,
        cell.num_workers,
        seed,
      )
    jax.eval_shape(step, params, batch)
  except ValueError as error:
    raise ValueError(f'{cell.name}: {error}') from error


def claim(text: str, value: float, needed: float) -> bool:
  """Prints whether a measured number is at least what is needed."""
  holds = bool(value >= needed)
  verdict = 'holds' if holds else 'FELL SHORT'
  print(f'{verdict:10} {text}: {value:.1f}, needs {needed:g}')
  return holds


def finish(claims: Sequence[bool]) -> None:
  """Exits with an error on `--check` unless all claims hold."""
  if FLAGS.check and not all(claims):
    sys.exit(f'--check: {claims.count(False)} of {len(claims)} fell short')


def _padded(indices, width: int) -> np.ndarray:
  return np.pad(indices, ((0, 0), (0, width - indices.shape[1])))


def _numbers(rows: Sequence[Mapping[str, str]]) -> report.Rows:
  """Rows of a csv file, with numbers where something is one."""

  def number(text):
    try:
      return int(text) if text.lstrip('-').isdigit() else float(text)
    except ValueError:
      return text

  return [{k: number(v) for k, v in row.items()} for row in rows]
