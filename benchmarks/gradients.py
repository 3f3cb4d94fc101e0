r"""Speed and memory of gradient estimators against backpropagation.

  python -m benchmarks.gradients
  python -m benchmarks.gradients --models=rnn --estimators=l2,entropy

One worker's estimate from one batch of random images, in one program. Time is
that of a call, as a ratio to backpropagation through the same model in that
repeat. Memory is what the program needs beside its arguments and its result,
the gradient, as the compiler plans it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import byzjax
from benchmarks import program, records, timing
from byzjax import models

NUM_CLASSES = 10
FLOOR = 'backpropagation'


@dataclasses.dataclass(frozen=True)
class Settings:
  models: tuple[str, ...] = program.option(
    ('mlp', 'cnn', 'rnn'), 'Of mlp, cnn and rnn.'
  )
  estimators: tuple[str, ...] = program.option(
    ('l2', 'l1', 'entropy', 'noisy'), 'Of ESTIMATORS.'
  )
  depths: tuple[int, ...] = program.option(
    (2, 4, 8, 16), 'Hidden layers of the MLP.'
  )
  lengths: tuple[int, ...] = program.option(
    (28, 112), 'Rows of the images of the RNN.'
  )
  width: int = program.option(128, 'Of hidden layers.')
  batch_size: int = program.option(512, 'Examples.')
  repeats: int = program.option(9, 'Repeats of each measurement.')
  seconds: float = program.option(1e9, 'Of repeating, at most.')


QUICK = Settings(('mlp',), depths=(2,), width=4, batch_size=4, repeats=1)


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
ESTIMATORS: dict[str, Callable] = {
  'entropy': entropy,
  'noisy': noisy,
  'l2': functools.partial(target_projection, 'l2'),
  'l1': functools.partial(target_projection, 'l1'),
  'drtp': functools.partial(target_projection, 'drtp'),
}


def backpropagation(graphdef):
  exact = jax.value_and_grad(models.cross_entropy_loss(graphdef))
  return lambda params, batch, key: exact(params, batch)


def cases(settings: Settings) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
  """`(name, model, image shape)`, all with tanh."""
  width, shape = settings.width, (28, 28, 1)
  for kind in settings.models:
    if kind == 'mlp':
      for depth in settings.depths:
        sizes = (784, *[width] * depth, NUM_CLASSES)
        mlp = models.MLP(sizes, activation=jnp.tanh, rngs=nnx.Rngs(0))
        yield f'mlp, depth {depth}', mlp, shape
    elif kind == 'cnn':
      cnn = models.CNN(
        shape, NUM_CLASSES, activation=jnp.tanh, rngs=nnx.Rngs(0)
      )
      yield 'cnn', cnn, shape
    elif kind == 'rnn':
      for length in settings.lengths:
        rnn = models.RNN((28, width, width, NUM_CLASSES), rngs=nnx.Rngs(0))
        yield f'rnn, length {length}', rnn, (length, 28, 1)
    else:
      raise ValueError(f'--models: {kind} is none of mlp, cnn, rnn')


def measure(settings: Settings) -> Iterator[records.Run]:
  all_cases = list(cases(settings))
  for name, model, shape in all_cases:
    yield _of_case(
      name, model, shape, settings, settings.seconds / len(all_cases)
    )


def _of_case(
  name: str,
  model: nnx.Module,
  shape: tuple[int, ...],
  settings: Settings,
  seconds: float,
) -> records.Run:
  keys = jax.random.split(jax.random.key(0), 3)
  graphdef, params = models.split(model)
  size = settings.batch_size
  batch = (
    jax.random.uniform(keys[0], (size, *shape)),
    jax.random.randint(keys[1], (size,), 0, NUM_CLASSES),
  )
  makers: dict[str, Callable] = {FLOOR: backpropagation}
  makers |= {k: ESTIMATORS[k] for k in settings.estimators}
  programs = {}
  for label, make in makers.items():
    estimator = make(graphdef)
    # An estimator is a tuple, which jit would not take.
    programs[label] = timing.compiled(
      lambda *args, estimator=estimator: estimator(*args),
      params,
      batch,
      keys[2],
    )
  times = timing.interleaved(
    {label: each.call for label, each in programs.items()},
    settings.repeats,
    seconds,
  )
  floor = programs[FLOOR].temporary_bytes
  values = {
    label: {
      'rate': 1 / min(times[label].wall),
      'temporary_bytes': each.temporary_bytes,
      'memory_ratio': each.temporary_bytes / floor if floor else None,
    }
    for label, each in programs.items()
  }
  return records.Run(
    f'{name}, batch {size}, width {settings.width}',
    FLOOR,
    records.figures(times, FLOOR, values),
  )


if __name__ == '__main__':
  program.run('gradients', Settings, QUICK, measure)
