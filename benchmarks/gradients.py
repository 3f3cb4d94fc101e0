r"""Speed and memory of gradient estimators against backpropagation.

  python -m benchmarks.gradients
  python -m benchmarks.gradients --models=mlp --batch_size=512
  python -m benchmarks.gradients --models=rnn --estimators=l2

One worker's estimate from one batch of random images, in one program. Time is
that of a call, as a ratio to backpropagation through the same model in that
repeat. Memory is what the program needs beside its arguments and its result,
the gradient, as the compiler plans it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx

import byzjax
from benchmarks import timing
from byzjax import models

FLAGS = flags.FLAGS
flags.DEFINE_list('models', 'mlp,cnn,rnn', 'Which of them.')
flags.DEFINE_list('estimators', 'l2,l1,entropy,noisy', 'Of ESTIMATORS.')
flags.DEFINE_list('depths', '2,4,8,16', 'Hidden layers of the MLP.')
flags.DEFINE_list('lengths', '28,112', 'Rows of the images of the RNN.')
flags.DEFINE_integer('width', 128, 'Of hidden layers.', 1)
flags.DEFINE_integer('batch_size', 512, 'Examples.', 1)
flags.DEFINE_integer('repeats', 15, 'Repeats of each measurement.', 1)

NUM_CLASSES = 10


def target_projection(residual, graphdef):
  return byzjax.target_projection(
    models.stages(graphdef),
    num_classes=NUM_CLASSES,
    projection_key=jax.random.key(1),
    residual=residual,
  )


def entropy(graphdef):
  """A walk of four steps, on a quarter of the batch each."""
  estimator = byzjax.entropy_gradient(
    models.cross_entropy_loss(graphdef), num_steps=4, gamma=0.03
  )

  def estimate(params, batch, key):
    slices = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
    return estimator(params, slices, key)

  return estimate


def noisy(graphdef):
  """Backpropagation of the noisy softmax."""
  features, _ = models.features_and_classifier(graphdef)
  objective = byzjax.objectives.noisy_softmax(
    features, models.classifier_weights(graphdef), alpha=0.3
  )

  def estimate(params, batch, key):
    context = byzjax.LocalContext(params, key, jnp.zeros([], jnp.int32))
    return jax.value_and_grad(objective.loss)(params, batch, context)

  return estimate


# `graphdef -> (params, batch, key) -> (loss, gradient)`
ESTIMATORS = {
  'entropy': entropy,
  'noisy': noisy,
  'l2': functools.partial(target_projection, 'l2'),
  'l1': functools.partial(target_projection, 'l1'),
  'drtp': functools.partial(target_projection, 'drtp'),
}


def backpropagation(graphdef):
  exact = jax.value_and_grad(models.cross_entropy_loss(graphdef))
  return lambda params, batch, key: exact(params, batch)


def cases():
  """`(name, model, image shape)`, all with tanh."""
  width = FLAGS.width
  for kind in FLAGS.models:
    if kind == 'mlp':
      for depth in map(int, FLAGS.depths):
        sizes = (784, *[width] * depth, NUM_CLASSES)
        mlp = models.MLP(sizes, activation=jnp.tanh, rngs=nnx.Rngs(0))
        yield f'mlp, depth {depth}', mlp, (28, 28, 1)
    elif kind == 'cnn':
      shape = (28, 28, 1)
      yield (
        'cnn',
        models.CNN(shape, NUM_CLASSES, activation=jnp.tanh, rngs=nnx.Rngs(0)),
        shape,
      )
    elif kind == 'rnn':
      for length in map(int, FLAGS.lengths):
        rnn = models.RNN((28, width, width, NUM_CLASSES), rngs=nnx.Rngs(0))
        yield f'rnn, length {length}', rnn, (length, 28, 1)
    else:
      raise app.UsageError(f'--models: {kind} is none of mlp, cnn, rnn')


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)
  print(
    f'batch {FLAGS.batch_size}, width {FLAGS.width},'
    f' {jax.default_backend()}, jax {jax.__version__}'
  )
  print(
    f'{"model":16} {"estimator":16} {"x time":>7} {"calls/s":>8}'
    f' {"x memory":>9} {"MiB":>7}'
  )
  keys = jax.random.split(jax.random.key(0), 3)
  for name, model, shape in cases():
    graphdef, params = models.split(model)
    batch = (
      jax.random.uniform(keys[0], (FLAGS.batch_size, *shape)),
      jax.random.randint(keys[1], (FLAGS.batch_size,), 0, NUM_CLASSES),
    )
    programs, memory = {}, {}
    makers = {'backpropagation': backpropagation}
    makers |= {k: ESTIMATORS[k] for k in FLAGS.estimators}
    for label, make in makers.items():
      estimator = make(graphdef)
      # An estimator is a tuple, which jit would not take.
      programs[label], _, memory[label] = timing.compiled(
        lambda *args, estimator=estimator: estimator(*args),
        params,
        batch,
        keys[2],
      )
    seconds = timing.interleaved(programs, FLAGS.repeats)
    floor = 'backpropagation'
    for label in programs:
      time = timing.ratio(seconds[label], seconds[floor])
      print(
        f'{name:16} {label:16} {time:7.2f}'
        f' {1 / np.median(seconds[label]):8.1f}'
        f' {memory[label] / memory[floor]:9.2f} {memory[label] / 2**20:7.2f}'
      )


if __name__ == '__main__':
  app.run(main)
