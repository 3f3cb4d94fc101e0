"""What clients have: images at angles, a network, and an objective."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from byzjax import data, models, objectives

ANGLES = tuple(range(0, 150, 15))


def rotated(images, partition, seed: int) -> jax.Array:
  """Training images at angles of their worker, others at any of the angles."""
  if partition is None:
    rng = np.random.default_rng(seed)
    angles = rng.choice(np.array(ANGLES, np.float32), len(images))
  else:
    angles = data.rotation_shift(
      partition, ANGLES, concentration=1.0, num_examples=len(images), seed=seed
    )
  return data.rotate(jnp.asarray(images, jnp.float32), jnp.asarray(angles))


def network(model: str, hidden: int, shape, num_classes: int, seed: int):
  """The network that is trained, for images of one shape."""
  if not hidden:
    return models.make(model, shape, num_classes, seed=seed)
  sizes = math.prod(shape), hidden, num_classes
  return models.MLP(sizes, rngs=nnx.Rngs(seed))


@functools.cache
def sizes(
  dataset: str, data_dir: str | None, model: str, hidden: int
) -> tuple[int, int]:
  """Parameters of the model, and what its last layer is given."""
  examples = data.load(dataset, data_dir)
  shape = examples.train_images.shape[1:]
  graphdef, params = models.split(
    network(model, hidden, shape, examples.num_classes, 0)
  )
  features, _ = models.features_and_classifier(graphdef)
  width = jax.eval_shape(features, params, jnp.zeros((1, *shape))).shape[1]
  return sum(leaf.size for leaf in jax.tree.leaves(params)), width


def objective(
  method: str,
  task,
  key: jax.Array,
  num_pseudo: int,
  num_byzantine: int,
  learning_rate,
  weights,
):
  """The loss that a client minimises by the method."""
  if method == 'fedprox':
    return objectives.proximal(task.loss_fn, mu=weights['proximal_weight'])
  if method == 'fedavg':
    return task.loss_fn
  # Nobody's training should depend on what attackers call examples.
  trusted = jax.tree.map(lambda x: x[num_byzantine:], task.partition)
  return objectives.fedbr(
    *models.features_and_classifier(task.graphdef),
    pseudo_inputs=objectives.random_sample_means(
      task.images, trusted, key, num_pseudo=num_pseudo, scale=task.scale
    ),
    ascent_step_size=learning_rate,
    num_mixed=int('mixed' in method),
    contrast_weight=weights['contrast_weight'],
    pseudo_weight=weights['pseudo_weight'],
  )
