"""Loss and accuracy over a whole data set."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from byzjax._src import flat


class Metrics(NamedTuple):
  """Loss and accuracies of a model on a data set; float32 scalars."""

  loss: jax.Array  # Mean softmax cross entropy.
  accuracy: jax.Array  # Share of the examples that are classified rightly.
  balanced_accuracy: jax.Array  # Mean over classes of the accuracy in a class.


def evaluate(
  graphdef: nnx.GraphDef,
  params: Any,
  images: jax.Array,
  labels: jax.Array,
  *,
  num_classes: int,
  scale: float,
  batch_size: int = 1000,
) -> Metrics:
  r"""Loss, accuracy and balanced accuracy over all examples.

  .. math::
    a_k = \frac{|\{i : y_i = k, \arg\max f_\theta(x_i / s) = k\}|}
               {|\{i : y_i = k\}|}, \qquad
    \mathrm{balanced} = \frac{1}{|\{k : n_k > 0\}|} \sum_{k : n_k > 0} a_k

  with `n_k` the number of examples of class k. It is a pure function of its
  arrays: it can be jitted (the other arguments are static), and mapped over the
  `params` of several seeds. Batches are processed one after the other, so
  memory depends only on `batch_size`; each example counts once, also in a
  smaller last batch. Ties of the logits go to the lowest class; NaN logits make
  the loss NaN.

  Args:
    graphdef: structure of the model f, from `split`.
    params: its parameters.
    images: uint8 (or float) `[N, H, W, C]`, N at least 1.
    labels: int32 `[N]`, in `[0, num_classes)`.
    num_classes: number of classes K, at least 1.
    scale: largest pixel value s, a positive Python number; the model gets
      `images / s`.
    batch_size: number of examples at a time, at least 1.

  Returns:
    `Metrics` of float32 scalars.

  Raises:
    ValueError: if there are no examples, images and labels have different
      lengths, a count is below 1, or the scale is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> model = models.make('mlp', (8, 8, 1), 4, seed=0)
    >>> graphdef, params = models.split(model)
    >>> images, labels = jnp.zeros([6, 8, 8, 1]), jnp.array([0, 0, 0, 0, 1, 2])
    >>> metrics = models.evaluate(
    ...   graphdef, params, images, labels, num_classes=4, scale=255.0)
    >>> print(f'{metrics.accuracy:.3f} {metrics.balanced_accuracy:.3f}')
    0.667 0.333
  """
  num_examples = labels.shape[0]
  if num_examples < 1 or images.shape[0] != num_examples:
    raise ValueError(
      'evaluate: images and labels must hold the same number of examples, at '
      f'least 1, got images.shape={images.shape} and '
      f'labels.shape={labels.shape}.'
    )
  for argument, value in [
    ('num_classes', num_classes),
    ('batch_size', batch_size),
  ]:
    if value < 1:
      raise ValueError(
        f'evaluate: {argument} must be at least 1, got {argument}={value}.'
      )
  if not scale > 0:
    raise ValueError(f'evaluate: scale must be positive, got scale={scale!r}.')
  batch_size = min(batch_size, num_examples)
  num_batches = -(-num_examples // batch_size)

  def batched(x: jax.Array) -> jax.Array:
    pad = [(0, num_batches * batch_size - num_examples)]
    pad += [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(num_batches, batch_size, *x.shape[1:])

  def one_batch(batch):
    images, labels, is_real = batch
    logits = nnx.merge(graphdef, params)(images.astype(jnp.float32) / scale)
    logits = logits.astype(flat.compute_dtype(logits))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    is_right = jnp.argmax(logits, axis=-1) == labels
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=bool)
    members = one_hot & is_real[:, None]
    return (
      jnp.sum(jnp.where(is_real, losses, 0.0)),
      jnp.sum(members & is_right[:, None], axis=0),
      jnp.sum(members, axis=0),
    )

  is_real = jnp.ones(num_examples, dtype=bool)
  loss, right, count = jax.lax.map(
    one_batch, (batched(images), batched(labels), batched(is_real))
  )
  right, count = right.sum(axis=0), count.sum(axis=0)
  per_class = jnp.where(count > 0, right / jnp.maximum(count, 1), 0.0)
  return Metrics(
    loss=jnp.sum(loss) / num_examples,
    accuracy=jnp.sum(right) / num_examples,
    balanced_accuracy=jnp.sum(per_class) / jnp.sum(count > 0),
  )
