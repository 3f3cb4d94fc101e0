"""Smaller images, for studies whose networks are too slow on whole ones."""

import numpy as np


def pooled(images: np.ndarray, k: int) -> np.ndarray:
  """The mean of windows of k x k pixels, in the type of the images."""
  height, width, channels = images.shape[1:]
  rows, columns = height // k, width // k
  total = np.zeros((len(images), rows, columns, channels), np.float32)
  for i in range(k):
    for j in range(k):
      total += images[:, i : rows * k : k, j : columns * k : k]
  return np.rint(total / k**2).astype(images.dtype)
