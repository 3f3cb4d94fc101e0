r"""Convex training of two-layer ReLU networks (Bai, Gautam, Sojoudi).

  python -m experiments.convex.run --check                        # digits
  python -m experiments.convex.run --dataset=cifar10 --data_dir=FOLDER --pool=4

A network is trained by ADMM on the convex program of sampled arrangements, by
the sampled convex program, and by gradients on the objective that is not
convex, with the same weight decay: in the plane, where most arrangements can
be sampled, and on two classes of images. Then against inputs in a box, in
the plane (with a picture) and on images. Then by ten workers of which some
attack, with the mean or a robust rule, where the optimum is known.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import byzjax
from byzjax import convex, data
from experiments import report, study
from experiments.convex import methods, tables

FLAGS = flags.FLAGS
flags.DEFINE_list('classes', '3,8', 'The two classes.')
flags.DEFINE_integer('num_examples', 240, 'Training examples of both.', 10)
flags.DEFINE_integer('pool', 2, 'Side of the squares that are averaged.', 1)
flags.DEFINE_integer('num_samples', 40, 'Arrangements that are drawn.', 1)
flags.DEFINE_integer('plane_samples', 3000, 'In the plane.', 1)
flags.DEFINE_integer('num_iterations', 4000, 'Of ADMM; in the plane 3 x.', 101)
flags.DEFINE_integer('num_steps', 3000, 'Of gradient descent.', 1)
flags.DEFINE_float('beta', 0.5, 'Weight decay, squared loss.', 0.0)
flags.DEFINE_float('plane_beta', 0.1, 'The same in the plane.', 0.0)
flags.DEFINE_float('workers_beta', 5.0, 'The same for workers.', 0.0)
flags.DEFINE_float('hinge_beta', 0.002, 'Weight decay, hinge loss.', 0.0)
flags.DEFINE_float('epsilon', 0.08, 'Half the side of the box; pixels 0 to 1.')
flags.DEFINE_float('toy_epsilon', 0.3, 'Of the box in the plane.', 0.0)
flags.DEFINE_list('rates', '0.003,0.01,0.03', 'Of gradient descent.')
flags.DEFINE_integer('num_workers', 10, 'n, in the last part.', 3)
flags.DEFINE_integer('num_byzantine', 2, 'f of them.', 0)

BOXED = ('sgd', 'sgd on pgd', 'convex', 'convex robust')
ATTACKS = {
  'none': None,
  'sign flip': byzjax.sign_flip(scale=3.0),
  'alie': byzjax.alie(z=1.5),
}
RULES = {
  'mean': lambda f: byzjax.mean(),
  'geometric median': lambda f: byzjax.geometric_median(),
  'trimmed mean': lambda f: byzjax.trimmed_mean(num_byzantine=f),
  'nnm, geometric median': lambda f: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=f), byzjax.geometric_median()
  ),
}


class Cell(NamedTuple):
  """One method of one part."""

  part: str
  method: str
  attack: str = 'none'

  @property
  def labels(self):
    return self._asdict()

  @property
  def name(self):
    return ', '.join(self)


def cells() -> list[Cell]:
  in_plane = ('convex', 'adam', 'sgd')
  on_images = ('convex', 'sampled', 'adam', 'sgd', 'adam, then convex')
  return [
    *(Cell('plane', method) for method in in_plane),
    *(Cell('images', method) for method in on_images),
    *(Cell(part, method) for part in ('toy', 'box') for method in BOXED),
    *(Cell('workers', rule, attack) for attack in ATTACKS for rule in RULES),
  ]


@functools.cache
def split() -> methods.Split:
  first, second = (int(c) for c in FLAGS.classes)
  return methods.two_classes(
    data.load(FLAGS.dataset, FLAGS.data_dir),
    (first, second),
    FLAGS.num_examples,
    FLAGS.pool,
  )


def descended(
  seed: int, x, y, *, loss, beta, scale=1.0, epsilon=0.0, **options
) -> convex.Network:
  """By gradients, at the rate with the least objective in training."""
  rates = scale * jnp.array(study.floats('rates'))
  networks = jax.jit(
    jax.vmap(
      lambda rate: methods.by_gradients(
        x, y, jax.random.key(seed), rate, loss=loss, beta=beta,
        num_units=2 * FLAGS.num_samples, num_steps=FLAGS.num_steps,
        epsilon=epsilon, **options,
      )
    )
  )(rates)  # fmt: skip

  def value(network):
    inputs = x
    if epsilon:
      inputs = methods.moved(network, x, y, epsilon=epsilon, num_steps=10)
    return convex.network_objective(network, inputs, y, beta=beta, loss=loss)

  best = jnp.nanargmin(jax.vmap(value)(networks))
  return jax.tree.map(lambda leaf: leaf[best], networks)


def train(cell: Cell, seed: int) -> dict:
  """On the squared loss; in the plane the data are the same for all seeds."""
  key, more, beta = jax.random.key(seed), {}, FLAGS.beta
  num_samples, num_iterations = FLAGS.num_samples, FLAGS.num_iterations
  if cell.part == 'plane':
    x, y = methods.toy(20, jax.random.key(0))
    test, beta = (x, y), FLAGS.plane_beta
    num_samples, num_iterations = FLAGS.plane_samples, 3 * num_iterations
  else:
    x, y, *rest = split()
    test = rest[0], rest[1]
  if cell.method == 'sampled':
    vectors = jax.random.normal(key, (FLAGS.num_examples, x.shape[1]))
    solution, _ = convex.sampled_program(
      x, y, vectors, beta=beta, rho=1.0, dual_ratio=1.6,
      num_iterations=FLAGS.num_iterations, record_every=FLAGS.num_iterations,
    )  # fmt: skip
    network = convex.sampled_network(solution.weights, vectors)
  elif cell.method == 'sgd':
    network = descended(
      seed, x, y, loss='squared', beta=beta, momentum=0.9, batch_size=32,
      scale=0.1,
    )  # fmt: skip
  elif cell.method == 'adam':
    network = descended(seed, x, y, loss='squared', beta=beta)
  else:
    patterns = methods.patterns(x, num_samples, key)
    if cell.method == 'adam, then convex':
      start = descended(seed, x, y, loss='squared', beta=beta)
      patterns = np.unique(convex.arrangements(x, start.hidden.T), axis=0)
    state, done = None, 0
    for stop in (*tables.EARLY, num_iterations):
      state, history = convex.admm(
        x, y, patterns, beta=beta, rho=0.1, dual_ratio=1.6,
        num_iterations=stop - done, record_every=stop - done, state=state,
      )  # fmt: skip
      network, done = convex.recover_network(state.blocks), stop
      at = f'after {stop if stop in tables.EARLY else "end"}'
      more[at] = methods.accuracy(network, *test)
    more |= {
      'patterns': len(patterns),
      'program': history.objective[-1],
      'violation': history.violation[-1],
    }
  return more | {
    'objective': convex.network_objective(network, x, y, beta=beta),
    'accuracy': methods.accuracy(network, *test),
  }


def boxed(part: str, method: str, seed: int):
  """On the hinge loss: the network, what it is tested on, and the box."""
  key = jax.random.key(seed)
  if part == 'toy':
    x, y = methods.toy(40, jax.random.fold_in(key, 0))
    test = methods.toy(400, jax.random.fold_in(key, 1))
    epsilon = FLAGS.toy_epsilon
  else:
    x, y, *rest = split()
    test = rest[0], rest[1]
    epsilon = FLAGS.epsilon
  if method.startswith('sgd'):
    network = descended(
      seed, x, y, loss='hinge', beta=FLAGS.hinge_beta, momentum=0.9,
      batch_size=32, epsilon=epsilon if method.endswith('pgd') else 0.0,
    )  # fmt: skip
    return network, test, epsilon
  patterns = methods.patterns(
    x, FLAGS.num_samples // 2, key, epsilon=methods.sides(x, epsilon),
    num_perturbations=1,
  )  # fmt: skip
  state, _ = convex.robust_admm(
    x, y, patterns, beta=FLAGS.hinge_beta, rho=0.003, dual_ratio=1.6,
    epsilon=methods.sides(x, epsilon if method.endswith('robust') else 0.0),
    num_iterations=FLAGS.num_iterations // 2,
    record_every=FLAGS.num_iterations // 2,
  )  # fmt: skip
  return convex.recover_network(state.blocks), test, epsilon


def share(cell: Cell, seed: int) -> dict:
  """By workers, on the squared loss: the value over that of the optimum."""
  s, n, beta = split(), FLAGS.num_workers, FLAGS.workers_beta
  order = jax.random.permutation(jax.random.key(seed), len(s.y))
  order = order[: len(order) // n * n].reshape(n, -1)
  x, y = s.x[order], s.y[order]
  flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1)
  vectors = jax.random.normal(
    jax.random.key(seed), (FLAGS.num_samples // 4, x.shape[-1])
  )
  # The unit of the bias: all examples are active.
  vectors = jnp.concatenate([vectors, jnp.eye(x.shape[-1])[-1:]])
  optimum, _ = convex.admm(
    flat_x, flat_y, convex.arrangements(flat_x, vectors), beta=beta, rho=1.0,
    dual_ratio=1.6, num_iterations=FLAGS.num_iterations,
    record_every=FLAGS.num_iterations,
  )  # fmt: skip
  attack = ATTACKS[cell.attack]
  state, history = convex.consensus_admm(
    x, y, jax.vmap(convex.arrangements, (0, None))(x, vectors), beta=beta,
    rho=1.0, num_iterations=FLAGS.num_iterations // 4,
    record_every=FLAGS.num_iterations // 4,
    aggregator=RULES[cell.method](FLAGS.num_byzantine),
    attack=attack, byzantine=FLAGS.num_byzantine if attack else 0,
  )  # fmt: skip

  def value(network):
    return convex.network_objective(network, flat_x, flat_y, beta=beta)

  network = convex.recover_network(state.blocks)
  least = value(convex.recover_network(optimum.blocks))
  return {
    'accuracy': methods.accuracy(network, s.test_x, s.test_y),
    'excess': 100 * (value(network) / least - 1),
    'residual': history.primal_residual[-1],
  }


def run_cell(cell: Cell, seeds) -> report.Rows:
  """A row for every seed."""
  rows = []
  for seed in seeds:
    if cell.part in ('toy', 'box'):
      network, test, epsilon = boxed(cell.part, cell.method, seed)
      measured = methods.attacked_accuracies(network, test[0], test[1], epsilon)
    else:
      measured = (share if cell.part == 'workers' else train)(cell, seed)
    numbers = {k: float(measured.get(k, np.nan)) for k in tables.COLUMNS}
    rows.append({**cell.labels, 'seed': seed, **numbers})
  return rows


def main(argv):
  del argv
  jax.config.update('jax_enable_x64', True)
  folder, rows = study.run('convex', cells, run_cell)
  if FLAGS.only:
    return  # Tables and claims are about all cells.
  results = tables.collect(rows)
  tables.show(results)
  x, y = methods.toy(40, jax.random.fold_in(jax.random.key(0), 0))
  networks = {name: boxed('toy', name, 0)[0] for name in BOXED}
  tables.picture(networks, x, y, FLAGS.toy_epsilon, folder / 'convex.png')
  # Where the units of the certified network bend.
  for method in ('convex', 'convex robust'):
    network = boxed('box', method, 0)[0]
    active = split().x @ network.hidden > 0
    used = jnp.linalg.norm(network.hidden, axis=0) > 0
    bent = used & ~active.all(axis=0)
    print(f'box, {method}: of {used.sum()} units {bent.sum()} bend on the data')
  study.finish(tables.claims(results))


if __name__ == '__main__':
  app.run(main)
