"""A cell of the study: all its runs, from the dense model to perplexities."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import byzjax
from byzjax import data, models
from experiments import report
from experiments.dipaco import languages, paths

FLAGS = flags.FLAGS
GRID = (2, 2)
DILOCO = (0.7, 0.9)


class Cell(NamedTuple):
  """A line of a table."""

  labels: dict[str, Any]
  paths: tuple[tuple[int, ...], ...]
  routing: str  # none, k-means, product, discriminative
  num_documents: int
  rates: tuple[float, ...]
  outer: tuple[float, float] = DILOCO
  rounds_factor: float = 1
  rule: str = 'mean'
  liars: tuple[int, ...] = ()
  num_preempted: int = 0
  workers_per_path: int = 1

  @property
  def name(self) -> str:
    return ', '.join(str(label) for label in self.labels.values())


class Start(NamedTuple):
  """Where all methods begin: leaves `[seeds, ...]`."""

  graphdef: nnx.GraphDef
  corpora: list[languages.Corpus]
  params: Any
  features: dict[str, np.ndarray]  # of the sets of documents


class Runs(NamedTuple):
  """The runs of a cell, in one program."""

  cell: Cell
  of_runs: list[tuple[int, float]]  # seeds by number, and rates
  which: np.ndarray  # int[runs], the seeds
  shape: paths.Shape
  schedule: paths.Schedule
  documents: jax.Array
  routers: list[data.Router | None]
  keys: jax.Array
  state: byzjax.RoundState


def corpus_of(seed: int) -> languages.Corpus:
  size = (FLAGS.num_documents, FLAGS.length)
  if FLAGS.text == 'languages':
    return languages.of_languages(4, 4, *size, FLAGS.prefix, seed)
  text = data.load_text(FLAGS.text, FLAGS.data_dir)
  return languages.of_text(text, *size, seed)


def shape_of(cell: Cell, graphdef: nnx.GraphDef) -> paths.Shape:
  return paths.Shape(
    tuple(path for path in cell.paths for _ in range(cell.workers_per_path)),
    cell.rule,
    graphdef,
    FLAGS.batch_size,
    FLAGS.num_local_steps,
    FLAGS.prefix,
    cell.outer,
  )


def stacked(corpora: Sequence[languages.Corpus], name: str) -> jax.Array:
  return jnp.asarray(np.stack([getattr(c, name) for c in corpora]))


@functools.cache
def start(seeds: tuple[int, ...]) -> Start:
  """The corpora, and the dense model after its first steps on all of them."""
  corpora = [corpus_of(seed) for seed in seeds]
  networks = [
    models.split(
      models.Transformer(
        corpora[0].vocabulary_size,
        num_layers=2,
        width=FLAGS.width,
        num_heads=2,
        length=FLAGS.length,
        rngs=nnx.Rngs(seed),
      )
    )
    for seed in seeds
  ]
  graphdef = networks[0][0]
  params = jax.tree.map(lambda *x: jnp.stack(x), *(p for _, p in networks))
  count = len(corpora[0].train)
  dense = Cell({}, ((0, 0),), 'none', count, (FLAGS.first_rate,), (1.0, 0.0))
  begin = Start(graphdef, corpora, params, {})
  # A tenth of the way down its own schedule.
  runs = make_runs(dense, begin, 10 * FLAGS.pretraining_steps, stream=0)
  rounds = FLAGS.pretraining_steps // FLAGS.num_local_steps
  state, _ = stretch(runs, begin, runs.state, rounds)
  alone = jax.tree.map(lambda x: x[:, 0], state.params)
  params = jax.vmap(models.join_levels)(alone)
  find = paths.featurizer(graphdef, FLAGS.prefix)
  features = {
    name: np.asarray(find(params, stacked(corpora, name)))
    for name in ('train', 'router', 'test')
  }
  return Start(graphdef, corpora, params, features)


def make_runs(cell: Cell, begin: Start, total: int, stream: int) -> Runs:
  """All seeds and rates of a cell: leaves `[runs, ...]`."""
  of_runs = [
    (seed, rate) for seed in range(len(begin.corpora)) for rate in cell.rates
  ]
  which = np.array([seed for seed, _ in of_runs])
  # A text may be short.
  available = len(begin.corpora[0].train)
  cell = cell._replace(num_documents=min(cell.num_documents, available))
  shape = shape_of(cell, begin.graphdef)
  num_paths = len(shape.paths)
  rng = np.random.default_rng(0)
  ranks = rng.random((len(of_runs), FLAGS.rounds, num_paths)).argsort(axis=-1)
  schedule = paths.Schedule(
    jnp.array([rate for _, rate in of_runs], jnp.float32),
    jnp.full(len(of_runs), max(total, 1), jnp.float32),
    jnp.asarray(ranks >= cell.num_preempted, jnp.float32),
    jnp.tile(
      jnp.isin(jnp.arange(num_paths), np.array(cell.liars, int)),
      (len(of_runs), 1),
    ),
  )
  params = jax.tree.map(lambda x: x[which], begin.params)
  documents = stacked(begin.corpora, 'train')[which]
  programs = paths.programs(shape)
  routers = [first_router(cell, begin, seed) for seed in which]
  return Runs(
    cell, of_runs, which, shape, schedule, documents, routers,
    jax.vmap(jax.random.key)(jnp.asarray(2 * which + stream)),
    programs[0](params, documents, schedule),
  )  # fmt: skip


def first_router(cell: Cell, begin: Start, seed: int) -> data.Router | None:
  if cell.routing == 'none':
    return None
  features = begin.features['train'][seed][: cell.num_documents]
  if cell.routing == 'product':
    return data.product_cluster_documents(features, GRID)
  return data.cluster_documents(features, len(cell.paths))


def routed(cell: Cell, begin: Start, router, name: str, seed: int):
  """The path of each document of a set."""
  if router is None:
    return np.zeros(len(getattr(begin.corpora[seed], name)), int)
  return data.route(router, begin.features[name][seed])


def shards_of(runs: Runs, begin: Start) -> data.Partition:
  """The documents of every worker, in all runs."""
  cell, partitions = runs.cell, []
  for router, seed in zip(runs.routers, runs.which):
    workers = len(runs.shape.paths)
    if router is None:
      labels = np.zeros(cell.num_documents, int)
      shards = data.random_shards(labels, workers, seed=int(seed))
    else:
      chosen = routed(cell, begin, router, 'train', seed)[: cell.num_documents]
      # Workers of one path take turns.
      turn = np.arange(cell.num_documents) % cell.workers_per_path
      chosen = chosen * cell.workers_per_path + turn
      # A worker with none of the documents takes them all.
      idle = np.setdiff1d(np.arange(workers), chosen)
      chosen = np.column_stack([chosen, np.tile(idle, (chosen.size, 1))])
      shards = data.routed_shards(chosen, workers)
    partitions.append(paths.padded(shards, FLAGS.num_documents))
  return jax.tree.map(lambda *x: jnp.stack(x), *partitions)


def stretch(runs: Runs, begin: Start, state, rounds: int):
  run = paths.programs(runs.shape)[1]
  return run(
    state,
    runs.documents,
    shards_of(runs, begin),
    runs.schedule,
    runs.keys,
    rounds,
  )


def perplexity(losses: np.ndarray, chosen: np.ndarray) -> float:
  """Of documents that are read by one path each; losses are `[P, N]`."""
  return math.exp(losses[chosen, np.arange(losses.shape[1])].mean())


def run_cell(cell: Cell, seeds: Sequence[int]) -> report.Rows:
  """A row for every evaluation of every seed and rate."""
  begin = start(tuple(seeds))
  rounds = int(FLAGS.rounds * cell.rounds_factor)
  runs = make_runs(cell, begin, rounds * FLAGS.num_local_steps, stream=1)
  score = paths.programs(runs.shape)[2]
  sets = {
    name: stacked(begin.corpora, name)[runs.which]
    for name in ('router', 'test')
  }
  take = jax.jit(
    jax.vmap(lambda p: models.select_path(p, np.array(cell.paths)))
  )
  state, rows, best = runs.state, [], None
  for e in range(1, FLAGS.num_evals + 1):
    length = rounds * e // FLAGS.num_evals - rounds * (e - 1) // FLAGS.num_evals
    state, train_loss = stretch(runs, begin, state, length)
    path_params = take(state.params)
    losses = {k: np.asarray(score(path_params, x)) for k, x in sets.items()}
    own = own_losses(runs, begin, losses['router'])
    keep = jax.vmap(models.keep_best)
    best = keep(
      best or jax.vmap(models.best_paths)(path_params), path_params, own
    )
    stopped = np.asarray(score(best.params, sets['test']))
    for i, (seed, rate) in enumerate(runs.of_runs):
      routes = {
        name: routed(cell, begin, runs.routers[i], name, seed)
        for name in ('router', 'test')
      }

      rows.append(
        cell.labels
        | {
          'rate': rate,
          'seed': seeds[seed],
          'round': rounds * e // FLAGS.num_evals,
          'train_loss': float(train_loss[i]),
          'loss': math.log(perplexity(losses['test'][i], routes['test'])),
          'validation': perplexity(losses['router'][i], routes['router']),
          'perplexity': perplexity(losses['test'][i], routes['test']),
          'stopped': perplexity(stopped[i], routes['test']),
          'oracle': math.exp(losses['test'][i].min(axis=0).mean()),
          'lowest': math.exp(begin.corpora[seed].entropy),
        }
      )
    if cell.routing == 'discriminative' and 2 * e == FLAGS.num_evals:
      runs = runs._replace(
        routers=[
          data.discriminative_router(begin.features['router'][seed], -scores.T)
          for seed, scores in zip(runs.which, losses['router'])
        ]
      )
  return rows


def own_losses(runs: Runs, begin: Start, losses: np.ndarray) -> jax.Array:
  """`[runs, P]`: of each path on held-out documents that are routed to it."""
  means = []
  for router, seed, loss in zip(runs.routers, runs.which, losses):
    chosen = routed(runs.cell, begin, router, 'router', seed)
    mine = chosen[None] == np.arange(loss.shape[0])[:, None]
    # A path with none of them takes all.
    mine |= ~mine.any(axis=1, keepdims=True)
    means.append((loss * mine).sum(axis=1) / mine.sum(axis=1))
  return jnp.asarray(np.stack(means), jnp.float32)
