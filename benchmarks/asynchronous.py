r"""Events per second of the asynchronous round against event loops.

  python -m benchmarks.asynchronous
  python -m benchmarks.asynchronous --num_workers=128
  python -m benchmarks.asynchronous --model=digits

The same messages, from workers of which one is ten times slower. Sequential SGD
does as many steps with no stale copies, in one program: the floor. The loops
are what a simulation of asynchronous training usually is: Python takes the next
event, computes the gradient at the parameters that this worker holds by a
compiled function, and updates the server's by another one, or both by one.
`asynchronous_round` does all events in one program. With a buffer, B = K // 2
places, a step is made when all places are filled.
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
from byzjax import asynchrony, models

FLAGS = flags.FLAGS
flags.DEFINE_enum(
  'model',
  'mlp',
  ['digits', 'mlp'],
  'mlp is 784-128-10 and digits is 64-32-10, on images of 8 x 8.',
)
flags.DEFINE_integer('num_workers', 16, 'K; f of the buffers is K // 8.', 8)
flags.DEFINE_integer('num_events', 400, 'Messages of a run.', 1)
flags.DEFINE_integer('batch_size', 32, 'Examples of a gradient.', 1)
flags.DEFINE_integer('repeats', 9, 'Repeats of each measurement.', 1)

LEARNING_RATE = 0.01


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  k, count, f = FLAGS.num_workers, FLAGS.num_events, FLAGS.num_workers // 8
  shape = (8, 8, 1) if FLAGS.model == 'digits' else (28, 28, 1)
  sizes = (64, 32, 10) if FLAGS.model == 'digits' else (784, 128, 10)
  graphdef, params = models.split(models.MLP(sizes, rngs=nnx.Rngs(0)))
  loss_fn = models.cross_entropy_loss(graphdef)
  keys = jax.random.split(jax.random.key(0), 2)
  batch = (
    jax.random.uniform(keys[0], (k, 4, FLAGS.batch_size, *shape)),
    jax.random.randint(keys[1], (k, 4, FLAGS.batch_size), 0, 10),
  )
  speeds = np.ones(k)
  speeds[-1] = 10.0
  events = asynchrony.simulate(speeds, num_events=count, variation=0.1)

  def moved(params, gradient):
    return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, gradient)

  def sequential(params, batch):
    def body(params, e):
      one = jax.tree.map(lambda x: x[e % k, (e // k) % 4], batch)
      return moved(params, jax.grad(loss_fn)(params, one)), None

    return jax.lax.scan(body, params, np.arange(count))[0]

  gradient_of = jax.jit(jax.grad(loss_fn))
  move = jax.jit(moved)

  @jax.jit
  def one_event(params, held, one):
    return moved(params, jax.grad(loss_fn)(held, one))

  images, labels = batch
  slices = [[(images[i, j], labels[i, j]) for j in range(4)] for i in range(k)]
  order = list(zip(events.worker.tolist(), events.progress.tolist()))

  def loop(update):
    held, w = [params] * k, params
    for worker, progress in order:
      w = update(w, held[worker], slices[worker][progress % 4])
      held[worker] = w
    return w

  floor = jax.jit(sequential)
  calls = {
    'sequential SGD': lambda: floor(params, batch),
    'loop over events': lambda: loop(
      lambda w, held, one: move(w, gradient_of(held, one))
    ),
    'loop over compiled events': lambda: loop(one_event),
  }
  buffer = asynchrony.by_worker(events, num_rows=k // 2)
  robust = dict(
    optimizer=optax.sgd(LEARNING_RATE),
    buffer=buffer,
    aggregator=byzjax.trimmed_mean(num_byzantine=f),
  )
  methods = {
    'SGD': dict(optimizer=optax.sgd(LEARNING_RATE)),
    'ordered momentum': dict(
      optimizer=byzjax.ordered_momentum(LEARNING_RATE, num_workers=k)
    ),
    'delayed Nesterov': dict(
      optimizer=byzjax.delayed_nesterov(LEARNING_RATE, num_buffered=k)
    ),
    'buffer, trimmed mean': robust,
    'the same, under ALIE': robust
    | dict(attack=byzjax.alie(z=1.5), byzantine=f),
  }
  for name, method in methods.items():
    training = byzjax.asynchronous_round(loss_fn, events=events, **method)

    @jax.jit
    def run(state, batch, step=training.step):
      def body(state, _):
        return step(state, batch, keys[0])[0], None

      return jax.lax.scan(body, state, length=count)[0].params

    state = training.init(params)
    calls[f'asynchronous_round, {name}'] = functools.partial(run, state, batch)
  # The loops and the round do the same.
  ends = [calls[c]() for c in ('loop over events', 'asynchronous_round, SGD')]
  apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), *ends)
  seconds = timing.interleaved(calls, FLAGS.repeats)
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  print(
    f'{FLAGS.model}, {size} parameters, K={k}, batch {FLAGS.batch_size},'
    f' {count} events, {jax.default_backend()}, jax {jax.__version__}'
  )
  print(f'{"program":42} {"x sequential":>12} {"events/s":>9}')
  for name in calls:
    rate = count / np.median(seconds[name])
    ratio = timing.ratio(seconds['sequential SGD'], seconds[name])
    print(f'{name:42} {ratio:12.2f} {rate:9.0f}')
  print(f'largest difference to the loop: {max(jax.tree.leaves(apart)):.1e}')


if __name__ == '__main__':
  app.run(main)
