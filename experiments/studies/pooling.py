"""Smaller images, for studies whose networks are too slow on whole ones."""

import numpy as np


def pooled(images: np.ndarray, k: int) -> np.ndarray:
  """The mean of windows of k x k pixels, in the type of the images."""
  rows, columns, _ = shape_of(images.shape[1:], k)
  total = np.zeros((len(images), *shape_of(images.shape[1:], k)), np.float32)
  for i in range(k):
    for j in range(k):
      total += images[:, i : rows * k : k, j : columns * k : k]
  return np.rint(total / k**2).astype(images.dtype)


def shape_of(shape, k: int) -> tuple[int, int, int]:
  """The shape of an image that is pooled."""
  height, width, channels = shape
  return height // k, width // k, channels
