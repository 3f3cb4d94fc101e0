"""What samplers share: checks, and examples taken from the whole data set."""

import jax
import jax.numpy as jnp

from byzjax._src import checks


def check(function: str, images: jax.Array, labels: jax.Array) -> None:
  """Raises ValueError unless there is one whole label for each image."""
  if images.shape[0] != labels.shape[0]:
    raise ValueError(
      f'{function}: images and labels must hold the same number of examples, '
      f'got images.shape={images.shape} and labels.shape={labels.shape}.'
    )
  # They become int32, which would cut the targets of a regression.
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f'{function}: labels must be integers, got {labels.dtype}.'
    )


def check_batch(function: str, batch_size: int, scale: float) -> None:
  """Raises ValueError unless the batch size and the scale are positive."""
  checks.check_count(function, 'batch_size', batch_size, 1)
  checks.check_range(function, 'scale', scale, 0, exclusive=True)


def take(
  images: jax.Array, labels: jax.Array, chosen: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
  """The chosen examples: images in float32 over the scale, and int32 labels."""
  batch = images[chosen].astype(jnp.float32) / scale
  return batch, labels[chosen].astype(jnp.int32)
