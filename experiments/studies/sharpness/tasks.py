"""What is learned: the next character of a text, and handwritten digits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from byzjax import data, models
from experiments import language

FLAGS = flags.FLAGS
flags.DEFINE_string('text', 'sonnets', 'sonnets, or a text of --data_dir.')
flags.DEFINE_integer('width', 32, 'Of the transformer.', 1)

CONTEXT = 32


class Task(NamedTuple):
  """What is learned."""

  params: Callable[[int], Any]  # of a seed
  loss_fn: Callable
  examples: Any  # leaves [N, ...], to train on
  seen: Any  # some of them, where the training loss is measured
  held_out: Any  # where sharpness is measured

  def batch(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Random examples, leaves `[*shape, ...]`."""
    count = len(jax.tree.leaves(self.examples)[0])
    chosen = jax.random.randint(key, shape, 0, count)
    return jax.tree.map(lambda x: x[chosen], self.examples)


def text() -> Task:
  task = language.language(
    FLAGS.text, FLAGS.data_dir, length=CONTEXT, width=FLAGS.width
  )
  documents = jnp.asarray(task.documents)
  return Task(
    task.params,
    task.loss_fn,
    documents,
    documents[::2],
    task.held_out[:64],
  )


def digits() -> Task:
  dataset = data.load('digits')
  shape = dataset.train_images.shape[1:]

  def model(seed):
    return models.split(
      models.make('cnn', shape, dataset.num_classes, seed=seed)
    )

  def of(images, labels):
    return jnp.asarray(images / dataset.scale, jnp.float32), jnp.asarray(labels)

  examples = of(dataset.train_images, dataset.train_labels)
  return Task(
    lambda seed: model(seed)[1],
    models.cross_entropy_loss(model(0)[0]),
    examples,
    jax.tree.map(lambda x: x[:256], examples),
    of(dataset.test_images[:64], dataset.test_labels[:64]),
  )


@functools.cache
def task_of(name: str) -> Task:
  return {'transformer': text, 'cnn': digits}[name]()
