"""Models by name."""

import math

from flax import nnx

from byzjax.models._cnn import CNN
from byzjax.models._dropout_cnn import DropoutCNN
from byzjax.models._mlp import MLP
from byzjax.models._resnet import ResNet20

_NAMES = ('cnn', 'dropout_cnn', 'mlp', 'resnet20')
_HIDDEN = 32


def make(
  name: str,
  image_shape: tuple[int, int, int],
  num_classes: int,
  *,
  seed: int,
) -> CNN | DropoutCNN | MLP | ResNet20:
  """The named model for one image shape, determined by the seed.

  `'mlp'` is `MLP((H * W * C, 32, num_classes))`; `'cnn'` is `CNN`,
  `'dropout_cnn'` is `DropoutCNN` and `'resnet20'` is `ResNet20`.

  Args:
    name: one of `'cnn'`, `'dropout_cnn'`, `'mlp'`, `'resnet20'`.
    image_shape: `(H, W, C)`.
    num_classes: number of classes K, at least 1.
    seed: the seed of the initial weights.

  Returns:
    A module that maps float32 `[B, H, W, C]` to logits, float32 `[B, K]`.

  Raises:
    ValueError: if the name is unknown, or the model does not allow the shapes.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> model = models.make('mlp', (8, 8, 1), 10, seed=0)
    >>> model(jnp.ones([5, 8, 8, 1])).shape
    (5, 10)
  """
  rngs = nnx.Rngs(seed)
  match name:
    case 'cnn':
      return CNN(image_shape, num_classes, rngs=rngs)
    case 'dropout_cnn':
      return DropoutCNN(image_shape, num_classes, rngs=rngs)
    case 'mlp':
      sizes = (math.prod(image_shape), _HIDDEN, num_classes)
      return MLP(sizes, rngs=rngs)
    case 'resnet20':
      return ResNet20(image_shape, num_classes, rngs=rngs)
  raise ValueError(
    f'make: name must be one of {", ".join(_NAMES)}, got name={name!r}.'
  )
