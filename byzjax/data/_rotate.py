"""Feature shift: rotated images, with angles that differ between workers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from byzjax._src import checks
from byzjax.data._partition import Partition, check_concentration

_CHUNK = 1024  # images at a time, which bounds memory on whole data sets


def rotate(images: jax.Array, angles: jax.Array | float) -> jax.Array:
  """Rotates images counterclockwise about their centre, on the same canvas.

  Bilinear interpolation, with zeros outside the image. The angle is split into
  quarter turns, which are exact, and the rest: multiples of 90 degrees give
  `rot90` for square images, and 0 degrees changes no bit. Pillow and
  torchvision use the same direction, but take the nearest pixel by default.

  To test at the angles of `rotation_shift`, rotate the whole test set by each
  angle.

  Args:
    images: `[..., H, W, C]`; integers are rounded to the nearest.
    angles: degrees, `[...]`, or one number for all.

  Returns:
    Images of the same shape and dtype.

  Raises:
    ValueError: if the images have fewer than three axes, or the number of
      angles is not one per image.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import data
    >>> image = jnp.array([[1., 2.], [3., 4.]])[:, :, None]
    >>> print(data.rotate(image, 90.0)[:, :, 0])
    [[2. 4.]
     [1. 3.]]
  """
  images, angles = jnp.asarray(images), jnp.asarray(angles, jnp.float32)
  if images.ndim < 3:
    raise ValueError(
      'rotate: images must be [..., H, W, C], got the shape'
      f' {list(images.shape)}.'
    )
  lead, shape = images.shape[:-3], images.shape[-3:]
  if angles.shape not in ((), lead):
    raise ValueError(
      'rotate: angles must be one number, or one per image, got the shapes'
      f' {list(angles.shape)} of angles and {list(images.shape)} of images.'
    )
  flat = images.reshape(-1, *shape)
  angle = jnp.broadcast_to(angles, lead).reshape(-1)
  if len(flat) <= _CHUNK:
    return jax.vmap(_rotate_one)(flat, angle).reshape(images.shape)
  rotated = jax.lax.map(
    lambda pair: _rotate_one(*pair), (flat, angle), batch_size=_CHUNK
  )
  return rotated.reshape(images.shape)


def _rotate_one(image: jax.Array, angle: jax.Array) -> jax.Array:
  height, width, _ = image.shape
  turns = jnp.round(angle / 90)
  rest = jnp.deg2rad(angle - 90 * turns)
  quarter = turns.astype(jnp.int32) % 4
  # Cosine and sine of the quarter turns are whole numbers.
  cos90 = jnp.array([1, 0, -1, 0], jnp.float32)[quarter]
  sin90 = jnp.array([0, 1, 0, -1], jnp.float32)[quarter]
  cos = jnp.cos(rest) * cos90 - jnp.sin(rest) * sin90
  sin = jnp.sin(rest) * cos90 + jnp.cos(rest) * sin90
  center_y, center_x = (height - 1) / 2, (width - 1) / 2
  y, x = jnp.meshgrid(
    jnp.arange(height, dtype=jnp.float32) - center_y,
    jnp.arange(width, dtype=jnp.float32) - center_x,
    indexing='ij',
  )
  # Where the pixel at (y, x) comes from; y points down.
  source = [center_y + y * cos + x * sin, center_x + x * cos - y * sin]
  rotated = jax.vmap(
    lambda channel: ndimage.map_coordinates(channel, source, order=1),
    in_axes=-1,
    out_axes=-1,
  )(image)
  return jnp.where((rest == 0) & (quarter == 0), image, rotated)


def rotation_shift(
  partition: Partition,
  angles: Sequence[float],
  *,
  concentration: float,
  num_examples: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  r"""An angle for each example, from its worker's own Dirichlet mix of angles.

  .. math::
    q_i \sim \mathrm{Dir}(\tfrac{\alpha}{A} 1_A), \qquad
    \theta_j \sim q_i \text{ for each } j \in S_i

  This is a feature shift: apply `images = rotate(images, rotation_shift(...))`
  once, before training. Each example must belong to only one worker. Hold out
  examples afterwards, so that they have the angles of their worker. The draws
  of worker i do not depend on the other workers.

  Args:
    partition: a `Partition` in which each example has at most one worker.
    angles: the A angles, in degrees.
    concentration: alpha > 0, in total over all angles; other authors call
      `alpha / A`, the concentration per angle, alpha.
    num_examples: N of the data set; None for the largest index in the partition
      plus one.
    seed: the seed of the mixes and the draws.

  Returns:
    Degrees, float32 `[N]`; 0 for examples without a worker.

  Raises:
    ValueError: if there are no angles, alpha is not positive and finite, N is
      too small, or an example belongs to two workers.

  References:
    Guo, Tang, Lin, 2023, arXiv:2205.13462.

  Example:
    >>> import numpy as np
    >>> from byzjax import data
    >>> partition = data.random_shards(np.zeros(12, int), 3)
    >>> degrees = data.rotation_shift(partition, [0, 90], concentration=1e-9)
    >>> [len(set(degrees[row])) for row in partition.indices]
    [1, 1, 1]
  """
  name = 'rotation_shift'
  checks.check_kind(name, 'partition', partition, Partition)
  checks.check_sequence(name, 'angles', angles)
  for angle in angles:
    checks.check_real(name, 'angles', angle)
  checks.check_count(name, 'seed', seed)
  if num_examples is not None:
    checks.check_count(name, 'num_examples', num_examples, 1)
  choices = np.asarray(angles, np.float32)
  if choices.ndim != 1 or choices.size == 0:
    raise ValueError(
      f'{name}: angles must be a sequence of at least one number, got the'
      f' shape {list(choices.shape)}.'
    )
  check_concentration(name, concentration)
  indices, sizes = np.asarray(partition.indices), np.asarray(partition.sizes)
  shards = [row[:size] for row, size in zip(indices, sizes)]
  counts = np.bincount(np.concatenate(shards), minlength=num_examples or 0)
  if num_examples is not None and counts.size > num_examples:
    raise ValueError(
      f'{name}: num_examples must cover the partition, got {num_examples} for'
      f' one that holds example {counts.size - 1}.'
    )
  if counts.max() > 1:
    raise ValueError(
      f'{name}: an example must belong to one worker at most, got'
      f' {counts.max()} for example {int(counts.argmax())}.'
    )
  degrees = np.zeros(counts.size, np.float32)
  for worker, shard in enumerate(shards):
    rng = np.random.default_rng([seed, worker])
    mix = rng.dirichlet(np.full(choices.size, concentration / choices.size))
    degrees[shard] = rng.choice(choices, shard.size, p=mix)
  return degrees
