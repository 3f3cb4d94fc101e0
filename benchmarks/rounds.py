r"""Time of a whole round as a multiple of its gradients alone.

  python -m benchmarks.rounds
  python -m benchmarks.rounds --model=cnn --worker_map=map

Both are programs of `rounds` steps in one `lax.scan`, on random 28 x 28 images.
"Gradients alone" computes the gradients of all workers and nothing else; a
round adds worker momentum, the ALIE attack, the rule, the server's step and the
diagnostics of `RoundInfo`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx

import byzjax
from benchmarks import timing
from byzjax import models

FLAGS = flags.FLAGS
flags.DEFINE_enum('model', 'mlp', ['mlp', 'cnn'], 'mlp is 784-128-10.')
flags.DEFINE_integer('num_workers', 16, 'n; f is n // 5.', 5)
flags.DEFINE_integer('batch_size', 32, 'Examples per worker.', 1)
flags.DEFINE_string('worker_map', 'vmap', 'vmap, map or a number of workers.')
flags.DEFINE_integer('rounds', 20, 'Rounds in one program.', 1)
flags.DEFINE_integer('repeats', 7, 'Repeats of each measurement.', 1)


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  n, f = FLAGS.num_workers, FLAGS.num_workers // 5
  worker_map = FLAGS.worker_map
  worker_map = int(worker_map) if worker_map.isdigit() else worker_map
  model: nnx.Module = models.MLP((784, 128, 10), rngs=nnx.Rngs(0))
  if FLAGS.model == 'cnn':
    model = models.make('cnn', (28, 28, 1), 10, seed=0)
  graphdef, params = models.split(model)
  loss_fn = models.cross_entropy_loss(graphdef)
  keys = jax.random.split(jax.random.key(0), 2)
  batch = (
    jax.random.uniform(keys[0], (n, FLAGS.batch_size, 28, 28, 1)),
    jax.random.randint(keys[1], (n, FLAGS.batch_size), 0, 10),
  )
  value_and_grad = jax.value_and_grad(loss_fn)

  def gradients_alone(params, batch):
    def gradients(params):
      if worker_map == 'vmap':
        return jax.vmap(value_and_grad, (None, 0))(params, batch)[1]
      return jax.lax.map(
        lambda one: value_and_grad(params, one)[1],
        batch,
        batch_size=None if worker_map == 'map' else worker_map,
      )

    def body(_, carry):
      params, grads = carry
      # The next gradients wait for these ones, which are carried in full: no
      # round can be left out, hoisted or cut down to what is read.
      nudge = 1e-20 * sum(g.reshape(-1)[0] for g in jax.tree.leaves(grads))
      params = jax.tree.map(lambda p: p + nudge, params)
      return params, gradients(params)

    grads = jax.tree.map(lambda p: jnp.zeros((n, *p.shape)), params)
    return jax.lax.fori_loop(0, FLAGS.rounds, body, (params, grads))

  def program(rule):
    training = byzjax.robust_round(
      loss_fn,
      aggregator=rule,
      optimizer=optax.sgd(0.1),
      num_workers=n,
      worker=byzjax.worker_momentum(0.9),
      attack=byzjax.alie(),
      byzantine=f,
      worker_map=worker_map,
    )

    def run(state, batch):
      def step(state, _):
        return training.step(state, batch, jax.random.key(0))

      return jax.lax.scan(step, state, length=FLAGS.rounds)

    return timing.compiled(run, training.init(params), batch)

  programs = {
    'gradients alone': timing.compiled(gradients_alone, params, batch),
    'mean': program(byzjax.mean()),
    'coordinate_median': program(byzjax.coordinate_median()),
    'trimmed_mean': program(byzjax.trimmed_mean(num_byzantine=f)),
    'centered_clipping': program(byzjax.centered_clipping(radius=1.0)),
    'krum': program(byzjax.krum(num_byzantine=f)),
    'geometric_median': program(byzjax.geometric_median()),
  }
  seconds = timing.interleaved(
    {name: call for name, (call, _, _) in programs.items()}, FLAGS.repeats
  )
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  print(
    f'{FLAGS.model}, {size} parameters, n={n}, batch {FLAGS.batch_size},'
    f' {FLAGS.worker_map}, {jax.default_backend()}, jax {jax.__version__}'
  )
  print(f'{"program":20} {"x gradients":>11} {"rounds/s":>9} {"compile":>9}')
  floor = seconds['gradients alone']
  for name, (_, compile_seconds, _) in programs.items():
    rate = FLAGS.rounds / np.median(seconds[name])
    print(
      f'{name:20} {timing.ratio(seconds[name], floor):11.2f} {rate:9.1f}'
      f' {compile_seconds:7.1f} s'
    )


if __name__ == '__main__':
  app.run(main)
