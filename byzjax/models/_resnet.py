"""The 20-layer residual network for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from byzjax.models._conv import (
  Conv,
  Implementation,
  swap_batch_and_channels,
)

_WIDTHS = (16, 32, 64)
_BLOCKS_PER_STAGE = 3
_NUM_GROUPS = 8


def _group_norm(norm: Any, x: jax.Array) -> jax.Array:
  """An `nnx.GroupNorm` of `[C, H, W, B]`, with the operations of flax."""
  x, scale, bias = norm.promote_dtype(
    (x, norm.scale[...], norm.bias[...]), dtype=norm.dtype
  )
  groups = x.reshape(norm.num_groups, norm.group_size, *x.shape[1:])
  groups = groups.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = groups.mean((1, 2, 3))
  variance = jnp.maximum(0.0, (groups * groups).mean((1, 2, 3)) - mean * mean)
  mean, factor = (
    jnp.repeat(of_group, norm.group_size, axis=0)
    for of_group in (mean, lax.rsqrt(variance + norm.epsilon))
  )
  factor *= scale[:, None]
  y = (x - mean[:, None, None]) * factor[:, None, None]
  return (y + bias[:, None, None, None]).astype(x.dtype)


class _Block(nnx.Module):
  """`relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))` of `[C, H, W, B]`."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    strides: int,
    implementation: Implementation | None,
    rngs: nnx.Rngs,
  ):
    self.strides = strides
    self.new_features = out_features - in_features
    self.conv1 = Conv(
      in_features,
      out_features,
      3,
      strides=strides,
      use_bias=False,
      implementation=implementation,
      rngs=rngs,
    )
    self.norm1 = nnx.GroupNorm(out_features, _NUM_GROUPS, rngs=rngs)
    self.conv2 = Conv(
      out_features,
      out_features,
      3,
      use_bias=False,
      implementation=implementation,
      rngs=rngs,
    )
    self.norm2 = nnx.GroupNorm(out_features, _NUM_GROUPS, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = jax.nn.relu(_group_norm(self.norm1, self.conv1.chwb(x)))
    y = _group_norm(self.norm2, self.conv2.chwb(y))
    shortcut = x[:, :: self.strides, :: self.strides]
    shortcut = jnp.pad(
      shortcut, [(0, self.new_features), (0, 0), (0, 0), (0, 0)]
    )
    return jax.nn.relu(shortcut + y)


class ResNet20(nnx.Module):
  r"""ResNet-20 for small images, with group instead of batch normalisation.

  One 3 x 3 convolution, three stages of three blocks of two 3 x 3 convolutions
  (16, 32 and 64 channels; the second and third stage halve the image), the mean
  over the pixels, one dense layer: 20 layers with weights. Each block is

  .. math::
    h = \mathrm{ReLU}(\mathrm{GN}(K_1 * x)), \quad
    y = \mathrm{ReLU}(P x + \mathrm{GN}(K_2 * h))

  The shortcut P is option A of the paper: the identity, or where the size
  changes, every second pixel with zeros for the new channels; it has no
  parameters. GN normalises over 8 groups of channels of one example at a time,
  so the output for one example does not depend on other examples.

  Args:
    image_shape: `(H, W, C)`, each at least 1; `(32, 32, 3)` in the paper.
    num_classes: number of classes K, at least 1.
    implementation: how convolutions are computed; see `Conv`.
    rngs: source of the initial weights (LeCun normal); scales start at one,
      biases at zero. Convolutions have no bias.

  Calling the module maps float32 `[B, H, W, C]` to logits, float32 `[B, K]`.

  Raises:
    ValueError: if the image shape is not three positive numbers, or the number
      of classes is below 1.

  References:
    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition",
    2015, arXiv 1512.03385, section 4.2. Wu and He, "Group Normalization", 2018,
    arXiv 1803.08494.

  Example:
    >>> import jax
    >>> from byzjax import models
    >>> from flax import nnx
    >>> model = nnx.eval_shape(
    ...   lambda: models.ResNet20((32, 32, 3), 10, rngs=nnx.Rngs(0)))
    >>> sum(p.size for p in jax.tree.leaves(models.split(model)[1]))
    269722
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    implementation: Implementation | None = None,
    rngs: nnx.Rngs,
  ):
    if len(image_shape) != 3 or min(image_shape) < 1:
      raise ValueError(
        'ResNet20: image_shape must be (H, W, C), each at least 1, got '
        f'image_shape={tuple(image_shape)}.'
      )
    if num_classes < 1:
      raise ValueError(
        'ResNet20: num_classes must be at least 1, got '
        f'num_classes={num_classes}.'
      )
    self.conv = Conv(
      image_shape[-1],
      _WIDTHS[0],
      3,
      use_bias=False,
      implementation=implementation,
      rngs=rngs,
    )
    self.norm = nnx.GroupNorm(_WIDTHS[0], _NUM_GROUPS, rngs=rngs)
    blocks = []
    features = _WIDTHS[0]
    for width in _WIDTHS:
      for _ in range(_BLOCKS_PER_STAGE):
        strides = 1 if width == features else 2
        blocks.append(_Block(features, width, strides, implementation, rngs))
        features = width
    self.blocks = nnx.List(blocks)
    self.dense = nnx.Linear(features, num_classes, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, C]` to logits `[B, K]`."""
    return self.classify(self.features(x))

  def features(self, x: jax.Array) -> jax.Array:
    """The input of the last layer, `[B, 64]`."""
    x = self.conv.chwb(swap_batch_and_channels(x))
    x = jax.nn.relu(_group_norm(self.norm, x))
    for block in self.blocks:
      x = block(x)
    return jnp.mean(x, axis=(1, 2)).T

  def classify(self, z: jax.Array) -> jax.Array:
    """The last layer: `[B, 64]` to logits `[B, K]`."""
    return self.classifier(z)

  @property
  def classifier(self) -> nnx.Linear:
    """The last layer."""
    return self.dense
