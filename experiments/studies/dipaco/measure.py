"""The program of a cell: from the dense model to perplexities of paths."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import byzjax
from byzjax import data, models

from ...harness.cells import Program
from . import languages, paths

SETS = ('train', 'router', 'test')


class Kind(NamedTuple):
  """What a cell does."""

  paths: tuple[tuple[int, ...], ...]
  routing: str  # none, k-means, product, discriminative
  num_documents: int
  rates: tuple[float, ...]
  has_server: bool = True  # or rounds end with the average
  rounds_factor: float = 1
  batch_factor: int = 1
  rule: str = 'mean'
  liars: tuple[int, ...] = ()
  num_preempted: int = 0
  workers_per_path: int = 1


class Start(NamedTuple):
  """Where all methods begin: leaves `[seeds, ...]`."""

  params: Any
  features: dict[str, np.ndarray]  # of the sets of documents


class Runs(NamedTuple):
  """What the runs of a cell are; leaves `[runs, ...]`."""

  of_runs: list[tuple[int, float]]  # seeds by number, and rates
  which: np.ndarray  # int[runs], the seeds
  shape: paths.Shape
  schedule: paths.Schedule
  documents: jax.Array
  keys: jax.Array


class States(NamedTuple):
  """Of all runs."""

  training: byzjax.RoundState
  best: models.BestPaths
  routes: dict[str, jax.Array]  # the path of each document of a set


@functools.cache
def corpus_of(settings, seed: int) -> languages.Corpus:
  size = (settings.num_documents, settings.length)
  if settings.text == 'languages':
    return languages.of_languages(4, 4, *size, settings.prefix, seed)
  names = settings.text.split('+')
  return languages.of_texts(names, settings.data_dir, *size, seed)


@functools.cache
def network(settings, seed: int) -> tuple[nnx.GraphDef, Any]:
  return models.split(
    models.Transformer(
      corpus_of(settings, seed).vocabulary_size,
      num_layers=2,
      width=settings.width,
      num_heads=2,
      length=settings.length,
      rngs=nnx.Rngs(seed),
    )
  )


def stacked(settings, seeds: Sequence[int], name: str) -> jax.Array:
  """A set of documents of all seeds."""
  every = [getattr(corpus_of(settings, seed), name) for seed in seeds]
  return jnp.asarray(np.stack(every))


@functools.cache
def begin(settings, seeds: tuple[int, ...]) -> Start:
  """The dense model after its first steps on all documents, for all seeds."""
  params = byzjax.stack([network(settings, seed)[1] for seed in seeds])
  count = len(corpus_of(settings, seeds[0]).train)
  dense = Kind(((0, 0),), 'none', count, (settings.first_rate,), False)
  # A tenth of the way down its own schedule.
  total = 10 * settings.pretraining_steps
  runs = runs_of(settings, dense, seeds, total, stream=0)
  init, stretch, _ = paths.programs(runs.shape)
  rounds = settings.pretraining_steps // settings.num_local_steps
  state, _ = stretch(
    init(params, runs.documents, runs.schedule),
    runs.documents,
    shards_of(settings, dense, runs, {}),
    runs.schedule,
    runs.keys,
    rounds,
  )
  alone = jax.tree.map(lambda x: x[:, 0], state.params)
  params = jax.vmap(models.join_levels)(alone)
  find = paths.featurizer(runs.shape.graphdef, settings.prefix)
  return Start(
    params,
    {
      name: np.asarray(find(params, stacked(settings, seeds, name)))
      for name in SETS
    },
  )


def runs_of(
  settings, kind: Kind, seeds: Sequence[int], total: int, stream: int
) -> Runs:
  """All seeds and rates of a cell."""
  of_runs = [(i, rate) for i in range(len(seeds)) for rate in kind.rates]
  which = np.array([i for i, _ in of_runs])
  shape = paths.Shape(
    tuple(path for path in kind.paths for _ in range(kind.workers_per_path)),
    kind.rule,
    network(settings, seeds[0])[0],
    settings.batch_size * kind.batch_factor,
    settings.num_local_steps,
    settings.prefix,
    (settings.outer_rate, settings.outer_momentum)
    if kind.has_server
    else (1.0, 0.0),
  )
  num_paths = len(shape.paths)
  rng = np.random.default_rng(0)
  ranks = rng.random((len(of_runs), settings.rounds, num_paths))
  schedule = paths.Schedule(
    jnp.array([rate for _, rate in of_runs], jnp.float32),
    jnp.full(len(of_runs), max(total, 1), jnp.float32),
    jnp.asarray(ranks.argsort(axis=-1) >= kind.num_preempted, jnp.float32),
    jnp.tile(
      jnp.isin(jnp.arange(num_paths), np.array(kind.liars, int)),
      (len(of_runs), 1),
    ),
  )
  return Runs(
    of_runs,
    which,
    shape,
    schedule,
    stacked(settings, seeds, 'train')[which],
    jax.vmap(jax.random.key)(jnp.asarray(2 * which + stream)),
  )


def first_router(kind: Kind, features: np.ndarray) -> data.Router | None:
  """Of the features of documents for training."""
  if kind.routing == 'none':
    return None
  features = features[: kind.num_documents]
  if kind.routing == 'product':
    grid = np.max(kind.paths, axis=0) + 1
    return data.product_cluster_documents(features, tuple(grid.tolist()))
  return data.cluster_documents(features, len(kind.paths))


def routes_of(
  routers: Sequence[data.Router | None], features, which
) -> dict[str, jax.Array]:
  """The path of each document of all sets, in all runs."""

  def of_set(name):
    found = [
      np.zeros(len(features[name][i]), np.int32)
      if router is None
      else data.route(router, features[name][i])
      for router, i in zip(routers, which)
    ]
    return jnp.asarray(np.stack(found))

  return {name: of_set(name) for name in SETS}


def shards_of(settings, kind: Kind, runs: Runs, routes) -> data.Partition:
  """The documents of every worker, in all runs."""
  workers, partitions = len(runs.shape.paths), []
  for run, i in enumerate(runs.which):
    if kind.routing == 'none':
      labels = np.zeros(kind.num_documents, int)
      shards = data.random_shards(labels, workers, seed=int(i))
    else:
      chosen = np.asarray(routes['train'][run])[: kind.num_documents]
      # Workers of one path take turns.
      turn = np.arange(kind.num_documents) % kind.workers_per_path
      chosen = chosen * kind.workers_per_path + turn
      # A worker with none of the documents takes them all.
      idle = np.setdiff1d(np.arange(workers), chosen)
      chosen = np.column_stack([chosen, np.tile(idle, (chosen.size, 1))])
      shards = data.routed_shards(chosen, workers)
    partitions.append(paths.padded(shards, settings.num_documents))
  return byzjax.stack(partitions)


def perplexity(losses: np.ndarray, chosen: np.ndarray) -> float:
  """Of documents that are read by one path each; losses are `[P, N]`."""
  return np.exp(losses[chosen, np.arange(losses.shape[1])].mean())


def own_losses(routes: np.ndarray, losses: np.ndarray) -> jax.Array:
  """`[runs, P]`: of each path on held-out documents that are routed to it."""
  means = []
  for chosen, loss in zip(routes, losses):
    mine = chosen[None] == np.arange(loss.shape[0])[:, None]
    # A path with none of them takes all.
    mine |= ~mine.any(axis=1, keepdims=True)
    means.append((loss * mine).sum(axis=1) / mine.sum(axis=1))
  return jnp.asarray(np.stack(means), jnp.float32)


def program(settings, labels, kind: Kind, seeds: Sequence[int]) -> Program:
  """All seeds and rates of a cell."""
  seeds = tuple(seeds)
  # A text may be short.
  available = len(corpus_of(settings, seeds[0]).train)
  kind = kind._replace(num_documents=min(kind.num_documents, available))
  rounds = int(settings.rounds * kind.rounds_factor)
  total = rounds * settings.num_local_steps
  runs = runs_of(settings, kind, seeds, total, stream=1)
  init, go_on, score = paths.programs(runs.shape)
  num_evals = settings.num_evals
  stops = [rounds * e // num_evals for e in range(1, num_evals + 1)]
  take = jax.jit(
    jax.vmap(lambda p: models.select_path(p, np.array(kind.paths)))
  )

  def start():
    begun = begin(settings, seeds)
    features = begun.features
    routers = [first_router(kind, features['train'][i]) for i in runs.which]
    params = jax.tree.map(lambda x: x[runs.which], begun.params)
    training = init(params, runs.documents, runs.schedule)
    best = jax.vmap(models.best_paths)(take(training.params))
    return States(training, best, routes_of(routers, features, runs.which))

  def stretch(states, done, length):
    training, train_loss = go_on(
      states.training,
      runs.documents,
      shards_of(settings, kind, runs, states.routes),
      runs.schedule,
      runs.keys,
      length,
    )
    path_params = take(training.params)
    sets = {
      name: stacked(settings, seeds, name)[runs.which]
      for name in ('router', 'test')
    }
    losses = {k: np.asarray(score(path_params, x)) for k, x in sets.items()}
    routes = {k: np.asarray(x) for k, x in states.routes.items()}
    best = jax.vmap(models.keep_best)(
      states.best, path_params, own_losses(routes['router'], losses['router'])
    )
    stopped = np.asarray(score(best.params, sets['test']))

    def read(losses, name):
      return np.array([perplexity(*x) for x in zip(losses, routes[name])])

    chosen = read(losses['test'], 'test')
    metrics = {
      'train_loss': train_loss,
      'loss': np.log(chosen),
      'validation': read(losses['router'], 'router'),
      'perplexity': chosen,
      'stopped': read(stopped, 'test'),
      'oracle': np.exp(losses['test'].min(axis=1).mean(axis=1)),
      'lowest': np.exp(
        [corpus_of(settings, seeds[i]).entropy for i in runs.which]
      ),
    }
    states = States(training, best, states.routes)
    half = stops[num_evals // 2 - 1]
    if kind.routing == 'discriminative' and done + length == half:
      features = begin(settings, seeds).features
      routers = [
        data.discriminative_router(features['router'][i], -scores.T)
        for i, scores in zip(runs.which, losses['router'])
      ]
      new = routes_of(routers, features, runs.which)
      states = states._replace(routes=new)
    return states, metrics

  return Program(
    [{**labels, 'rate': rate, 'seed': seeds[i]} for i, rate in runs.of_runs],
    start,
    stretch,
    stops,
    lambda: traced(settings, seeds[0], runs.shape),
  )


@functools.cache
def traced(settings, seed: int, shape: paths.Shape):
  """A round of one run, and what its paths make of documents, by shapes.

  Cells of one shape are one program.
  """
  documents = corpus_of(settings, seed).train
  workers = len(shape.paths)
  shards = data.Partition(
    np.zeros((workers, settings.num_documents), int), np.ones(workers, int)
  )
  schedule = paths.Schedule(
    jnp.ones([]),
    jnp.ones([]),
    jnp.ones([settings.rounds, workers]),
    jnp.zeros(workers, bool),
  )

  def one_run(params, key):
    training = paths.training(shape, jnp.asarray(documents), schedule)
    state = training.init(paths.modules(shape, params))
    state, info = training.step(state, shards, key)
    found = models.select_path(state.params, np.array(shape.paths))
    losses = paths.losses(shape, found, jnp.asarray(documents))
    return {'train_loss': info.loss, 'loss': losses.mean()}

  return jax.eval_shape(one_run, network(settings, seed)[1], jax.random.key(0))
