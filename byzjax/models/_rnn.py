"""A small recurrent network."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


class RecurrentLayer(nnx.Module):
  r"""One layer of an `RNN`: `h_t = tanh(x_t W + h_{t-1} U + b)`.

  Args:
    in_features: entries of x_t per example, at least 1.
    features: entries of h_t per example, at least 1.
    rngs: source of the initial weights.

  Attributes: `kernel` W, `recurrent_kernel` U and `bias` b.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax.models import _rnn
    >>> from flax import nnx
    >>> layer = _rnn.RecurrentLayer(3, 4, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones([5, 3]), layer.start(5)).shape
    (5, 4)
  """

  def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
    normal = nnx.initializers.lecun_normal(dtype=jnp.float32)
    orthogonal = nnx.initializers.orthogonal(dtype=jnp.float32)
    shape, square = (in_features, features), (features, features)
    self.kernel = nnx.Param(normal(rngs.params(), shape))
    self.recurrent_kernel = nnx.Param(orthogonal(rngs.params(), square))
    self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

  def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
    """One step: from x_t `[B, ...]` or int `[B]`, and h_{t-1}, to h_t."""
    kernel = self.kernel[...]
    if jnp.issubdtype(x.dtype, jnp.integer):
      # A product in place of a look-up, whose gradient would be a scatter.
      x = jax.nn.one_hot(x, kernel.shape[0], dtype=kernel.dtype)
    z = x.reshape(x.shape[0], -1) @ kernel + h @ self.recurrent_kernel[...]
    z = z + jnp.broadcast_to(self.bias[...], z.shape)
    # A scan needs one dtype, whatever that of the inputs.
    return jnp.tanh(z).astype(h.dtype)

  def start(self, batch_size: int) -> jax.Array:
    """h_0: zeros `[B, features]`."""
    bias = self.bias[...]
    return jnp.zeros((batch_size, *bias.shape), bias.dtype)


class RNN(nnx.Module):
  r"""Recurrent tanh layers (Elman), and a dense layer on the last state.

  .. math::
    h^0_t = x_t, \quad
    h^l_t = \tanh(h^{l-1}_t W_l + h^l_{t-1} U_l + b_l), \quad
    h^l_0 = 0, \quad
    \mathrm{logits} = h^{L-1}_T W_L + b_L

  An image is a sequence of its rows, from top to bottom.

  Args:
    sizes: `(d_0, ..., d_L)`, at least three sizes of at least 1: the size of
      the input of a step (W * C for images `[B, H, W, C]`, the number of tokens
      for tokens), the widths of the recurrent layers, and the size of the
      output.
    rngs: source of the initial weights: LeCun normal for W, orthogonal for U;
      biases start at zero.

  Calling the module maps images float32 `[B, H, W, C]`, sequences float32 `[B,
  T, d_0]` or tokens int `[B, T]` to logits, float32 `[B, d_L]`.

  Raises:
    ValueError: if there are fewer than three sizes, a size is below 1, or a
      step of the input does not have `d_0` numbers per example.

  References:
    Elman, 1990, doi:10.1207/s15516709cog1402_1.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> rnn = models.RNN((8, 32, 10), rngs=nnx.Rngs(0))
    >>> rnn(jnp.ones([5, 8, 8, 1])).shape
    (5, 10)
  """

  def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
    if len(sizes) < 3 or min(sizes) < 1:
      raise ValueError(
        'RNN: sizes must hold at least three sizes of at least 1, got '
        f'sizes={tuple(sizes)}.'
      )
    pairs = list(zip(sizes[:-1], sizes[1:]))
    self.layers = nnx.List(
      [RecurrentLayer(a, b, rngs=rngs) for a, b in pairs[:-1]]
    )
    self.dense = nnx.Linear(*pairs[-1], rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, ...]` or int `[B, T]` to logits `[B, d_L]`."""
    return self.classify(self.features(x))

  def features(self, x: jax.Array) -> jax.Array:
    """The input of the last layer, the last state: `[B, d_{L-1}]`."""
    width = self.layers[0].kernel.shape[0]
    tokens = jnp.issubdtype(x.dtype, jnp.integer)
    if x.ndim < 2 or (tokens and x.ndim != 2):
      raise ValueError(
        'RNN: x must be [B, T, ...], or integers [B, T], got '
        f'{x.dtype}{list(x.shape)}.'
      )
    if not tokens and math.prod(x.shape[2:]) != width:
      raise ValueError(
        f'RNN: x must have {width} numbers per step, got x.shape={x.shape}.'
      )
    states = [layer.start(x.shape[0]) for layer in self.layers]

    def step(states, x):
      outputs = []
      for layer, h in zip(self.layers, states):
        x = layer(x, h)
        outputs.append(x)
      return outputs, None

    states, _ = lax.scan(step, states, jnp.moveaxis(x, 1, 0))
    return states[-1]

  def classify(self, z: jax.Array) -> jax.Array:
    """The last layer: `[B, d_{L-1}]` to logits `[B, d_L]`."""
    return self.classifier(z)

  @property
  def classifier(self) -> nnx.Linear:
    """The last layer."""
    return self.dense
