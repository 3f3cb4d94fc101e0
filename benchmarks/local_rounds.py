r"""Rounds per second of the local round against loops over workers.

  python -m benchmarks.local_rounds
  python -m benchmarks.local_rounds --worker_map=map --num_devices=2
  python -m benchmarks.local_rounds --model=digits
  python -m benchmarks.local_rounds --model=cnn --worker_map=map

The same local SGD, batches of random images, four ways: a Python loop
over workers and steps that calls a compiled step, as FedAvg is usually written;
a Python loop over workers that calls their compiled local steps; these steps
alone for all workers in one program, without any server; and `local_round` with
a rule, a whole round in one program. The lengths of its rounds change from call
to call: they are all one executable. With --num_devices it is divided over so
many devices, on a CPU over so many threads.
"""

import functools
import math

import jax
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx

import byzjax
from benchmarks import timing
from byzjax import models

FLAGS = flags.FLAGS
flags.DEFINE_enum(
  'model',
  'mlp',
  ['digits', 'mlp', 'cnn'],
  'mlp is 784-128-10 and digits is 64-32-10, on images of 8 x 8.',
)
flags.DEFINE_integer('num_workers', 16, 'n; f is n // 5.', 5)
flags.DEFINE_integer('num_local_steps', 8, 'H.', 1)
flags.DEFINE_integer('batch_size', 32, 'Examples per step.', 1)
flags.DEFINE_string('worker_map', 'vmap', 'vmap, map or a number of workers.')
flags.DEFINE_integer('num_devices', 1, 'Devices of local_round.', 1)
flags.DEFINE_integer('repeats', 9, 'Repeats of each measurement.', 1)

LEARNING_RATE = 0.05


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_num_cpu_devices', FLAGS.num_devices)
  n, f, h = FLAGS.num_workers, FLAGS.num_workers // 5, FLAGS.num_local_steps
  worker_map = FLAGS.worker_map
  worker_map = int(worker_map) if worker_map.isdigit() else worker_map
  shape = (8, 8, 1) if FLAGS.model == 'digits' else (28, 28, 1)
  model: nnx.Module = models.MLP((784, 128, 10), rngs=nnx.Rngs(0))
  if FLAGS.model != 'mlp':
    kind = 'cnn' if FLAGS.model == 'cnn' else 'mlp'
    model = models.make(kind, shape, 10, seed=0)
  graphdef, params = models.split(model)
  loss_fn = models.cross_entropy_loss(graphdef)
  keys = jax.random.split(jax.random.key(0), 2)
  batch = (
    jax.random.uniform(keys[0], (n, h, FLAGS.batch_size, *shape)),
    jax.random.randint(keys[1], (n, h, FLAGS.batch_size), 0, 10),
  )

  def sgd_step(params, batch):
    gradient = jax.grad(loss_fn)(params, batch)
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)

  def steps(params, batch):
    def body(params, one):
      return sgd_step(params, one), None

    return jax.lax.scan(body, params, batch)[0]

  def of_all(params, batch):
    if worker_map == 'vmap':
      return jax.vmap(steps, (None, 0))(params, batch)
    size = None if worker_map == 'map' else worker_map
    return jax.lax.map(lambda b: steps(params, b), batch, batch_size=size)

  step_of_one, steps_of_one = jax.jit(sgd_step), jax.jit(steps)
  average = jax.jit(
    lambda rows: jax.tree.map(lambda *x: sum(x[1:], x[0]) / n, *rows)
  )
  images, labels = batch
  shards = list(zip(images, labels))
  slices = [list(zip(*shard)) for shard in shards]

  def loop_over_steps():
    ends = []
    for shard in slices:
      w = params
      for one in shard:
        w = step_of_one(w, one)
      ends.append(w)
    return average(ends)

  def loop_over_workers():
    return average([steps_of_one(params, shard) for shard in shards])

  alone = jax.jit(of_all)
  calls = {
    'loop over workers and steps': loop_over_steps,
    'loop over workers': loop_over_workers,
    'local steps alone': lambda: alone(params, batch),
  }
  mesh = None
  if FLAGS.num_devices > 1:
    mesh = jax.make_mesh((FLAGS.num_devices,), ('workers',))
  rules = {
    'mean': byzjax.mean(),
    'trimmed_mean': byzjax.trimmed_mean(num_byzantine=f),
    'krum': byzjax.krum(num_byzantine=f),
  }
  compilations: dict[str, int] = {}
  for name, rule in rules.items():
    training = byzjax.local_round(
      loss_fn,
      local_optimizer=optax.sgd(LEARNING_RATE),
      num_local_steps=lambda step: h - step % 2,
      local_state='reset',
      aggregator=rule,
      optimizer=optax.sgd(1.0),
      num_workers=n,
      attack=byzjax.alie(),
      byzantine=f,
      worker_map=worker_map,
      mesh=mesh,
    )

    def counted(*arguments, name=name, step=training.step):
      # Runs when it is traced, and never again.
      compilations[name] = compilations.get(name, 0) + 1
      return step(*arguments)

    step = jax.jit(counted)
    state = training.init(params)
    odd, _ = step(state, batch, keys[0])
    step(odd, batch, keys[0])  # H - 1 steps
    calls[f'local_round, {name}'] = functools.partial(
      step, state, batch, keys[0]
    )
  seconds = timing.interleaved(calls, FLAGS.repeats)
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  print(
    f'{FLAGS.model}, {size} parameters, n={n}, H={h}, batch'
    f' {FLAGS.batch_size}, {FLAGS.worker_map}, {FLAGS.num_devices} x'
    f' {jax.default_backend()}, jax'
    f' {jax.__version__}'
  )
  print(f'{"program":28} {"x steps alone":>13} {"rounds/s":>9}')
  floor = seconds['local steps alone']
  for name in calls:
    rate = 1 / np.median(seconds[name])
    print(f'{name:28} {timing.ratio(seconds[name], floor):13.2f} {rate:9.1f}')
  print(f'programs for H and H - 1 steps: {compilations}')


if __name__ == '__main__':
  app.run(main)
