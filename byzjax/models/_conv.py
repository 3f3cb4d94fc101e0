"""Convolution and pooling whose gradients are fast on every backend."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Implementation = Literal['im2col', 'lax']
_IMPLEMENTATIONS = ('im2col', 'lax')


def _pair(argument: str, value: int | Sequence[int]) -> tuple[int, int]:
  pair = (value, value) if isinstance(value, int) else tuple(value)
  if len(pair) != 2 or min(pair) < 1:
    raise ValueError(
      f'Conv: {argument} must be a positive integer or a pair of them, '
      f'got {argument}={value!r}.'
    )
  return pair[0], pair[1]


def _patches(
  x: jax.Array, kernel_size: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
  """The pixels under each output pixel, `[B, H', W', kh * kw * C]`."""
  pads = lax.padtype_to_pads(x.shape[1:3], kernel_size, strides, 'SAME')
  x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
  batch, height, width, channels = x.shape
  (kh, kw), (sh, sw) = kernel_size, strides
  last_row = (height - kh) // sh * sh
  last_column = (width - kw) // sw * sw
  return jnp.concatenate(
    [
      lax.slice(
        x,
        (0, i, j, 0),
        (batch, i + last_row + 1, j + last_column + 1, channels),
        (1, sh, sw, 1),
      )
      for i in range(kh)
      for j in range(kw)
    ],
    axis=-1,
  )


class Conv(nnx.Module):
  r"""A 2-d convolution with the parameters of `nnx.Conv`, SAME padding.

  .. math::
    y_{b, p, q, o} = \beta_o + \sum_{i, j, c}
      x_{b, s_1 p + i - l_1, s_2 q + j - l_2, c} \, K_{i, j, c, o}

  with zeros outside the image and the offsets `l` of SAME padding. Both
  implementations compute this; they differ in speed only:

  * `'im2col'`: shifted slices of the image side by side, then one matrix
    product. XLA's CPU backend differentiates an ordinary convolution very
    slowly inside a loop (scan, map); this form is not affected.
  * `'lax'`: `lax.conv_general_dilated`, the form accelerators have kernels for.

  Args:
    in_features: channels of the input, at least 1.
    out_features: channels of the output, at least 1.
    kernel_size: `(kh, kw)`, or one integer for both.
    strides: `(s_1, s_2)`, or one integer for both.
    use_bias: whether to add the bias; without it `bias` is None.
    implementation: `'im2col'`, `'lax'`, or None for `'im2col'` where the
      default backend is the CPU and `'lax'` elsewhere.
    rngs: source of the initial kernel (LeCun normal); the bias starts at zero.

  Attributes: `kernel`, float32 `[kh, kw, in_features, out_features]`, and
  `bias`, float32 `[out_features]`. Calling the module maps `[B, H, W,
  in_features]` to `[B, ceil(H / s_1), ceil(W / s_2), out_features]`.

  Raises:
    ValueError: if a size is below 1, the implementation is not known, or the
      input does not have shape `[B, H, W, in_features]`.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> conv = models.Conv(1, 16, (3, 3), strides=2, rngs=nnx.Rngs(0))
    >>> conv.kernel.shape, conv.bias.shape
    ((3, 3, 1, 16), (16,))
    >>> conv(jnp.ones([5, 8, 8, 1])).shape
    (5, 4, 4, 16)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    kernel_size: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    use_bias: bool = True,
    implementation: Implementation | None = None,
    rngs: nnx.Rngs,
  ):
    for argument, value in [
      ('in_features', in_features),
      ('out_features', out_features),
    ]:
      if value < 1:
        raise ValueError(
          f'Conv: {argument} must be at least 1, got {argument}={value}.'
        )
    if implementation not in (None, *_IMPLEMENTATIONS):
      raise ValueError(
        f'Conv: implementation must be None or one of {_IMPLEMENTATIONS}, '
        f'got implementation={implementation!r}.'
      )
    if implementation is None:
      on_cpu = jax.default_backend() == 'cpu'
      implementation = 'im2col' if on_cpu else 'lax'
    self.implementation = implementation
    self.strides = _pair('strides', strides)
    shape = (*_pair('kernel_size', kernel_size), in_features, out_features)
    kernel_key, bias_key = rngs.params(), rngs.params()
    self.kernel = nnx.Param(nnx.initializers.lecun_normal()(kernel_key, shape))
    self.bias: nnx.Param | None = (
      nnx.Param(nnx.initializers.zeros(bias_key, (out_features,)))
      if use_bias
      else nnx.data(None)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, in_features]` to `[B, H', W', out_features]`."""
    kernel = self.kernel[...]
    kh, kw, in_features, out_features = kernel.shape
    if x.ndim != 4 or x.shape[-1] != in_features:
      raise ValueError(
        f'Conv: x must have shape [B, H, W, {in_features}], got '
        f'x.shape={x.shape}.'
      )
    if self.implementation == 'lax':
      y = lax.conv_general_dilated(
        x,
        kernel,
        self.strides,
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
    else:
      y = _patches(x, (kh, kw), self.strides) @ kernel.reshape(-1, out_features)
    if self.bias is None:
      return y
    return y + jnp.broadcast_to(self.bias[...], y.shape)


def max_pool(x: jax.Array) -> jax.Array:
  r"""Largest value of each 2 x 2 window, windows side by side.

  .. math::
    y_{b, p, q, c} = \max_{i, j \in \{0, 1\}} x_{b, 2p + i, 2q + j, c}

  An odd last row or column is left out, as in `nnx.max_pool` with its default
  padding. The gradient is that of `jnp.maximum`: entries that tie share it
  equally. NaN in a window gives NaN.

  Args:
    x: float `[B, H, W, C]`, with H and W at least 2.

  Returns:
    `[B, H // 2, W // 2, C]`, of the dtype of `x`.

  Raises:
    ValueError: if `x` does not have four axes or is smaller than one window.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> x = jnp.arange(20.0).reshape(1, 4, 5, 1)
    >>> models.max_pool(x)[0, :, :, 0].tolist()
    [[6.0, 8.0], [16.0, 18.0]]
  """
  if x.ndim != 4 or min(x.shape[1:3]) < 2:
    raise ValueError(
      'max_pool: x must have shape [B, H, W, C] with H >= 2 and W >= 2, got '
      f'x.shape={x.shape}.'
    )
  batch, height, width, channels = x.shape
  rows, columns = height // 2, width // 2
  x = x[:, : 2 * rows, : 2 * columns]
  # Two halvings of contiguous data: a reduction over inner axes, or a strided
  # slice, is slower on CPU, and so is the gradient of a window reduction.
  x = x.reshape(batch, rows, 2, columns, 2 * channels)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1])
  return jnp.maximum(x[..., :channels], x[..., channels:])
