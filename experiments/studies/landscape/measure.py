"""Networks of a study's cell: trained, and the ways between them measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

import byzjax
from byzjax import analysis, data, models
from experiments import report, specs

FLAGS = flags.FLAGS
flags.DEFINE_integer('num_draws', 10, 'Of sets of units to keep.', 1)
flags.DEFINE_integer('points', 11, 'Per segment of a path.', 2)
flags.DEFINE_integer('rounds', 500, 'Rounds of training.', 1)
flags.DEFINE_integer('batch_size', 64, 'Examples per worker and round.', 1)
flags.DEFINE_float('learning_rate', 0.2, 'At the smallest width.', 0.0)
flags.DEFINE_integer('num_workers', 10, 'n, in the parts on workers.', 2)
flags.DEFINE_integer('num_byzantine', 2, 'f, of them.', 1)
flags.DEFINE_integer('worker_batch_size', 16, 'Examples there.', 1)
flags.DEFINE_float('momentum', 0.9, 'Of workers, where some attack.', 0.0)
flags.DEFINE_string(
  'partition', 'main_class(share=0.7)', 'Among workers with local models.'
)
flags.DEFINE_list('local_steps', '10,100,500', 'H, of the local models.')

BASE = 50  # The width at which mean-field scaling changes nothing.
KEPT = (25, 50, 100, 200, 400, 800)
ATTACKS: dict[str, Any] = {
  'none': lambda: None,
  'sign flip': lambda: byzjax.sign_flip(scale=3.0),
  'alie': lambda: byzjax.alie(z=1.5),  # Its own z is 0 for 2 of 10.
}
STARTS = ('same', 'own')


class Cell(NamedTuple):
  """Of a table: networks of one shape, all seeds."""

  part: str
  depth: int  # hidden layers
  scaling: str
  width: int
  variant: str = '-'

  @property
  def labels(self):
    return self._asdict()

  @property
  def name(self):
    return ', '.join(map(str, self))


def numbers(flag: str) -> list[int]:
  texts: list[str] = getattr(FLAGS, flag)
  return [int(text) for text in texts]


class Problem(NamedTuple):
  """The data, and networks of one shape on it."""

  cell: Cell
  dataset: data.Dataset
  graphdef: nnx.GraphDef

  def start(self, key):
    """Initial layers; mean-field ones above the first shrink faster."""
    shrink = np.sqrt(BASE / self.cell.width) if self.is_mean_field else 1.0
    sizes = sizes_of(self.cell, self.dataset)
    keys = jax.random.split(key, len(sizes) - 1)
    initial = jax.nn.initializers.lecun_normal()
    kernels = [initial(k, s) for k, s in zip(keys, zip(sizes, sizes[1:]))]
    return tuple(
      (kernel * (shrink if number else 1.0), jnp.zeros(kernel.shape[1]))
      for number, kernel in enumerate(kernels)
    )

  @property
  def is_mean_field(self) -> bool:
    return self.cell.scaling == 'mean-field'

  def optimizer(self):
    """SGD; in mean-field scaling units move as far whatever the width."""
    wide = self.cell.width / BASE if self.is_mean_field else 1.0
    middle = [(1.0, wide)] * (self.cell.depth - 1)
    factors = ((wide, wide), *middle, (1 / wide, 1.0))
    return optax.chain(
      optax.stateless(lambda g, _: jax.tree.map(jnp.multiply, g, factors)),
      optax.sgd(FLAGS.learning_rate),
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
        jnp.asarray(self.dataset.train_labels),
        partition,
        jax.random.fold_in(key, state.step),
        batch_size,
        scale=self.dataset.scale,
      )
      return training.step(state, batch, key)[0]

    return jax.lax.fori_loop(0, rounds, one_round, training.init(start)).params

  def whole(self):
    """All training examples."""
    images = self.dataset.train_images / np.float32(self.dataset.scale)
    return jnp.asarray(images), jnp.asarray(self.dataset.train_labels)

  def paths(self, a, b, key):
    """Losses on the three ways from a to b, [S, points] each."""
    batch = self.whole()
    matched = analysis.permute_units(b, analysis.match_permutation(a, b))
    keep = analysis.draw_units(key, a)
    return {
      name: analysis.loss_along_path(
        path,
        lambda layers: self.loss(layers, batch),
        points_per_segment=FLAGS.points,
      )
      for name, path in {
        'constructed': analysis.dropout_path(a, b, keep=keep),
        'straight': analysis.linear_path(a, b),
        'matched': analysis.linear_path(a, matched),
      }.items()
    }


def sizes_of(cell: Cell, dataset: data.Dataset) -> tuple[int, ...]:
  inputs = int(np.prod(dataset.train_images.shape[1:]))
  return (inputs, *[cell.width] * cell.depth, dataset.num_classes)


def run_cell(cell: Cell, seeds) -> report.Rows:
  """Rows of all seeds: a loss, and what it is above, by what was measured."""
  dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
  model = models.MLP(sizes_of(cell, dataset), rngs=nnx.Rngs(0))
  problem = Problem(cell, dataset, models.split(model)[0])
  of_part = {'width': of_width, 'attack': of_attack, 'local': of_local}
  losses = of_part[cell.part](problem, seeds)

  def row(seed, what, count, loss, above, curve=()):
    text = ' '.join(f'{x:.7g}' for x in np.ravel(curve))
    return {
      **cell.labels, 'seed': seed, 'what': what, 'count': count,
      'loss': float(loss), 'above': float(above), 'curve': text or '-',
    }  # fmt: skip

  rows = []
  for i, seed in enumerate(seeds):
    for (what, count), values in losses.items():
      rows.append(row(seed, what, count, *(np.asarray(v)[i] for v in values)))
  return rows


def summary(paths: dict[str, jax.Array]) -> dict[tuple[str, int], tuple]:
  """The highest loss on each way, how far that is above the ends, and all."""
  return {
    (name, 0): (losses.max((-2, -1)), analysis.path_barrier(losses), losses)
    for name, losses in paths.items()
  }


def of_width(problem: Problem, seeds):
  """Two solutions per seed: dropout stability of one, ways between both."""
  cell, batch = problem.cell, problem.whole()
  # One worker: rounds are plain SGD.
  everything = data.iid(problem.dataset.train_labels, 1)

  @jax.jit
  @jax.vmap
  def run(seed):
    *two, path_key, drop_key = jax.random.split(jax.random.key(seed), 4)

    def solution(key):
      return problem.train(
        problem.start(key),
        everything,
        jax.random.fold_in(key, 0),
        FLAGS.rounds,
        FLAGS.batch_size,
        aggregator=byzjax.mean(),
      )

    a, b = map(solution, two)
    losses = summary(problem.paths(a, b, path_key))
    loss = problem.loss(a, batch)
    losses['trained', 0] = (loss, loss)
    for kept in sorted({cell.width // 2, *KEPT}):
      if kept < cell.width:
        stability = analysis.dropout_stability(
          lambda layers: problem.loss(layers, batch),
          a,
          num_kept=kept,
          num_draws=FLAGS.num_draws,
          key=drop_key,
        )
        losses['dropped', kept] = (stability.dropped.mean(), stability.mean)
    return losses

  return run(jnp.array(seeds))


def of_attack(problem: Problem, seeds):
  """Without attackers and a plain mean, and with attackers and a robust rule.

  The second from the start of the first one (0), and from another one (1).
  """
  f, attack = FLAGS.num_byzantine, ATTACKS[problem.cell.variant]()
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.coordinate_median()
  )

  def run(partition, key):
    start_keys = jax.random.split(key)

    def train(start_key, **options):
      return problem.train(
        problem.start(start_key),
        partition,
        key,
        FLAGS.rounds,
        FLAGS.worker_batch_size,
        worker=byzjax.worker_momentum(FLAGS.momentum),
        **options,
      )

    free = train(start_keys[0], aggregator=byzjax.mean())

    def robust(start_key):
      robust_layers = train(
        start_key,
        aggregator=rule,
        attack=attack,
        byzantine=f if attack else 0,
      )
      loss = problem.loss(robust_layers, problem.whole())
      return problem.paths(free, robust_layers, key), loss

    paths, losses = jax.vmap(robust)(start_keys)
    of_paths = {
      (what, i): tuple(x[i] for x in values)
      for (what, _), values in summary(paths).items()
      for i in range(len(STARTS))
    }
    loss = problem.loss(free, problem.whole())
    rises = {('trained', i): (x, x - loss) for i, x in enumerate(losses)}
    return of_paths | rises

  return of_workers(problem, seeds, run, 'iid')


def of_local(problem: Problem, seeds):
  """Local models of all workers: ways within pairs, and the average of all."""
  batch, steps = problem.whole(), numbers('local_steps')

  def run(num_steps, partition, key):
    keys = jax.random.split(key, FLAGS.num_workers)
    shards = jax.tree.map(lambda x: x[:, None], partition)

    def local(shard, worker_key):
      is_same = problem.cell.variant == 'same'
      return problem.train(
        problem.start(key if is_same else worker_key),
        shard,
        jax.random.fold_in(worker_key, 0),
        num_steps,
        FLAGS.worker_batch_size,
        aggregator=byzjax.mean(),
      )

    locals_ = jax.vmap(local)(shards, keys)
    pairs = len(keys) // 2
    ends = (
      jax.tree.map(lambda x: x[:pairs], locals_),
      jax.tree.map(lambda x: x[pairs : 2 * pairs], locals_),
    )
    paths = jax.vmap(problem.paths)(*ends, keys[:pairs])
    losses_of = {
      what: tuple(x.mean(axis=0) for x in values)
      for what, values in summary(paths).items()
    }
    losses = jax.vmap(lambda layers: problem.loss(layers, batch))(locals_)
    losses_of['trained', 0] = (losses.mean(), losses.mean())
    first = jax.tree.map(lambda x: x[0], locals_)
    matched = jax.vmap(
      lambda layers: analysis.permute_units(
        layers, analysis.match_permutation(first, layers)
      )
    )(locals_)
    for what, many in (('average', locals_), ('matched average', matched)):
      loss = problem.loss(jax.tree.map(lambda x: x.mean(axis=0), many), batch)
      losses_of[what, 0] = (loss, loss - losses.mean())
    return losses_of

  def run_all(partition, key):
    by_number = jax.lax.map(
      lambda num_steps: run(num_steps, partition, key), jnp.array(steps)
    )
    return {
      (what, number): tuple(x[i] for x in values)
      for (what, _), values in by_number.items()
      for i, number in enumerate(steps)
    }

  return of_workers(problem, seeds, run_all, FLAGS.partition)


def of_workers(problem: Problem, seeds, run, partition: str):
  labels = problem.dataset.train_labels
  parts = [
    specs.partition(partition, labels, FLAGS.num_workers, seed)
    for seed in seeds
  ]
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  return jax.jit(jax.vmap(run))(specs.stack(parts), keys)
