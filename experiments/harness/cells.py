"""What a study runs: cells, each one program of many runs.

A *cell* is what changes the program: an attack, a rule, a way to divide the
data. Its *runs*, for all seeds and all numbers that may be traced (learning
rates, momenta, radii), are one program and several rows of the results.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from flax import nnx

import byzjax
from byzjax import data

Rows = list[dict[str, Any]]


class Program(NamedTuple):
  """All runs of a cell at once, in stretches of rounds.

  Attributes:
    runs: the columns that say what each run is, its seed among them.
    start: `() -> states` at round 0.
    stretch: `(states, done, length) -> (states, {metric: array})`: so many
      rounds more, and what is measured at their end. Arrays have as many
      entries as there are runs, in their order.
    stops: the rounds at which runs are measured; 0 may be one of them.
    trace: `() -> metrics by their shapes`: what refuses its arguments does so
      here, before anything is compiled.
  """

  runs: Sequence[Mapping[str, Any]]
  start: Callable[[], Any]
  stretch: Callable[[Any, int, int], tuple[Any, dict[str, jax.Array]]]
  stops: Sequence[int]
  trace: Callable[[], dict[str, Any]]


class Task(NamedTuple):
  """What a round is made of, beside a cell's own numbers."""

  graphdef: nnx.GraphDef
  loss_fn: Callable  # cross entropy of the network; see `needs_key`
  needs_key: bool  # whether the loss takes a key, as with dropout
  images: jax.Array  # [N, H, W, C], of the training examples
  labels: jax.Array  # int32[N]
  partition: data.Partition  # what the round is given if the cell is local
  scale: float
  num_classes: int

  def sampler(self, batch_size: int) -> byzjax.LocalSampler:
    """Batches of the examples of a worker, for rounds that draw their own."""
    return data.local_sampler(
      self.images, self.labels, batch_size=batch_size, scale=self.scale
    )


def basic_metrics(state, info: byzjax.RoundInfo) -> dict[str, jax.Array]:
  """Loss of the round, error of the aggregate, bits on the wire."""
  del state
  return {
    'train_loss': info.loss,
    'aggregation_error': info.aggregation_error,
    'bits_up': info.bits_up,
    'bits_down': info.bits_down,
  }


def even_stops(rounds: int, num_evals: int) -> list[int]:
  """Rounds of evenly spaced evaluations; the last round is one."""
  length = max(rounds // num_evals, 1)
  return [*range(length, rounds, length), rounds]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """A cell that trains a network on images.

  Attributes:
    labels: what the cell is, for the columns of the table.
    make_round: `(task, key, **values) -> Round`; the values are one number of
      every entry of `grid`.
    grid: the numbers to run for, all combinations in one program.
    load: `() -> dataset`, in place of the one of the settings.
    num_workers: n, rows of a batch before `make_batch`.
    rounds: rounds of training.
    batch_size: examples per worker and round.
    partition: how examples are divided among workers: a text as for `train.py`,
      or `(labels, num_workers, seed) -> Partition`; or several texts, in one
      program, with which it was in the column `partition`.
    batches_per_pass: workers pass through their examples without replacement
      and shuffle them after so many batches; None draws with replacement.
    num_evals: evaluations, evenly spaced.
    run_map: `'vmap'` does all runs at once; `'map'` one after the other, which
      is faster where networks have convolutions and devices are CPUs.
    is_local: whether the round draws its own batches, by a sampler, and is
      given the partition.
    make_batch: what is done to a batch, such as repeating it within groups.
    make_images: `(images, partition or None, seed) -> images`, made once on the
      host of the training images, and (without a partition) of the others.
    make_model: `(image_shape, num_classes, seed) -> module`, in place of the
      model of the options; the shape is that of the images that are made.
    make_params: `(params, key) -> params`, what is trained beside the model.
    model_of: `params -> params`, the model in what is trained.
    metrics: `(state, info) -> {name: scalar}` after every round; rows have
      their mean over the rounds since the row before.
    measure: `(task, params, images, labels) -> {name: scalar}`, at every
      evaluation, of all that is trained, on every set of examples; may replace
      what is measured of the model.
    probe: `(task, model's params, key) -> {name: scalar}`, at every evaluation;
      sees the training examples through the task.
    describe: `values -> columns`, what a row says about its numbers of the
      grid; it may replace labels.
  """

  labels: Mapping[str, Any]
  make_round: Callable[..., byzjax.Round]
  num_workers: int
  rounds: int
  batch_size: int
  grid: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
  load: Callable[[], data.Dataset] | None = None
  partition: str | Callable[..., data.Partition] | Sequence[str] = 'iid'
  batches_per_pass: int | None = None
  num_evals: int = 20
  run_map: Literal['vmap', 'map'] = 'vmap'
  is_local: bool = False
  make_batch: Callable = lambda batch: batch
  make_images: Callable | None = None
  make_model: Callable | None = None
  make_params: Callable = lambda params, key: params
  model_of: Callable = lambda params: params
  metrics: Callable[[Any, Any], dict[str, Any]] = basic_metrics
  measure: Callable | None = None
  probe: Callable | None = None
  describe: Callable[[dict[str, float]], dict[str, Any]] = lambda values: values

  @property
  def name(self) -> str:
    return name_of(self.labels)

  @property
  def partitions(self) -> tuple[Any, ...]:
    if isinstance(self.partition, str) or callable(self.partition):
      return (self.partition,)
    return tuple(self.partition)

  @property
  def values(self) -> list[dict[str, float]]:
    """All combinations of the numbers of the grid."""
    return [
      dict(zip(self.grid, combination))
      for combination in itertools.product(*self.grid.values())
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnCell:
  """A cell that brings its own data: texts, mixtures, convex programs.

  Attributes:
    labels: what the cell is, for the columns of the table.
    rounds: how far it moves the bar in all.
    make_program: `seeds -> Program`; it is checkpointed between stretches.
    make_rows: `seeds -> rows`, in place of a program, where nothing goes on in
      rounds.
  """

  labels: Mapping[str, Any]
  rounds: int = 1
  make_program: Callable[[Sequence[int]], Program] | None = None
  make_rows: Callable[[Sequence[int]], Rows] | None = None

  @property
  def name(self) -> str:
    return name_of(self.labels)


def name_of(labels: Mapping[str, Any]) -> str:
  return ', '.join(str(label) for label in labels.values())
