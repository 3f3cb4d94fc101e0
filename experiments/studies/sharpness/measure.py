"""The runs of the study: sharpness along a trajectory, and training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax import flatten_util

import byzjax
from byzjax import analysis
from experiments import report
from experiments.sharpness import tasks

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(tasks)
flags.DEFINE_integer('batch_size', 16, 'Documents or images of a step.', 1)
flags.DEFINE_list('steps', '28,70,140', 'Where sharpness is measured.')
flags.DEFINE_list('fractions', '0,.001,.01,.05,.1,.25,.5', 'p, clipped.')
flags.DEFINE_integer('num_steps', 140, 'Of training.', 1)
flags.DEFINE_integer('attacked_steps', 70, 'Of training under attack.', 1)
flags.DEFINE_integer('num_workers', 10, 'n, under attack.', 1)
flags.DEFINE_integer('worker_batch_size', 4, 'Documents of a worker.', 1)
flags.DEFINE_integer('num_byzantine', 2, 'f, under attack.', 1)
flags.DEFINE_integer('num_evals', 7, 'Evaluations of a run.', 1)

MOMENTUM = byzjax.worker_momentum(0.9)
SIGN = optax.stateless(lambda u, _: jax.tree.map(jnp.sign, u))


@optax.stateless
def normalize_leaves(updates, params):
  """Every tensor to a root mean square of one."""
  del params
  return jax.tree.map(
    lambda u: u * jnp.sqrt(u.size) / jnp.maximum(optax.tree.norm(u), 1e-30),
    updates,
  )


METHODS = {
  'sgd': MOMENTUM,
  'sgd, clip 10%': optax.chain(byzjax.clip_coordinates(fraction=0.1), MOMENTUM),
  'adam': optax.scale_by_adam(),
  'adam, clip 50%': byzjax.scale_by_clipped_adam(fraction=0.5),
  'sign': optax.chain(MOMENTUM, SIGN),
  'normalised': optax.chain(normalize_leaves, MOMENTUM),
}
DISTANCES = np.geomspace(0.003, 10, 10)
# Of what is not measured in a cell.
NOTHING = {'candidate': '', 'sharpness': np.nan, 'gain': np.nan, 'held': np.nan}


class Cell(NamedTuple):
  """Of the tables: all seeds, and rates where there are several."""

  part: str
  task: str
  method: str
  rates: list[float]
  attack: str = 'none'
  rule: str = 'mean'

  @property
  def labels(self):
    rates = ' '.join(f'{rate:g}' for rate in self.rates)
    return {**self._asdict(), 'rates': rates}

  @property
  def name(self):
    return ', '.join(self.labels.values())


def move(params, update, rate):
  return jax.tree.map(lambda p, u: p - rate * u, params, update)


# Sharpness along a trajectory.


def cuts() -> dict[str, float]:
  """The clipped gradients by name."""
  return {f'p = {p}': float(p) for p in FLAGS.fractions}


def names() -> list[str]:
  """Of the directions: steps of methods, and clipped gradients."""
  return [*METHODS, *cuts()]


def advance(gradient, states, params):
  """The updates of all methods on this gradient, and their new states."""
  pairs = {
    name: tx.update(gradient, states[name], params)
    for name, tx in METHODS.items()
  }
  return tuple({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))


def directions(gradient, updates):
  """Of all names, leaves [k, ...]."""

  def clipped(p):
    return byzjax.clip_coordinates(fraction=p).update(gradient, ())[0]

  return jax.tree.map(
    lambda cut, *u: jnp.concatenate([jnp.stack(u), cut]),
    jax.vmap(clipped)(jnp.array([*cuts().values()])),
    *updates.values(),
  )


def held_by_largest(gradient) -> jax.Array:
  """The share of |g|^2 that the `floor(p D)` largest coordinates hold."""
  flat, _ = flatten_util.ravel_pytree(gradient)
  squares = jnp.sort(flat**2, descending=True)
  counts = [int(p * flat.size) for p in cuts().values()]
  return jnp.stack([squares[:n].sum() for n in counts]) / squares.sum()


def measure(task, params, gradient, vectors) -> dict[str, jax.Array]:
  """Columns float[k], on examples that nothing is trained on."""
  sharpness = jax.vmap(
    analysis.directional_sharpness(task.loss_fn), (None, None, 0)
  )(params, task.held_out, vectors)
  steps = jax.tree.map(lambda u: -u[: len(METHODS)], vectors)
  losses = jax.vmap(
    analysis.loss_along_direction(task.loss_fn), (None, None, 0, None)
  )(params, task.held_out, steps, jnp.asarray(DISTANCES))
  here = task.loss_fn(params, task.held_out)
  return {
    'loss': jnp.full(len(names()), here),
    'sharpness': sharpness,
    # Each is measured for some of the directions.
    'gain': jnp.pad(
      here - losses.min(axis=1),
      (0, len(cuts())),
      constant_values=jnp.nan,
    ),
    'held': jnp.pad(
      held_by_largest(gradient), (len(METHODS), 0), constant_values=jnp.nan
    ),
  }


def run_along(cell: Cell, seeds) -> report.Rows:
  """A row for every seed, step and direction."""
  task, (rate,) = tasks.task_of(cell.task), cell.rates
  stops = np.array([int(step) for step in FLAGS.steps])

  def run(params, key):
    def next_of(i, params, states):
      batch = task.batch(jax.random.fold_in(key, i), (FLAGS.batch_size,))
      gradient = jax.grad(task.loss_fn)(params, batch)
      return gradient, *advance(gradient, states, params)

    def step(i, carry):
      _, updates, states = next_of(i, *carry)
      return move(carry[0], updates[cell.method], rate), states

    def stretch(carry, ends):
      carry = jax.lax.fori_loop(ends[0], ends[1], step, carry)
      # Of the step that comes next.
      gradient, updates, _ = next_of(ends[1], *carry)
      vectors = directions(gradient, updates)
      return carry, measure(task, carry[0], gradient, vectors)

    start = {name: tx.init(params) for name, tx in METHODS.items()}
    ends = np.stack([np.append(0, stops[:-1]), stops], axis=1)
    return jax.lax.scan(stretch, (params, start), jnp.asarray(ends))[1]

  columns = jax.jit(jax.vmap(run))(*starts(task, seeds))
  return [
    {
      **cell.labels,
      'rate': rate,
      'seed': seed,
      'step': int(stop),
      'candidate': name,
      **{key: float(x[s, t, k]) for key, x in columns.items()},
    }
    for s, seed in enumerate(seeds)
    for t, stop in enumerate(stops)
    for k, name in enumerate(names())
  ]


# Training.


def starts(task: tasks.Task, seeds):
  params = jax.tree.map(lambda *x: jnp.stack(x), *map(task.params, seeds))
  return params, jax.vmap(jax.random.key)(jnp.array(seeds))


def run_training(cell: Cell, seeds) -> report.Rows:
  """A row for every evaluation of every seed and rate: one program."""
  task, tx = tasks.task_of(cell.task), METHODS[cell.method]
  attacked = cell.part == 'attack'
  length = FLAGS.attacked_steps if attacked else FLAGS.num_steps
  stops = np.linspace(0, length, FLAGS.num_evals + 1).astype(int)
  size = FLAGS.worker_batch_size if attacked else FLAGS.batch_size
  f, n = FLAGS.num_byzantine, FLAGS.num_workers if attacked else 1
  rule = byzjax.mean()
  if cell.rule != 'mean':
    rule = byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=f),
      byzjax.coordinate_median(),
    )

  def run(params, key, rate):
    training = byzjax.robust_round(
      task.loss_fn,
      num_workers=n,
      worker=tx,
      aggregator=rule,
      optimizer=optax.sgd(rate),
      attack=None if cell.attack == 'none' else byzjax.sign_flip(scale=5.0),
      byzantine=0 if cell.attack == 'none' else f,
    )

    def step(_, state):
      key_t = jax.random.fold_in(key, state.step)
      batch = task.batch(key_t, (n, size))
      return training.step(state, batch, key)[0]

    def stretch(state, ends):
      state = jax.lax.fori_loop(ends[0], ends[1], step, state)
      return state, task.loss_fn(state.params, task.seen)

    ends = jnp.asarray(np.stack([stops[:-1], stops[1:]], axis=1))
    return jax.lax.scan(stretch, training.init(params), ends)[1]

  over_rates = jax.vmap(run, (None, None, 0))
  losses = jax.jit(jax.vmap(over_rates, (0, 0, None)))(
    *starts(task, seeds), jnp.array(cell.rates)
  )
  return [
    {
      **cell.labels,
      'rate': rate,
      'seed': seed,
      'step': int(stop),
      **NOTHING,
      'loss': float(losses[s, r, t]),
    }
    for s, seed in enumerate(seeds)
    for r, rate in enumerate(cell.rates)
    for t, stop in enumerate(stops[1:])
  ]


def run_cell(cell: Cell, seeds) -> report.Rows:
  """The rows of a cell."""
  return (run_along if cell.part == 'along' else run_training)(cell, seeds)
