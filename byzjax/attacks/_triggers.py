"""Triggers: the patterns that a backdoor attack puts into images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax._src import base, checks, recipes

CORNERS = ('top_left', 'top_right', 'bottom_left', 'bottom_right')


class Trigger(NamedTuple):
  """A pattern in images to which a backdoored model responds.

  Calling it adds the whole trigger. A NamedTuple cannot be jitted: jit
  `trigger.apply`, or a function that calls the trigger.

  Attributes:
    num_parts: number of parts shared by the Byzantine workers; 1 if undivided.
    apply: `(images [..., H, W, C], part=None) -> images`, with the whole
      trigger, or with one part, an integer that may be traced.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> trigger = byzjax.patch_trigger(size=2)
    >>> float(trigger(jnp.zeros([5, 8, 8, 1])).sum())
    20.0
  """

  num_parts: int
  apply: Callable[..., jax.Array]

  @property
  def config(self) -> dict[str, Any] | None:
    """The hyper-parameters by name, as `Aggregator.config`."""
    return recipes.config_of(self)

  def __call__(self, images: jax.Array) -> jax.Array:
    """The images with the whole trigger, as used for testing."""
    return self.apply(images)

  def __repr__(self) -> str:
    return recipes.show(self, 'trigger')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


@recipes.factory
def patch_trigger(
  *,
  size: int = 4,
  value: base.Scalar = 1.0,
  corner: str = 'bottom_right',
  margin: int = 1,
) -> Trigger:
  """A bright square in a corner of the image (BadNets).

  `x[i, j] = value` in `size` x `size` pixels, in all channels. The value is in
  the units of the images that the loss gets: 1 is white if pixels are in [0,
  1], but not after a normalisation.

  Args:
    size: side of the square in pixels, a Python int of at least 1.
    value: value of the pixels; may be traced.
    corner: 'top_left', 'top_right', 'bottom_left' or 'bottom_right'.
    margin: pixels between the square and the border, a Python int >= 0.

  Returns:
    A `Trigger` for images `[..., H, W, C]`, dtypes kept.

  Raises:
    ValueError: if an argument has the wrong type or range; at trace time, if
      the square does not fit into the image, or the value into integer pixels.

  References:
    Gu, Dolan-Gavitt, Garg, 2017, arXiv:1708.06733.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> trigger = byzjax.patch_trigger(size=2, corner='top_right')
    >>> trigger(jnp.zeros([4, 5, 1]))[..., 0]
    Array([[0., 0., 0., 0., 0.],
           [0., 0., 1., 1., 0.],
           [0., 0., 1., 1., 0.],
           [0., 0., 0., 0., 0.]], dtype=float32)
  """
  name = 'patch_trigger'
  checks.check_count(name, 'size', size, 1)
  checks.check_range(name, 'value', value)
  checks.check_choice(name, 'corner', corner, CORNERS)
  checks.check_count(name, 'margin', margin)

  def apply(images, part=None):
    del part
    images = _as_images(name, images)
    mask = _corner_mask(name, images, np.ones([size, size]), corner, margin)
    return _painted(name, images, mask, value)

  return Trigger(1, apply)


@recipes.factory
def distributed_trigger(
  *,
  length: int = 4,
  gap: int = 2,
  value: base.Scalar = 1.0,
  corner: str = 'top_left',
  margin: int = 0,
) -> Trigger:
  """A pattern of four strips; each Byzantine worker uses one of them (DBA).

  The distributed backdoor attack has two rows of two strips, each one pixel
  high and `length` wide, with `gap` pixels between them in both directions. In
  training, Byzantine worker number a uses strip `a mod 4`; the test uses all
  four. The defaults are those of the paper for MNIST; its values for CIFAR are
  length 6 and gap 3.

  Args:
    length: width of a strip in pixels, a Python int of at least 1.
    gap: pixels between strips, a Python int >= 0.
    value: value of the pixels, as for `patch_trigger`; may be traced.
    corner: the corner of the image, as for `patch_trigger`.
    margin: pixels between the strips and the border, a Python int >= 0.

  Returns:
    A `Trigger` of four parts for images `[..., H, W, C]`, dtypes kept.

  Raises:
    ValueError: as `patch_trigger`, or if the part is not in 0 ... 3 (a traced
      one is not checked).

  References:
    Xie, Huang, Chen, Li, 2020, "DBA: Distributed backdoor attacks against
    federated learning", ICLR.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> trigger = byzjax.distributed_trigger(length=2, gap=1)
    >>> trigger(jnp.zeros([3, 5, 1]))[..., 0]
    Array([[1., 1., 0., 1., 1.],
           [0., 0., 0., 0., 0.],
           [1., 1., 0., 1., 1.]], dtype=float32)
    >>> trigger.apply(jnp.zeros([3, 5, 1]), 1)[0, :, 0]
    Array([0., 0., 0., 1., 1.], dtype=float32)
  """
  name = 'distributed_trigger'
  checks.check_count(name, 'length', length, 1)
  checks.check_count(name, 'gap', gap)
  checks.check_range(name, 'value', value)
  checks.check_choice(name, 'corner', corner, CORNERS)
  checks.check_count(name, 'margin', margin)
  strips = np.zeros([4, gap + 2, 2 * length + gap])
  for part, (row, column) in enumerate(np.ndindex(2, 2)):
    start = column * (length + gap)
    strips[part, row * (gap + 1), start : start + length] = 1

  def apply(images, part=None):
    images = _as_images(name, images)
    if part is not None:
      checks.check_whole(name, 'part', part)
      if not isinstance(part, jax.core.Tracer) and not np.all(part < 4):
        raise ValueError(f'{name} needs part < 4, got {part}')
    masks = jnp.stack(
      [_corner_mask(name, images, strip, corner, margin) for strip in strips]
    )
    mask = masks.any(0) if part is None else masks[part]
    return _painted(name, images, mask, value)

  return Trigger(4, apply)


@recipes.factory
def blended_trigger(
  *,
  pattern: np.ndarray | jax.Array | None = None,
  alpha: base.Scalar = 0.2,
  seed: int = 0,
) -> Trigger:
  """A second image blended weakly into the whole image.

  `x' = (1 - alpha) x + alpha pattern`. Integer pixels are rounded.

  Args:
    pattern: [H, W, C], in the units of the images; None for noise, uniform in
      [0, 1], or in the range of integer pixels.
    alpha: weight of the pattern, in [0, 1]; may be traced.
    seed: the seed of the noise, a Python int.

  Returns:
    A `Trigger` for images `[..., H, W, C]`, dtypes kept.

  Raises:
    ValueError: if an argument has the wrong type or range; at trace time, if
      the pattern and the images have different sizes.

  References:
    Chen, Liu, Li, Lu, Song, 2017, arXiv:1712.05526.

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> trigger = byzjax.blended_trigger(pattern=jnp.ones([1, 2, 1]), alpha=0.2)
    >>> trigger(jnp.array([[[0.], [0.5]]]))[..., 0]
    Array([[0.2, 0.6]], dtype=float32)
  """
  name = 'blended_trigger'
  if pattern is not None and jnp.ndim(pattern) != 3:
    raise ValueError(
      f'{name} needs pattern to be an array [H, W, C] or None, got the shape'
      f' {list(jnp.shape(pattern))}'
    )
  checks.check_range(name, 'alpha', alpha, 0, 1)
  checks.check_count(name, 'seed', seed)

  def apply(images, part=None):
    del part
    images = _as_images(name, images)
    whole = jnp.issubdtype(images.dtype, jnp.integer)
    over = pattern
    if over is None:
      over = np.random.default_rng(seed).random(images.shape[-3:])
      over = over * jnp.iinfo(images.dtype).max if whole else over
    if jnp.shape(over) != images.shape[-3:]:
      raise ValueError(
        f'{name} needs pattern to be as large as the images, got'
        f' {list(jnp.shape(over))} and {list(images.shape[-3:])}'
      )
    kind = jnp.promote_types(images.dtype, jnp.float32)
    over = jnp.broadcast_to(jnp.asarray(over, kind), images.shape)
    blended = (1 - alpha) * images.astype(kind) + alpha * over
    if whole:
      limits = jnp.iinfo(images.dtype)
      blended = jnp.clip(jnp.round(blended), limits.min, limits.max)
    return blended.astype(images.dtype)

  return Trigger(1, apply)


def _as_images(name: str, images: Any) -> jax.Array:
  """The images as an array, or a ValueError unless `[..., H, W, C]`."""
  if jnp.ndim(images) < 3:
    raise ValueError(
      f'{name} needs images [..., H, W, C], got the shape'
      f' {list(jnp.shape(images))}'
    )
  return jnp.asarray(images)


def _corner_mask(
  name: str, images: Any, shape: np.ndarray, corner: str, margin: int
) -> np.ndarray:
  """The pixels of a shape in a corner: bool[H, W]."""
  size, (h, w) = images.shape[-3:-1], shape.shape
  if h + margin > size[0] or w + margin > size[1]:
    raise ValueError(
      f'{name} needs {h} x {w} pixels and margin={margin} to fit into the'
      f' images, got images of {size[0]} x {size[1]} pixels'
    )
  top = margin if corner.startswith('top') else size[0] - h - margin
  left = margin if corner.endswith('left') else size[1] - w - margin
  mask = np.zeros(size, bool)
  mask[top : top + h, left : left + w] = shape > 0
  return mask


def _painted(name: str, images: jax.Array, mask: Any, value: Any) -> jax.Array:
  """The value where the mask is: no arithmetic, as a pixel may be NaN."""
  if jnp.issubdtype(images.dtype, jnp.integer) and not isinstance(
    value, jax.core.Tracer
  ):
    limits = jnp.iinfo(images.dtype)
    if not limits.min <= value <= limits.max or value != int(value):
      raise ValueError(
        f'{name} needs value to be an integer that fits into pixels of'
        f' {images.dtype}, got {value}'
      )
  painted = jnp.asarray(value).astype(images.dtype)
  mask = jnp.broadcast_to(jnp.asarray(mask)[..., None], images.shape)
  return jnp.where(mask, painted, images)
