"""ResNet-20 with batch normalisation, as the authors' code has it.

The statistics are no state of the network. A training pass takes those of its
batch and returns them; an evaluation is given the running ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from byzjax import models

# One pair for every normalisation: mean and variance, float[channels].
Statistics = list[tuple[jax.Array, jax.Array]]
# Channels of the images that a block is given, and of those that it returns.
BLOCKS = (
  *((16, 16), (16, 16), (16, 16)),
  *((16, 32), (32, 32), (32, 32)),
  *((32, 64), (64, 64), (64, 64)),
)
EPSILON, MOMENTUM = 1e-5, 0.1
# Of pixels in [0, 1]: mean and standard deviation by colour.
PIXELS = {
  'cifar10': ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
  'digits': ((0.3,), (0.4,)),
}

fan_out_normal = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def conv(rngs, inputs: int, outputs: int, size: int = 3, strides: int = 1):
  """Not padded: PyTorch's padding is even, SAME is not where it strides."""
  return models.Conv(
    inputs,
    outputs,
    size,
    strides=strides,
    padding='VALID',
    use_bias=False,
    kernel_init=fan_out_normal,
    rngs=rngs,
  )


def padded(x: jax.Array) -> jax.Array:
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def per_channel(x: jax.Array) -> jax.Array:
  return x[:, None, None, None]


class BatchNorm(nnx.Module):
  """Of `[C, H, W, B]`, by the statistics of this batch or by known ones."""

  def __init__(self, features: int):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: jax.Array, known=None):
    """`(y, (mean, variance))`; the variance to keep is the unbiased one."""
    if known is None:
      mean = x.mean((1, 2, 3))
      variance = jnp.square(x - per_channel(mean)).mean((1, 2, 3))
    else:
      mean, variance = known
    factor = self.scale[...] * jax.lax.rsqrt(variance + EPSILON)
    y = x * per_channel(factor) + per_channel(self.bias[...] - mean * factor)
    count = x.size // x.shape[0]
    return y, (mean, variance * (count / max(count - 1, 1)))


class Block(nnx.Module):
  """`relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))`.

  Where the number of channels changes, the shortcut is a 1 x 1 convolution and
  a normalisation.
  """

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
    strides = outputs // inputs
    self.conv1 = conv(rngs, inputs, outputs, strides=strides)
    self.norm1 = BatchNorm(outputs)
    self.conv2 = conv(rngs, outputs, outputs)
    self.norm2 = BatchNorm(outputs)
    self.changes = strides > 1
    if self.changes:
      self.shortcut = conv(rngs, inputs, outputs, size=1, strides=strides)
      self.shortcut_norm = BatchNorm(outputs)

  def __call__(self, x: jax.Array, norm) -> jax.Array:
    y = norm(self.norm1, self.conv1.chwb(padded(x)))
    y = norm(self.norm2, self.conv2.chwb(padded(jax.nn.relu(y))))
    if self.changes:
      x = norm(self.shortcut_norm, self.shortcut.chwb(x))
    return jax.nn.relu(x + y)


class ResNet20(nnx.Module):
  """272,474 parameters for images of 32 x 32 x 3 and ten classes."""

  def __init__(self, image_shape, num_classes: int, *, rngs: nnx.Rngs):
    self.conv = conv(rngs, image_shape[-1], 16)
    self.norm = BatchNorm(16)
    self.blocks = nnx.List([Block(i, o, rngs) for i, o in BLOCKS])
    width = BLOCKS[-1][1]

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
      del out_sharding
      bound = width**-0.5
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    self.dense = nnx.Linear(
      width, num_classes, kernel_init=init, bias_init=init, rngs=rngs
    )

  def __call__(
    self, x: jax.Array, running: Statistics | None = None
  ) -> tuple[jax.Array, Statistics]:
    """`[B, H, W, C]` to logits `[B, K]` and the statistics of this batch."""
    statistics: Statistics = []

    def norm(layer: BatchNorm, y: jax.Array) -> jax.Array:
      known = None if running is None else running[len(statistics)]
      y, of_batch = layer(y, known)
      statistics.append(of_batch)
      return y

    x = jnp.swapaxes(x, 0, 3)  # On CPUs the batch is best innermost.
    x = jax.nn.relu(norm(self.norm, self.conv.chwb(padded(x))))
    for block in self.blocks:
      x = block(x, norm)
    return self.dense(x.mean((1, 2)).T), statistics


def first_statistics() -> Statistics:
  """Zeros and ones, in the order in which a pass meets normalisations."""
  widths = [16]
  for inputs, outputs in BLOCKS:
    widths += [outputs] * (2 + (inputs != outputs))
  return [(jnp.zeros(width), jnp.ones(width)) for width in widths]


def moved(running: Statistics, of_workers: Any, counts: np.ndarray):
  """The running averages after the batches of the workers that count.

  As one shared network in PyTorch: every worker in its turn does `r <- 0.9 r +
  0.1 s`. Of statistics float[n, channels] that is one weighted sum.
  """
  behind = counts.sum() - np.cumsum(counts)  # Workers that count after this.
  weights = np.where(counts, MOMENTUM * (1 - MOMENTUM) ** behind, 0)
  kept = (1 - MOMENTUM) ** counts.sum()
  return jax.tree.map(
    lambda old, new: kept * old + weights.astype(np.float32) @ new,
    running,
    of_workers,
  )
