"""The standard augmentation of small photographs."""

import jax
import jax.numpy as jnp

from byzjax._src import checks


def random_crop_and_flip(
  images: jax.Array, key: jax.Array, *, padding: int = 4
) -> jax.Array:
  """Shifts every image by up to `padding` pixels, and flips half of them.

  An image is padded with zeros on all sides and cropped to its size at a
  uniformly random position; with probability 1/2 it is flipped horizontally.
  Images are treated independently.

  Args:
    images: float `[..., H, W, C]`, for example a batch `[n, B, H, W, C]`.
    key: a key of `jax.random.key`; do not use it again.
    padding: p >= 0, a Python int; 4 is usual for 32 x 32.

  Returns:
    Images of the same shape and dtype.

  Raises:
    ValueError: if p is not an int of at least 0, or the images have fewer than
      three axes.

  References:
    He, Zhang, Ren, Sun, 2016, arXiv:1512.03385, section 4.2.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import data
    >>> images = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> key = jax.random.key(1)
    >>> data.random_crop_and_flip(images, key, padding=0)[0, :, :, 0].shape
    (2, 2)
  """
  checks.check_key('random_crop_and_flip', 'key', key)
  if not checks.is_whole(padding) or padding < 0:
    raise ValueError(
      'random_crop_and_flip: padding must be a Python int of at least 0, got'
      f' padding={padding!r}.'
    )
  if images.ndim < 3:
    raise ValueError(
      'random_crop_and_flip: images must be [..., H, W, C], got the shape'
      f' {list(images.shape)}.'
    )
  shape = images.shape[-3:]

  def one(image, key):
    crop_key, flip_key = jax.random.split(key)
    wide = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    place = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
    cut = jax.lax.dynamic_slice(wide, (place[0], place[1], 0), shape)
    return jnp.where(jax.random.bernoulli(flip_key), cut[:, ::-1], cut)

  flat = images.reshape(-1, *shape)
  keys = jax.random.split(key, len(flat))
  return jax.vmap(one)(flat, keys).reshape(images.shape)
