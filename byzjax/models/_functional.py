"""Pure functions of a flax model, for rounds and estimators."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from byzjax._src import checks, flat, parameters

Params = Any
Batch = tuple[jax.Array, jax.Array]
LossFn = Callable[..., jax.Array]
Apply = Callable[[Params, jax.Array], jax.Array]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
  """Splits a model into its structure and its parameters.

  `nnx.merge(graphdef, params)` is the model again. It may have no other state.

  Args:
    model: a flax `nnx` module.

  Returns:
    `(graphdef, params)`: a hashable description, and the pytree of parameters.

  Raises:
    ValueError: if the model has state other than `nnx.Param`, such as the
      statistics of `nnx.BatchNorm` or the random streams of `nnx.Dropout`.

  Example:
    >>> import jax
    >>> from byzjax import models
    >>> model = models.make('mlp', (8, 8, 1), 10, seed=0)
    >>> graphdef, params = models.split(model)
    >>> sum(p.size for p in jax.tree.leaves(params))
    2410
  """
  parameters.check_whole_state('split', 'model', model)
  graphdef, params, *_ = nnx.split(model, nnx.Param, ...)
  return graphdef, params


def cross_entropy_loss(
  graphdef: nnx.GraphDef, *, needs_key: bool = False
) -> LossFn:
  r"""The mean softmax cross entropy of a model, as a function to differentiate.

  .. math::
    \ell(\theta, (x, y)) = -\frac{1}{B} \sum_{b=1}^{B}
      \log \mathrm{softmax}(f_\theta(x_b))_{y_b}

  Args:
    graphdef: structure of the model f, from `split`.
    needs_key: whether the loss takes a key, to train a model with dropout: f is
      then called as `f(x, rngs=nnx.Rngs(dropout=key))`. Rounds, objectives and
      estimators with this loss need `needs_key=True`, too. Without a key f is
      called as `f(x)`.

  Returns:
    `loss_fn(params, batch)`, or `loss_fn(params, batch, key)`, where `batch` is
    `(images, labels)`: float32 `[B, H, W, C]` and int32 `[B]` with values in
    `[0, num_classes)`. The loss is a float32 scalar.

  Raises:
    ValueError: if `needs_key` is not a bool.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> model = models.make('mlp', (8, 8, 1), 10, seed=0)
    >>> graphdef, params = models.split(model)
    >>> loss_fn = models.cross_entropy_loss(graphdef)
    >>> batch = (jnp.zeros([5, 8, 8, 1]), jnp.arange(5))
    >>> print(f'{loss_fn(params, batch):.4f}')
    2.3026
  """
  checks.check_flag('cross_entropy_loss', 'needs_key', needs_key)

  def loss_fn(params: Params, batch: Batch) -> jax.Array:
    images, labels = batch
    return _mean_loss(nnx.merge(graphdef, params)(images), labels)

  def loss_with_dropout(
    params: Params, batch: Batch, key: jax.Array
  ) -> jax.Array:
    images, labels = batch
    rngs = nnx.Rngs(dropout=key)
    return _mean_loss(nnx.merge(graphdef, params)(images, rngs=rngs), labels)

  return loss_with_dropout if needs_key else loss_fn


def _mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  # The loss of logits in half precision has two digits in it.
  logits = logits.astype(flat.compute_dtype(logits))
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses.mean()


def has_dropout(graphdef: nnx.GraphDef) -> bool:
  """Whether a model has dropout, so that training needs a key.

  Args:
    graphdef: structure of the model, from `split`.

  Returns:
    Whether an `nnx.Dropout` is part of the model: the value of `needs_key` for
    `cross_entropy_loss` and for the round that trains it.

  Example:
    >>> from byzjax import models
    >>> model = models.make('dropout_cnn', (8, 8, 1), 10, seed=0)
    >>> models.has_dropout(models.split(model)[0])
    True
  """
  return any(
    getattr(node, 'type', None) is nnx.Dropout for node in graphdef.nodes
  )


def features_and_classifier(graphdef: nnx.GraphDef) -> tuple[Apply, Apply]:
  r"""A model as two functions: up to its last layer, and the last layer.

  .. math::
    f_\theta(x) = \mathrm{classify}(\theta, \mathrm{features}(\theta, x))

  Args:
    graphdef: structure of the model f, from `split`; of a class that has the
      methods `features` and `classify`, as all of `byzjax.models`.

  Returns:
    `(features, classify)`: `features(params, x)` maps `[B, H, W, C]` to `[B,
    d]`, and `classify(params, z)` maps that to logits `[B, K]`. Both take all
    parameters of the model.

  Raises:
    ValueError: when they are called, if the model has no such methods.

  Example:
    >>> import jax.numpy as jnp
    >>> from byzjax import models
    >>> model = models.make('mlp', (8, 8, 1), 10, seed=0)
    >>> graphdef, params = models.split(model)
    >>> features, classify = models.features_and_classifier(graphdef)
    >>> z = features(params, jnp.ones([5, 8, 8, 1]))
    >>> z.shape, classify(params, z).shape
    ((5, 32), (5, 10))
  """

  def method(params: Params, name: str) -> Callable[[jax.Array], jax.Array]:
    model = nnx.merge(graphdef, params)
    if not callable(bound := getattr(model, name, None)):
      raise ValueError(
        'features_and_classifier: the model must have the methods features and '
        f'classify, got {type(model).__name__} without {name}.'
      )
    return bound

  def features(params: Params, x: jax.Array) -> jax.Array:
    return method(params, 'features')(x)

  def classify(params: Params, z: jax.Array) -> jax.Array:
    return method(params, 'classify')(z)

  return features, classify


def classifier_weights(
  graphdef: nnx.GraphDef,
) -> Callable[[Params], tuple[jax.Array, jax.Array | None]]:
  r"""The weights of the last layer of a model, for losses that need them.

  .. math::
    \mathrm{classify}(\theta, z) = z W(\theta) + b(\theta)

  Args:
    graphdef: structure of the model, from `split`; of a class that has the
      property `classifier`, an `nnx.Linear`: all but `Transformer`.

  Returns:
    `params -> (W [d, K], b [K])`, with None for b if the layer has no bias.

  Raises:
    ValueError: when it is called, if the model has no such layer.

  Example:
    >>> from byzjax import models
    >>> model = models.make('mlp', (8, 8, 1), 10, seed=0)
    >>> graphdef, params = models.split(model)
    >>> weights, bias = models.classifier_weights(graphdef)(params)
    >>> weights.shape, bias.shape
    ((32, 10), (10,))
  """

  def weights_and_bias(params: Params) -> tuple[jax.Array, jax.Array | None]:
    model = nnx.merge(graphdef, params)
    layer = getattr(model, 'classifier', None)
    if not isinstance(layer, nnx.Linear):
      raise ValueError(
        'classifier_weights: the model must have the property classifier, an '
        f'nnx.Linear, got {type(model).__name__} with {layer!r}.'
      )
    return layer.kernel[...], None if layer.bias is None else layer.bias[...]

  return weights_and_bias
