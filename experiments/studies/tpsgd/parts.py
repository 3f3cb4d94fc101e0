"""Networks, estimators and optimizers of the study, of all its variants."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import byzjax
from byzjax import models

from ...harness.cells import Task

# Fields of the stages of a convolutional and of a recurrent network.
PLACES: dict[str, dict[str, Any]] = {
  '': {},
  'pixels': {},
  'pools': {'targets_after': True},
  'readout': {'targets_after': True, 'readout': 64},
  'every step': {},
  'last step': {'last_step': True},
  'through time': {'last_step': True, 'through_time': True},
}


def network(
  width: int, name: str, shape, num_classes: int, seed: int
) -> nnx.Module:
  kind, *depth = name.split()
  rngs = nnx.Rngs(seed)
  if kind == 'cnn':
    return models.CNN(shape, num_classes, activation=jnp.tanh, rngs=rngs)
  if kind == 'rnn':
    steps = math.prod(shape[1:])  # A row of the image.
    return models.RNN((steps, width, width, num_classes), rngs=rngs)
  sizes = (math.prod(shape), *[width] * int(depth[0]), num_classes)
  return models.MLP(sizes, activation=jnp.tanh, rngs=rngs)


def placed(stages, place: str):
  """The stages with their targets there; dense layers as they are."""
  return [
    stage._replace(**PLACES[place])
    if isinstance(stage, byzjax.RecurrentStage) or stage.after is not None
    else stage
    for stage in stages
  ]


def estimator(task: Task, method: str, scale: float, place: str = ''):
  """What stands for the gradient; None is the gradient."""
  if method in ('bp', 'frozen'):
    return None
  is_drtp = method == 'drtp'
  return byzjax.target_projection(
    placed(models.stages(task.graphdef), place),
    num_classes=task.num_classes,
    projection_key=jax.random.key(0),
    residual=method,
    projection='he_uniform' if is_drtp else 'signs',
    scale=1.0 if is_drtp else scale,
  )


def optimizer(
  task: Task,
  learning_rate,
  share,
  of_conv=1.0,
  schedule: Callable = lambda rate: rate,
) -> optax.GradientTransformation:
  """SGD: a rate for the last layer, a share of it for hidden layers.

  Convolutions have `of_conv` times the rate of hidden layers.
  """
  last = models.stages(task.graphdef)[-1]

  def labels(params):
    leaves, treedef = jax.tree.flatten(params)
    places = jax.tree.unflatten(treedef, range(len(leaves)))
    outer = jax.tree.leaves(last.owns(places))

    def name(path, place):
      if place in outer:
        return 'last'
      return 'conv' if 'conv' in jax.tree_util.keystr(path) else 'hidden'

    return jax.tree.map_with_path(name, places)

  rates = {
    'last': learning_rate,
    'hidden': share * learning_rate,
    'conv': of_conv * share * learning_rate,
  }
  return optax.partition(
    {k: optax.sgd(schedule(v)) for k, v in rates.items()}, labels
  )
