"""The convolutional network with dropout, common in MNIST experiments."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from byzjax.models._conv import (
  Conv,
  Implementation,
  max_pool,
  swap_batch_and_channels,
)

_NAME = 'DropoutCNN'
_CHANNELS = (32, 64)
_WIDTH = 128


def _uniform(fan_in: int) -> nnx.Initializer:
  """Uniform within `+-1 / sqrt(fan_in)`."""

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _inits(fan_in: int) -> dict[str, Any]:
  """The same initializer for kernel and bias, as in PyTorch."""
  return {'kernel_init': _uniform(fan_in), 'bias_init': _uniform(fan_in)}


class DropoutCNN(nnx.Module):
  r"""Two convolutions, one pooling, two dense layers; dropout in two places.

  .. math::
    x \to \mathrm{conv}_{3 \times 3}^{32} \to \mathrm{ReLU} \to
    \mathrm{conv}_{3 \times 3}^{64} \to \mathrm{maxpool}_{2 \times 2} \to
    \mathrm{drop\ channels} \to \mathrm{dense}_{128} \to \mathrm{ReLU} \to
    \mathrm{drop} \to \mathrm{dense}

  This is the MNIST network of PyTorch's examples as the code of bucketing has
  it, without ReLU after the second convolution. Convolutions have no padding.
  Dropout sets entries to zero, each with the probability of its rate, and
  divides the others by 1 - rate. The first dropout drops whole channels of an
  example, the second single entries.

  Args:
    image_shape: `(H, W, C)`, with H and W at least 6; `(28, 28, 1)` for MNIST.
    num_classes: number of classes K, at least 1.
    dropout_rates: of the two dropouts, each in [0, 1).
    implementation: how convolutions are computed; see `Conv`.
    rngs: source of the initial weights: kernels and biases uniform within
      `+-1 / sqrt(fan_in)`, the default of PyTorch.

  Calling the module maps float32 `[B, H, W, C]` to logits, float32 `[B, K]`.
  Dropout is active when random numbers are given, `model(x,
  rngs=nnx.Rngs(dropout=key))`, and inactive in `model(x)`. So train with
  `cross_entropy_loss(graphdef, needs_key=True)`; `evaluate` and
  `cross_entropy_loss(graphdef)` measure the network without dropout.

  Raises:
    ValueError: if the image is too small, the number of classes or channels is
      below 1, or a rate is out of range.

  References:
    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets
    via Bucketing", 2022, arXiv:2006.09365, and the code of its authors.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> model = models.DropoutCNN((28, 28, 1), 10, rngs=nnx.Rngs(0))
    >>> graphdef, params = models.split(model)
    >>> sum(p.size for p in jax.tree.leaves(params))
    1199882
    >>> loss_fn = models.cross_entropy_loss(graphdef, needs_key=True)
    >>> batch = (jnp.ones([5, 28, 28, 1]), jnp.arange(5))
    >>> loss_fn(params, batch, jax.random.key(0)).shape
    ()
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    dropout_rates: tuple[float, float] = (0.25, 0.5),
    implementation: Implementation | None = None,
    rngs: nnx.Rngs,
  ):
    if len(image_shape) != 3 or min(image_shape[:2]) < 6:
      raise ValueError(
        f'{_NAME}: image_shape must be (H, W, C) with H >= 6 and W >= 6, got '
        f'image_shape={tuple(image_shape)}.'
      )
    if num_classes < 1:
      raise ValueError(
        f'{_NAME}: num_classes must be at least 1, got '
        f'num_classes={num_classes}.'
      )
    if len(dropout_rates) != 2 or not all(0 <= p < 1 for p in dropout_rates):
      raise ValueError(
        f'{_NAME}: dropout_rates must be two numbers in [0, 1), got '
        f'dropout_rates={dropout_rates}.'
      )
    height, width, channels = image_shape
    first, second = _CHANNELS

    def conv(inputs, outputs):
      return Conv(
        inputs,
        outputs,
        3,
        padding='VALID',
        implementation=implementation,
        **_inits(9 * inputs),
        rngs=rngs,
      )

    features = (height - 4) // 2 * ((width - 4) // 2) * second
    self.conv1 = conv(channels, first)
    self.conv2 = conv(first, second)
    self.dense1 = nnx.Linear(features, _WIDTH, **_inits(features), rngs=rngs)
    self.dense2 = nnx.Linear(_WIDTH, num_classes, **_inits(_WIDTH), rngs=rngs)
    # Without rngs: streams of random numbers are state, and no parameters.
    channel_rate, rate = dropout_rates
    self.drop_channels = nnx.Dropout(channel_rate, broadcast_dims=(1, 2))
    self.drop = nnx.Dropout(rate)

  def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
    """Maps `[B, H, W, C]` to logits `[B, K]`."""
    return self.classify(self.features(x, rngs))

  def features(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
    """The input of the last layer, `[B, 128]`."""
    off = rngs is None
    x = jax.nn.relu(self.conv1.chwb(swap_batch_and_channels(x)))
    x = self.conv2.chwb(x, max_pool)
    x = self.drop_channels(x, deterministic=off, rngs=rngs)
    x = swap_batch_and_channels(x)
    x = jax.nn.relu(self.dense1(x.reshape(x.shape[0], -1)))
    return self.drop(x, deterministic=off, rngs=rngs)

  def classify(self, z: jax.Array) -> jax.Array:
    """The last layer: `[B, 128]` to logits `[B, K]`."""
    return self.classifier(z)

  @property
  def classifier(self) -> nnx.Linear:
    """The last layer."""
    return self.dense2
