"""A cell of the authors' CIFAR-10 runs, as a program of one seed or several."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import data, models

from ...harness.cells import Program
from . import network

NUM_WORKERS = 25
TEST_BATCH = 128  # The rest of the last batch is left out, as in their code.
NUM_STOPS = 8  # Of an epoch: between them a run can be killed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What a cell is, beside its seeds."""

  name: str
  rule: byzjax.Aggregator
  attack: Any
  f: int
  beta: float
  epochs: int
  batch_size: int
  worker_map: str
  dataset: str
  data_dir: str | None

  @property
  def computes(self) -> np.ndarray:
    """Workers whose gradients are used: ALIE and IPM do not read their own."""
    reads_own = getattr(self.attack, 'reads_own', True)
    return np.arange(NUM_WORKERS) >= (0 if reads_own else self.f)

  @property
  def rounds_per_epoch(self) -> int:
    """All examples are divided among as many workers as are honest."""
    count = shapes(self.dataset)[0]
    return -(-count // (NUM_WORKERS - self.f)) // self.batch_size

  @property
  def rounds(self) -> int:
    return self.epochs * self.rounds_per_epoch


class State(NamedTuple):
  """What one seed has come to."""

  round: Any  # byzjax.RoundState
  running: network.Statistics
  totals: dict[str, jax.Array]  # since the last epoch ended


class Arrays(NamedTuple):
  """The data set, on the device."""

  images: Any  # uint8 [N, H, W, C]
  labels: Any
  test_images: Any
  test_labels: Any


@functools.lru_cache(maxsize=1)
def dataset_of(name: str, data_dir: str | None) -> data.Dataset:
  return data.load(name, data_dir)


def shapes(name: str) -> tuple[int, ...]:
  """Of the training images, before they are read."""
  if name == 'cifar10':
    return (50000, 32, 32, 3)
  return dataset_of(name, None).train_images.shape


def program(run: Run, seeds: Sequence[int]) -> Program:
  """All seeds, one after another; a row of each at the end of an epoch.

  Between, rows have no accuracy: they are where a run can go on.
  """
  length, rounds = run.rounds_per_epoch, run.rounds
  every = max(length // NUM_STOPS, 1)
  stops = [
    epoch * length + stop
    for epoch in range(run.epochs)
    for stop in (*range(every, length - every + 1, every), length)
  ]
  keys = [jax.random.key(seed) for seed in seeds]
  step = jax.jit(functools.partial(one_round, run), donate_argnums=0)
  begin = jax.jit(functools.partial(first_state, run))
  score = jax.jit(functools.partial(accuracy, run.dataset))

  @functools.cache
  def arrays() -> Arrays:
    of = dataset_of(run.dataset, run.data_dir)
    return Arrays(
      *map(
        jnp.asarray,
        (of.train_images, of.train_labels, of.test_images, of.test_labels),
      )
    )

  def stretch(states, done, length_of_stretch):
    stop = done + length_of_stretch
    for _ in range(length_of_stretch):
      states = [step(s, key, arrays()) for s, key in zip(states, keys)]
    is_end = stop % length == 0
    measured = [
      {
        'epoch': jnp.float32(stop / length),
        **{k: v / ((stop - 1) % length + 1) for k, v in s.totals.items()},
        'accuracy': score(s, arrays()) if is_end else jnp.float32(jnp.nan),
      }
      for s in states
    ]
    return states, jax.tree.map(lambda *x: jnp.stack(x), *measured)

  def trace():
    shape = shapes(run.dataset)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    some = Arrays(images, labels, images, labels)
    state = jax.eval_shape(functools.partial(first_state, run), keys[0])
    state = jax.eval_shape(
      functools.partial(one_round, run), state, keys[0], some
    )
    scored = functools.partial(accuracy, run.dataset)
    return {**state.totals, 'accuracy': jax.eval_shape(scored, state, some)}

  assert stops[-1] == rounds
  return Program(
    [{'cell': run.name, 'seed': seed} for seed in seeds],
    lambda: [begin(key) for key in keys],
    stretch,
    stops,
    trace,
  )


def first_state(run: Run, key: jax.Array) -> State:
  return State(
    training_of(run).init(model_of(run.dataset, jax.random.fold_in(key, 0))[1]),
    network.first_statistics(),
    {name: jnp.zeros([]) for name in ('train_loss', 'clipped')},
  )


def model_of(dataset: str, key: jax.Array | None = None):
  """The graph of the network, and its first parameters."""
  shape = shapes(dataset)[1:]
  rngs = nnx.Rngs(jax.random.key(0) if key is None else key)
  return models.split(network.ResNet20(shape, 10, rngs=rngs))


@functools.cache
def graph_of(dataset: str) -> nnx.GraphDef:
  return model_of(dataset)[0]


def training_of(run: Run) -> byzjax.Round:
  # They divide the rate by ten after 75 of 100 epochs.
  schedule = optax.piecewise_constant_schedule(
    0.1, {75 * run.rounds_per_epoch: 0.1}
  )
  return byzjax.robust_round(
    lambda params, batch: (jnp.float32(0), None),
    value_and_grad=functools.partial(value_and_grad, run.dataset),
    has_aux=True,
    num_workers=NUM_WORKERS,
    # PyTorch's momentum, a sum; attackers keep none.
    worker=optax.trace(run.beta) if run.beta else None,
    attack=run.attack,
    byzantine=run.f if run.attack else None,
    byzantine_chain=not (run.attack and run.beta),
    aggregator=run.rule,
    optimizer=optax.sgd(schedule),
    worker_map=run.worker_map,
  )


def value_and_grad(dataset: str, params, batch, key):
  """Of one worker: `((loss, statistics), gradient)`; zeros where idle."""
  del key
  images, labels, computes = batch

  def loss_fn(params):
    logits, statistics = nnx.merge(graph_of(dataset), params)(images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), statistics

  of_batch = functools.partial(
    jax.value_and_grad(loss_fn, has_aux=True), params
  )
  nothing = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_batch)
  )
  return jax.lax.cond(computes, of_batch, lambda: nothing)


def one_round(run: Run, state: State, key: jax.Array, arrays: Arrays) -> State:
  number = state.round.step
  place = number % run.rounds_per_epoch
  after, info = training_of(run).step(
    state.round, batch_of(run, number, key, arrays), key
  )
  clipped = 0.0 if info.factors is None else jnp.mean(info.factors < 1)
  totals = jax.tree.map(
    lambda total, new: jnp.where(place == 0, 0, total) + new,
    state.totals,
    {'train_loss': info.loss, 'clipped': jnp.float32(clipped)},
  )
  running = network.moved(state.running, info.aux, run.computes)
  return State(after, running, totals)


def batch_of(run: Run, number: jax.Array, key: jax.Array, arrays: Arrays):
  """What the workers are given in a round: images, labels, who computes."""
  order_key, crop_key = jax.random.split(jax.random.fold_in(key, 1))
  epoch, place = jnp.divmod(number, run.rounds_per_epoch)
  chosen = chosen_examples(
    jax.random.fold_in(order_key, epoch), place, run, len(arrays.labels)
  )
  images = arrays.images[chosen].astype(jnp.float32) / scale(run.dataset)
  images = data.random_crop_and_flip(
    images, jax.random.fold_in(crop_key, number)
  )
  return (
    standardised(run.dataset, images),
    arrays.labels[chosen],
    jnp.asarray(run.computes),
  )


def chosen_examples(key, place, run: Run, count: int) -> jax.Array:
  """The examples of a round of an epoch: int32[n, B].

  All are shuffled in every epoch and dealt out to as many workers as are
  honest. Attackers have the examples of the first ones.
  """
  dealt, size = NUM_WORKERS - run.f, run.batch_size
  order = jax.random.permutation(key, count)
  needed = dealt * run.rounds_per_epoch * size
  order = jnp.concatenate([order, order[: max(needed - count, 0)]])
  now = order[:needed].reshape(-1, size, dealt)[place].T
  ranks = np.arange(NUM_WORKERS)
  return now[np.where(ranks < run.f, ranks, ranks - run.f)]


def scale(dataset: str) -> float:
  """The largest pixel."""
  return 16.0 if dataset == 'digits' else 255.0


def standardised(dataset: str, images: jax.Array) -> jax.Array:
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean, deviation = (
    jnp.array(values).reshape(shape) for values in network.PIXELS[dataset]
  )
  return (images - mean) / deviation


def accuracy(dataset: str, state: State, arrays: Arrays) -> jax.Array:
  """On the test examples, with the running statistics."""
  graph, params = graph_of(dataset), state.round.params

  def right(batch):
    images, labels = batch
    images = images.astype(jnp.float32) / scale(dataset)
    logits, _ = nnx.merge(graph, params)(
      standardised(dataset, images), state.running
    )
    return (logits.argmax(-1) == labels).mean()

  whole = len(arrays.test_labels) // TEST_BATCH * TEST_BATCH

  def batched(x):
    return x[:whole].reshape(-1, TEST_BATCH, *x.shape[1:])

  return jax.lax.map(
    right, (batched(arrays.test_images), batched(arrays.test_labels))
  ).mean()
