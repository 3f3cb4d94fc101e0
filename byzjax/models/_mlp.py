"""A multi-layer perceptron."""

import math
from collections.abc import Callable, Sequence

import jax
from flax import nnx


class MLP(nnx.Module):
  r"""A multi-layer perceptron: dense layers with an activation (ReLU) between.

  .. math::
    h_0 = \mathrm{flatten}(x), \quad
    h_l = \sigma(h_{l-1} W_l + b_l), \quad
    \mathrm{logits} = h_{L-1} W_L + b_L

  Args:
    sizes: `(d_0, ..., d_L)`, at least two sizes of at least 1: the width of the
      input (the product of its axes after the first), of the hidden layers and
      of the output.
    activation: sigma, applied to every entry.
    rngs: source of the initial weights (LeCun normal); biases start at zero.

  Calling the module maps float32 `[B, ...]` to logits, float32 `[B, d_L]`.

  Raises:
    ValueError: if there are fewer than two sizes, a size is below 1, or the
      input does not have `d_0` numbers per example.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> mlp = models.MLP((64, 32, 10), rngs=nnx.Rngs(0))
    >>> mlp(jnp.ones([5, 8, 8, 1])).shape
    (5, 10)
  """

  def __init__(
    self,
    sizes: Sequence[int],
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    rngs: nnx.Rngs,
  ):
    if len(sizes) < 2 or min(sizes) < 1:
      raise ValueError(
        'MLP: sizes must hold at least two sizes of at least 1, got '
        f'sizes={tuple(sizes)}.'
      )
    self.activation = activation
    self.layers = nnx.List(
      [nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:])]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, ...]` to logits `[B, d_L]`."""
    return self.classify(self.features(x))

  def features(self, x: jax.Array) -> jax.Array:
    """The input of the last layer, `[B, d_{L-1}]`."""
    first = self.layers[0]
    if math.prod(x.shape[1:]) != first.in_features:
      raise ValueError(
        f'MLP: x must have {first.in_features} numbers per example, got '
        f'x.shape={x.shape}.'
      )
    x = x.reshape(x.shape[0], -1)
    for layer in self.layers[:-1]:
      x = self.activation(layer(x))
    return x

  def classify(self, z: jax.Array) -> jax.Array:
    """The last layer: `[B, d_{L-1}]` to logits `[B, d_L]`."""
    return self.classifier(z)

  @property
  def classifier(self) -> nnx.Linear:
    """The last layer."""
    return self.layers[-1]
