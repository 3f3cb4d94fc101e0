"""Networks of a study's cell: trained, and the ways between them measured."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import byzjax
from byzjax import analysis, data, models

from ...harness import specs

BASE = 50  # The width at which mean-field scaling changes nothing.
KEPT = (25, 50, 100, 200, 400, 800)
ATTACKS: dict[str, Any] = {
  'none': lambda: None,
  'sign flip': lambda: byzjax.sign_flip(scale=3.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 10.
}
STARTS = ('same', 'own')
load = functools.cache(data.load)


class Problem(NamedTuple):
  """The data, and networks of one shape on it; of a cell."""

  settings: Any
  dataset: data.Dataset
  graphdef: nnx.GraphDef
  sizes: tuple[int, ...]
  is_mean_field: bool

  @property
  def width(self) -> int:
    return self.sizes[1]

  def start(self, key):
    """Initial layers; mean-field ones above the first shrink faster."""
    shrink = np.sqrt(BASE / self.width) if self.is_mean_field else 1.0
    keys = jax.random.split(key, len(self.sizes) - 1)
    initial = jax.nn.initializers.lecun_normal()
    shapes = zip(self.sizes, self.sizes[1:])
    kernels = [initial(k, shape) for k, shape in zip(keys, shapes)]
    return tuple(
      (kernel * (shrink if number else 1.0), jnp.zeros(kernel.shape[1]))
      for number, kernel in enumerate(kernels)
    )

  def optimizer(self):
    """SGD; in mean-field scaling units move as far whatever the width."""
    wide = self.width / BASE if self.is_mean_field else 1.0
    middle = [(1.0, wide)] * (len(self.sizes) - 3)
    factors = ((wide, wide), *middle, (1 / wide, 1.0))
    return optax.chain(
      optax.stateless(lambda g, _: jax.tree.map(jnp.multiply, g, factors)),
      optax.sgd(self.settings.learning_rate, self.settings.server_momentum),
    )

  def loss(self, layers, batch):
    loss_fn = models.cross_entropy_loss(self.graphdef)
    return loss_fn(models.mlp_params(layers), batch)

  def train(self, start, partition, key, rounds, batch_size, **options):
    """Rounds of the workers that the partition is for."""
    n = partition.sizes.shape[0]
    training = byzjax.robust_round(
      self.loss, optimizer=self.optimizer(), num_workers=n, **options
    )

    def one_round(_, state):
      batch = data.sample_batch(
        jnp.asarray(self.dataset.train_images),
        jnp.asarray(self.dataset.train_labels), partition,
        jax.random.fold_in(key, state.step), batch_size,
        scale=self.dataset.scale,
      )  # fmt: skip
      return training.step(state, batch, key)[0]

    return jax.lax.fori_loop(0, rounds, one_round, training.init(start)).params

  def whole(self):
    """The training examples of losses: all, or the first ones."""
    some = slice(self.settings.loss_examples or None)
    images = self.dataset.train_images[some] / np.float32(self.dataset.scale)
    return jnp.asarray(images), jnp.asarray(self.dataset.train_labels[some])

  def paths(self, a, b, key):
    """Losses on the three ways from a to b, [S, points] each."""
    batch = self.whole()
    matched = analysis.permute_units(b, analysis.match_permutation(a, b))
    keep = analysis.draw_units(key, a)
    paths = {
      'constructed': analysis.dropout_path(a, b, keep=keep),
      'straight': analysis.linear_path(a, b),
      'matched': analysis.linear_path(a, matched),
    }
    return {
      name: analysis.loss_along_path(
        path, lambda layers: self.loss(layers, batch),
        points_per_segment=self.settings.points,
      )
      for name, path in paths.items()
    }  # fmt: skip


def problem_of(settings, depth: int, scaling: str, width: int) -> Problem:
  dataset = load(settings.dataset, settings.data_dir)
  inputs = int(np.prod(dataset.train_images.shape[1:]))
  sizes = (inputs, *[width] * depth, dataset.num_classes)
  graphdef = models.split(models.MLP(sizes, rngs=nnx.Rngs(0)))[0]
  return Problem(settings, dataset, graphdef, sizes, scaling == 'mean-field')


def rises(paths: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """How far each way rises above its ends."""
  return {name: analysis.path_barrier(path) for name, path in paths.items()}


def excess(path: jax.Array) -> dict[str, jax.Array]:
  """By how much a way is above its breakpoints."""
  corners = jnp.maximum(path[:, 0].max(), path[-1, -1])
  return {'excess': path.max() - corners}


def of_width(problem: Problem, seeds):
  """Two solutions per seed: dropout stability of one, ways between both.

  Also the losses along the ways.
  """
  settings, batch = problem.settings, problem.whole()
  # One worker: rounds are plain SGD.
  everything = data.iid(problem.dataset.train_labels, 1)

  @jax.jit
  @jax.vmap
  def run(seed):
    *two, path_key, drop_key = jax.random.split(jax.random.key(seed), 4)

    def solution(key):
      return problem.train(
        problem.start(key), everything, jax.random.fold_in(key, 0),
        settings.rounds, settings.batch_size, aggregator=byzjax.mean(),
      )  # fmt: skip

    a, b = map(solution, two)
    paths = problem.paths(a, b, path_key)
    found = {'trained': problem.loss(a, batch)}
    found |= rises(paths) | excess(paths['constructed'])
    half = problem.width // 2
    for kept in sorted({half, *KEPT}):
      if kept < problem.width:
        stability = analysis.dropout_stability(
          lambda layers: problem.loss(layers, batch), a, num_kept=kept,
          num_draws=settings.num_draws, key=drop_key,
        )  # fmt: skip
        found[f'{kept} kept'] = stability.mean
    found['half kept'] = found[f'{half} kept']
    return found, paths

  found, paths = run(jnp.array(seeds))
  return {0: found}, paths


def of_attack(problem: Problem, seeds, variant: str):
  """Without attackers and a plain mean, and with attackers and a robust rule.

  The second from the start of the first one (0), and from another one (1).
  """
  settings, attack = problem.settings, ATTACKS[variant]()
  f, batch = settings.num_byzantine, problem.whole()
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.coordinate_median()
  )

  def run(partition, key):
    start_keys = jax.random.split(key)

    def train(start_key, **options):
      return problem.train(
        problem.start(start_key), partition, key, settings.attack_rounds,
        settings.worker_batch_size,
        worker=byzjax.worker_momentum(settings.momentum), **options,
      )  # fmt: skip

    free = train(start_keys[0], aggregator=byzjax.mean())

    def robust(start_key):
      many = f if attack else 0
      layers = train(start_key, aggregator=rule, attack=attack, byzantine=many)
      paths = problem.paths(free, layers, key)
      loss = {'trained': problem.loss(layers, batch)}
      return loss | rises(paths) | excess(paths['constructed'])

    return jax.vmap(robust)(start_keys)

  return of_workers(problem, seeds, run, 'iid', range(len(STARTS)))


def of_local(problem: Problem, seeds, variant: str):
  """Local models of all workers: ways within pairs, and the average of all."""
  settings, batch = problem.settings, problem.whole()

  def run(num_steps, partition, key):
    keys = jax.random.split(key, settings.num_workers)
    shards = jax.tree.map(lambda x: x[:, None], partition)

    def local(shard, worker_key):
      start = problem.start(key if variant == 'same' else worker_key)
      return problem.train(
        start, shard, jax.random.fold_in(worker_key, 0), num_steps,
        settings.worker_batch_size, aggregator=byzjax.mean(),
      )  # fmt: skip

    locals_ = jax.vmap(local)(shards, keys)
    pairs = len(keys) // 2
    ends = (
      jax.tree.map(lambda x: x[:pairs], locals_),
      jax.tree.map(lambda x: x[pairs : 2 * pairs], locals_),
    )
    paths = jax.vmap(problem.paths)(*ends, keys[:pairs])
    losses = jax.vmap(lambda layers: problem.loss(layers, batch))(locals_)
    found = {'trained': losses.mean()} | jax.tree.map(jnp.mean, rises(paths))
    # Of the mean curve of all pairs.
    found |= excess(paths['constructed'].mean(axis=0))
    first = jax.tree.map(lambda x: x[0], locals_)
    matched = jax.vmap(
      lambda layers: analysis.permute_units(
        layers, analysis.match_permutation(first, layers)
      )
    )(locals_)
    for what, many in (('average', locals_), ('matched average', matched)):
      loss = problem.loss(jax.tree.map(lambda x: x.mean(axis=0), many), batch)
      found[what] = loss - losses.mean()
    return found

  steps = settings.local_steps

  def run_all(partition, key):
    return jax.lax.map(lambda k: run(k, partition, key), jnp.array(steps))

  return of_workers(problem, seeds, run_all, settings.partition, steps)


def of_workers(problem: Problem, seeds, run, partition: str, counts):
  """What `run` finds, by start or number of steps, of all seeds."""
  labels, n = problem.dataset.train_labels, problem.settings.num_workers
  parts = [specs.partition(partition, labels, n, seed) for seed in seeds]
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  found = jax.jit(jax.vmap(run))(specs.stack(parts), keys)
  return {
    count: {name: x[:, i] for name, x in found.items()}
    for i, count in enumerate(counts)
  }
