"""Convolution and pooling whose gradients are fast on every backend."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Implementation = Literal['im2col', 'lax']
Padding = Literal['SAME', 'VALID']
_IMPLEMENTATIONS = ('im2col', 'lax')
_PADDINGS = ('SAME', 'VALID')
# As of nnx.Linear, float32 with x64 too.
_KERNEL_INIT = nnx.initializers.lecun_normal(dtype=jnp.float32)
_BIAS_INIT = nnx.initializers.constant(0.0, jnp.float32)


def _pair(argument: str, value: int | Sequence[int]) -> tuple[int, int]:
  pair = (value, value) if isinstance(value, int) else tuple(value)
  if len(pair) != 2 or min(pair) < 1:
    raise ValueError(
      f'Conv: {argument} must be a positive integer or a pair of them, '
      f'got {argument}={value!r}.'
    )
  return pair[0], pair[1]


def _patches(
  x: jax.Array,
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  padding: Padding,
) -> jax.Array:
  """`[C, H, W, B]` to the pixels under each output, `[kh kw C, H', W', B]`."""
  pads = lax.padtype_to_pads(x.shape[1:3], kernel_size, strides, padding)
  x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
  channels, height, width, batch = x.shape
  (kh, kw), (sh, sw) = kernel_size, strides
  last_row = (height - kh) // sh * sh
  last_column = (width - kw) // sw * sw
  return jnp.concatenate(
    [
      lax.slice(
        x,
        (0, i, j, 0),
        (channels, i + last_row + 1, j + last_column + 1, batch),
        (1, sh, sw, 1),
      )
      for i in range(kh)
      for j in range(kw)
    ]
  )


def _batched_like(kernel: jax.Array, x: jax.Array) -> jax.Array:
  """Gives the kernel the axis that vmap has added to x, if any.

  The product of one kernel and many x would move the axis of all patches to
  another place in memory. Without vmap this compiles to nothing.
  """
  return jnp.where(jnp.any(x[:1, :1, :1, :1] > 0), kernel, kernel)


def swap_batch_and_channels(x: jax.Array) -> jax.Array:
  """`[B, H, W, C]` to `[C, H, W, B]`, and back."""
  return jnp.swapaxes(x, 0, 3)


class Conv(nnx.Module):
  r"""A 2-d convolution with the parameters of `nnx.Conv`.

  .. math::
    y_{b, p, q, o} = \beta_o + \sum_{i, j, c}
      x_{b, s_1 p + i - l_1, s_2 q + j - l_2, c} \, K_{i, j, c, o}

  with zeros outside the image and the offsets `l` of the padding. Both
  implementations compute this; they differ only in speed:

  * `'im2col'`: shifted slices of the image, one matrix product. XLA's CPU
    backend differentiates an ordinary convolution very slowly inside a loop
    (scan, map); this form is not affected.
  * `'lax'`: `lax.conv_general_dilated`, for which accelerators have kernels.

  On CPUs the batch is best as the last axis, because slices are then long rows:
  `chwb` is the same convolution of `[C, H, W, B]`. A network is faster that
  transposes its images once, by `jnp.swapaxes(x, 0, 3)`, calls `chwb` and
  `max_pool`, and transposes its features back.

  Args:
    in_features: channels of the input, at least 1.
    out_features: channels of the output, at least 1.
    kernel_size: `(kh, kw)`, or one integer for both.
    strides: `(s_1, s_2)`, or one integer for both.
    padding: `'SAME'`, zeros on all sides so that with strides 1 the image keeps
      its size, or `'VALID'`, no zeros.
    use_bias: whether to add the bias; without it `bias` is None.
    implementation: `'im2col'`, `'lax'`, or None for `'im2col'` where the
      default backend is the CPU and `'lax'` elsewhere.
    kernel_init: `(key, shape) -> kernel`; LeCun normal by default.
    bias_init: `(key, shape) -> bias`; zeros by default.
    rngs: source of the initial weights.

  Attributes: `kernel`, float32 `[kh, kw, in_features, out_features]`, and
  `bias`, float32 `[out_features]`. Calling the module maps `[B, H, W,
  in_features]` to `[B, H', W', out_features]`, where `H' = ceil(H / s_1)` with
  SAME padding and `ceil((H - kh + 1) / s_1)` with VALID.

  Raises:
    ValueError: if a size is below 1, the padding or implementation is unknown,
      or the input does not have shape `[B, H, W, in_features]` or is smaller
      than a kernel without padding.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> from flax import nnx
    >>> conv = models.Conv(1, 16, (3, 3), strides=2, rngs=nnx.Rngs(0))
    >>> conv.kernel.shape, conv.bias.shape
    ((3, 3, 1, 16), (16,))
    >>> conv(jnp.ones([5, 8, 8, 1])).shape
    (5, 4, 4, 16)
    >>> conv.chwb(jnp.ones([1, 8, 8, 5]), models.max_pool).shape
    (16, 2, 2, 5)
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    kernel_size: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    use_bias: bool = True,
    implementation: Implementation | None = None,
    kernel_init: nnx.Initializer = _KERNEL_INIT,
    bias_init: nnx.Initializer = _BIAS_INIT,
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
    if padding not in _PADDINGS:
      raise ValueError(
        f'Conv: padding must be one of {_PADDINGS}, got padding={padding!r}.'
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
    self.padding = padding
    shape = (*_pair('kernel_size', kernel_size), in_features, out_features)
    kernel_key, bias_key = rngs.params(), rngs.params()
    self.kernel = nnx.Param(kernel_init(kernel_key, shape))
    self.bias: nnx.Param | None = (
      nnx.Param(bias_init(bias_key, (out_features,)))
      if use_bias
      else nnx.data(None)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, in_features]` to `[B, H', W', out_features]`."""
    in_features = self.kernel.shape[2]
    self._check(x, -1, f'[B, H, W, {in_features}]')
    return swap_batch_and_channels(self._chwb(swap_batch_and_channels(x)))

  def chwb(
    self,
    x: jax.Array,
    before_bias: Callable[[jax.Array], jax.Array] | None = None,
  ) -> jax.Array:
    """The same convolution with the batch as the last axis.

    Args:
      x: `[in_features, H, W, B]`.
      before_bias: a function of the sums before the bias is added, such as
        `max_pool`: the result is the same as after the bias, at less cost. It
        must keep the axes, and commute with adding a constant to a channel.

    Returns:
      `[out_features, H', W', B]`, or `before_bias` of that.
    """
    in_features = self.kernel.shape[2]
    self._check(x, 0, f'[{in_features}, H, W, B]')
    return self._chwb(x, before_bias)

  def _chwb(self, x, before_bias=None):
    y = self._products(x)
    if before_bias is not None:
      y = before_bias(y)
    if self.bias is None:
      return y
    return y + jnp.broadcast_to(self.bias[...][:, None, None, None], y.shape)

  def _products(self, x):
    kernel = self.kernel[...]
    if self.implementation == 'lax':
      layout = ('CHWN', 'HWIO', 'CHWN')
      dtype = jnp.result_type(x, kernel)  # A product promotes, this does not.
      return lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        self.strides,
        self.padding,
        dimension_numbers=layout,
      )
    kernel = _batched_like(kernel, x)
    kh, kw, _, out_features = kernel.shape
    patches = _patches(x, (kh, kw), self.strides, self.padding)
    y = kernel.reshape(-1, out_features).T @ patches.reshape(len(patches), -1)
    return y.reshape(out_features, *patches.shape[1:])

  def _check(self, x, axis, shape):
    if x.ndim != 4 or x.shape[axis] != self.kernel.shape[2]:
      raise ValueError(
        f'Conv: x must have shape {shape}, got x.shape={x.shape}.'
      )
    kernel_size = self.kernel.shape[:2]
    rows, columns = (a - b for a, b in zip(x.shape[1:3], kernel_size))
    if self.padding == 'VALID' and min(rows, columns) < 0:
      raise ValueError(
        f'Conv: x must be at least as large as the kernel {kernel_size} where '
        f"padding='VALID', got x.shape={x.shape}."
      )


def max_pool(x: jax.Array) -> jax.Array:
  r"""Max pooling over 2 x 2 windows with stride 2.

  .. math::
    y_{b, p, q, c} = \max_{i, j \in \{0, 1\}} x_{b, 2p + i, 2q + j, c}

  An odd last row or column is left out, as in `nnx.max_pool` with its default
  padding. The gradient is that of `jnp.maximum`: entries that tie share it
  equally. NaN in a window gives NaN.

  Args:
    x: float `[B, H, W, C]` or `[C, H, W, B]`, with H and W at least 2.

  Returns:
    `[B, H // 2, W // 2, C]` or `[C, H // 2, W // 2, B]`, of the dtype of `x`.

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
  outer, height, width, inner = x.shape
  rows, columns = height // 2, width // 2
  x = x[:, : 2 * rows, : 2 * columns]
  x = x.reshape(outer, rows, 2, columns, 2, inner)
  # The gradient of a split puts both parts side by side. Those of slices, of a
  # reduction and of a window reduction are slower on CPU.
  x = jnp.maximum(*lax.split(x, (1, 1), axis=2))
  x = jnp.maximum(*lax.split(x, (1, 1), axis=4))
  return x.reshape(outer, rows, columns, inner)
