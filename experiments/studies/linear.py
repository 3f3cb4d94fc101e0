"""One linear layer, for studies of what is proved for convex losses."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
  """Scores of classes, linear in the pixels; from zero."""

  def __init__(self, shape, num_classes: int):
    self.weights = nnx.Param(jnp.zeros((math.prod(shape), num_classes)))
    self.bias = nnx.Param(jnp.zeros(num_classes))

  def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
    del rngs
    return x.reshape(len(x), -1) @ self.weights[...] + self.bias[...][None]


def network(shape, num_classes: int, seed: int) -> Linear:
  del seed
  return Linear(shape, num_classes)
