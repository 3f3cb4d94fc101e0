"""A small convolutional network."""

from collections.abc import Callable

import jax
from flax import nnx

from byzjax.models._conv import (
  Conv,
  Implementation,
  max_pool,
  swap_batch_and_channels,
)


class CNN(nnx.Module):
  r"""Two convolution stages and two dense layers.

  .. math::
    x \to [\mathrm{conv}_{3 \times 3} \to \sigma \to
    \mathrm{maxpool}_{2 \times 2}] \times 2 \to \mathrm{dense}_{64} \to
    \sigma \to \mathrm{dense}

  with 16 and 32 channels, and ReLU for sigma.

  Args:
    image_shape: `(H, W, C)`, with H and W at least 4.
    num_classes: number of classes K, at least 1.
    activation: sigma, applied to every entry.
    implementation: how convolutions are computed; see `Conv`.
    rngs: source of the initial weights (LeCun normal); biases start at zero.

  Calling the module maps float32 `[B, H, W, C]` to logits, float32 `[B, K]`.

  Raises:
    ValueError: if the image is too small for two poolings, or the number of
      classes or channels is below 1.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> cnn = models.CNN((8, 8, 1), 10, rngs=nnx.Rngs(0))
    >>> cnn(jnp.ones([5, 8, 8, 1])).shape
    (5, 10)
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    implementation: Implementation | None = None,
    rngs: nnx.Rngs,
  ):
    if len(image_shape) != 3 or min(image_shape[:2]) < 4:
      raise ValueError(
        'CNN: image_shape must be (H, W, C) with H >= 4 and W >= 4, got '
        f'image_shape={tuple(image_shape)}.'
      )
    if num_classes < 1:
      raise ValueError(
        f'CNN: num_classes must be at least 1, got num_classes={num_classes}.'
      )
    self.activation = activation
    height, width, channels = image_shape
    self.conv1 = Conv(channels, 16, 3, implementation=implementation, rngs=rngs)
    self.conv2 = Conv(16, 32, 3, implementation=implementation, rngs=rngs)
    features = (height // 4) * (width // 4) * 32
    self.dense1 = nnx.Linear(features, 64, rngs=rngs)
    self.dense2 = nnx.Linear(64, num_classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, C]` to logits `[B, K]`."""
    return self.classify(self.features(x))

  def features(self, x: jax.Array) -> jax.Array:
    """The input of the last layer, `[B, 64]`."""
    x = swap_batch_and_channels(x)
    for conv in (self.conv1, self.conv2):
      x = self._stage(conv, x)
    x = swap_batch_and_channels(x)
    return self.activation(self.dense1(x.reshape(x.shape[0], -1)))

  def _stage(self, conv: Conv, x: jax.Array) -> jax.Array:
    """One convolution, sigma and pooling of `[C, H, W, B]`."""
    if self.activation is jax.nn.relu:
      # It keeps the order of numbers, so what is largest stays largest.
      return jax.nn.relu(conv.chwb(x, max_pool))
    return max_pool(self.activation(conv.chwb(x)))

  def classify(self, z: jax.Array) -> jax.Array:
    """The last layer: `[B, 64]` to logits `[B, K]`."""
    return self.classifier(z)

  @property
  def classifier(self) -> nnx.Linear:
    """The last layer."""
    return self.dense2
