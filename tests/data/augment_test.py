"""Shifts and mirror images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data


def test_every_image_is_a_shift_of_itself_or_of_its_mirror_image():
  images = jax.random.normal(jax.random.key(0), (3, 40, 4, 5, 2))
  found = np.asarray(
    data.random_crop_and_flip(images, jax.random.key(1), padding=1)
  )
  assert found.shape == images.shape
  padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
  seen = set()
  for i, j in np.ndindex(3, 40):
    matches = [
      (up, left, flip)
      for up in range(3)
      for left in range(3)
      for flip in (False, True)
      for cut in [padded[i, j, up : up + 4, left : left + 5]]
      if np.array_equal(cut[:, ::-1] if flip else cut, found[i, j])
    ]
    assert len(matches) == 1
    seen.add(matches[0])
  assert len(seen) == 18  # All of them, in 120 draws.


def test_without_padding_half_of_the_images_are_mirrored():
  images = jnp.arange(6.0).reshape(1, 2, 3, 1).repeat(400, axis=0)
  found = data.random_crop_and_flip(images, jax.random.key(2), padding=0)
  same = np.asarray((found == images).all(axis=(1, 2, 3)))
  mirrored = np.asarray((found == images[:, :, ::-1]).all(axis=(1, 2, 3)))
  assert np.all(same ^ mirrored)
  assert abs(same.mean() - 0.5) < 0.1  # Four standard deviations.


def test_refuses():
  with pytest.raises(ValueError, match=r'padding must be .* got padding=-1'):
    data.random_crop_and_flip(
      jnp.zeros((1, 2, 2, 1)), jax.random.key(0), padding=-1
    )
  with pytest.raises(
    ValueError, match=r'\[\.\.\., H, W, C\], got the shape \[2, 2\]'
  ):
    data.random_crop_and_flip(jnp.zeros((2, 2)), jax.random.key(0))
