"""The parameters of a multi-layer perceptron as plain pairs, and back."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

_LAYERS = 'layers'


def mlp_layers(params: Any) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """The parameters of an `MLP` as one pair per layer, from input to output.

  Args:
    params: from `split(MLP(...))`; may be stacked, with more leading axes.

  Returns:
    A tuple of `(kernel float[in, out], bias float[out])`, as
    `analysis.dropout_path` and others take them.

  Raises:
    ValueError: if the parameters are not those of an `MLP`.

  Example:
    >>> from byzjax import models
    >>> from flax import nnx
    >>> _, params = models.split(models.MLP((64, 32, 10), rngs=nnx.Rngs(0)))
    >>> [(k.shape, b.shape) for k, b in models.mlp_layers(params)]
    [((64, 32), (32,)), ((32, 10), (10,))]
  """
  is_mlp = isinstance(params, nnx.State) and set(params) == {_LAYERS}
  if not is_mlp or any(
    set(layer) != {'kernel', 'bias'} for layer in params[_LAYERS].values()
  ):
    raise ValueError(
      'mlp_layers needs params to be those of an MLP, got'
      f' {type(params).__name__}'
    )
  layers = params[_LAYERS]
  return tuple(
    (layers[i]['kernel'][...], layers[i]['bias'][...]) for i in sorted(layers)
  )


def mlp_params(layers: Sequence[tuple[jax.Array, jax.Array]]) -> Any:
  """The parameters of an `MLP` from its layers, for `nnx.merge` and losses.

  Args:
    layers: of the shapes that `mlp_layers` gives for the model.

  Returns:
    The parameters: `mlp_params(mlp_layers(params))` is `params`.

  Example:
    >>> import jax
    >>> from byzjax import models
    >>> from flax import nnx
    >>> graphdef, params = models.split(
    ...   models.MLP((64, 32, 10), rngs=nnx.Rngs(0)))
    >>> again = models.mlp_params(models.mlp_layers(params))
    >>> jax.tree.structure(again) == jax.tree.structure(params)
    True
  """
  return nnx.from_flat_state(
    [
      ((_LAYERS, number, name), nnx.Param(leaf))
      for number, layer in enumerate(layers)
      for name, leaf in zip(('kernel', 'bias'), layer)
    ]
  )
