"""Noisy softmax: cross entropy with noise that lowers the target logit."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, flat, local

Amplitude = Literal['annealed', 'norms', 'constant']
Direction = Literal['lower', 'both', 'raise']


def noisy_softmax_cross_entropy(
  features: jax.Array,
  weights: jax.Array,
  bias: jax.Array | None,
  labels: jax.Array,
  *,
  alpha: base.Scalar,
  key: jax.Array,
  amplitude: Amplitude = 'annealed',
  direction: Direction = 'lower',
) -> jax.Array:
  """Softmax cross entropy per row, with noise in the target logit.

  With X a row, y its label, theta the angle between X and the column W_y, and
  xi ~ N(0, 1) drawn for each row,

  `-log softmax(f - n e_y)_y`, with `f = X W + b` and
  `n = alpha |W_y| |X| (1 - cos theta) |xi|`.

  The noise is never negative, is 0 if X points along W_y, and is at most `2
  alpha |W_y| |X| |xi|`. So it decreases as a row is learned, and until then it
  prevents the softmax from saturating. Gradients include those of the noise and
  its norms: that of the target logit with respect to X is `(1 + s) W_y - s
  |W_y| X / |X|`, with `s = alpha |xi|`, and likewise for W_y. For a row or a
  column of zeros the gradient of its norm is defined as 0.

  `alpha = 0` is the softmax cross entropy, to be used for testing; a constant
  in place of `|xi|` would be a margin. The bias does not enter the noise; the
  paper has no bias. At initialisation cos theta is near 0, so the first noise
  is about `alpha |W_y| |X| |xi|`.

  Variants that the paper compares with: its amplitude noise is
  `amplitude='norms'`, its free noise `'constant'`; its normal noise is
  `direction='both'`, and its negative noise `'raise'`. With 'constant' no
  gradient passes through the noise.

  Args:
    features: X, float `[B, d]`, the input of the last layer.
    weights: W of the last layer, float `[d, C]`.
    bias: b, float `[C]`, or None.
    labels: y, integers `[B]` in `[0, C)`.
    alpha: noise strength, >= 0; may be traced. In the paper `alpha^2` near 0.1
      is best, and training is slow if it is much larger.
    key: the key of xi.
    amplitude: the factor on `alpha |xi|`: `|W_y| |X| (1 - cos theta)`
      ('annealed'), `|W_y| |X|` ('norms') or 1 ('constant').
    direction: 'lower' subtracts the noise from the target logit, 'raise' adds
      it, and 'both' subtracts it with xi instead of `|xi|`.

  Returns:
    float32 `[B]`, or float64 for float64 arguments. Products and norms of half
    precision are accumulated in float32.

  Raises:
    ValueError: if shapes do not match, labels are not integers, alpha is
      negative, or a name is unknown.

  References:
    Chen, Deng, Du, 2017, arXiv:1708.03769.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from byzjax import objectives
    >>> weights, labels = jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.array([0, 0])
    >>> features = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # along W_0, across it
    >>> for alpha in (0.0, 0.3):
    ...   losses = objectives.noisy_softmax_cross_entropy(
    ...     features, weights, None, labels, alpha=alpha, key=jax.random.key(0))
    ...   print(' '.join(f'{loss:.3f}' for loss in losses))
    0.002 4.018
    0.002 5.826
  """
  name = 'noisy_softmax_cross_entropy'
  _check_names(name, amplitude, direction)
  checks.check_range(name, 'alpha', alpha, 0)
  checks.check_key(name, 'key', key)
  _check_shapes(name, features, weights, bias, labels)
  dtype = flat.compute_dtype(features.dtype, weights.dtype)
  is_target = labels[:, None] == jnp.arange(weights.shape[1])[None]

  def of_target(x):
    return jnp.sum(jnp.where(is_target, x, 0), axis=1)

  products = jnp.matmul(features, weights, preferred_element_type=dtype)
  xi = jax.random.normal(key, labels.shape, dtype)
  strength = (alpha * jnp.abs(xi)).astype(dtype)
  # In this order alpha = 0 is 0 even if the product of the norms overflows.
  lengths = strength * _norms(features, 1, dtype)
  lengths = lengths * of_target(_norms(weights, 0, dtype)[None])
  noise = {
    'annealed': lengths - strength * of_target(products),
    'norms': lengths,
    'constant': strength,
  }[amplitude]
  noise = {'lower': noise, 'both': noise * jnp.sign(xi), 'raise': -noise}[
    direction
  ]

  logits = products
  if bias is not None:
    logits = logits + bias.astype(dtype)[None]
  logits = jnp.where(is_target, logits - noise[:, None], logits)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def noisy_softmax(
  features: Callable[[base.Params, jax.Array], jax.Array],
  classifier: Callable[[base.Params], tuple[jax.Array, jax.Array | None]],
  *,
  alpha: base.Scalar,
  amplitude: Amplitude = 'annealed',
  direction: Direction = 'lower',
) -> local.Objective:
  """The mean of `noisy_softmax_cross_entropy` over a batch, as an objective.

  `mean_b -log softmax(f_b - n_b e_y)_y` with n as in that function. Every
  worker and step has its own key, so workers do not share noise: honest
  messages then differ even on equal data, which worker momentum averages out.
  Test with the plain softmax, as `models.evaluate` does.

  Args:
    features: `(params, x [B, ...]) -> X [B, d]`, as the first of
      `models.features_and_classifier(graphdef)`.
    classifier: `params -> (W [d, C], b [C] or None)`, the last layer, as
      `models.classifier_weights(graphdef)`.
    alpha: as in `noisy_softmax_cross_entropy`; may be traced.
    amplitude: as in `noisy_softmax_cross_entropy`.
    direction: as in `noisy_softmax_cross_entropy`.

  Returns:
    An `Objective` for batches `(inputs [B, ...], labels int[B])`.

  Raises:
    ValueError: as for `noisy_softmax_cross_entropy`.

  References:
    Chen, Deng, Du, 2017, arXiv:1708.03769.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> from byzjax import models
    >>> model = models.make('mlp', (4, 4, 1), 3, seed=0)
    >>> graphdef, params = models.split(model)
    >>> features, _ = models.features_and_classifier(graphdef)
    >>> objective = byzjax.objectives.noisy_softmax(
    ...   features, models.classifier_weights(graphdef), alpha=0.3)
    >>> context = byzjax.LocalContext(params, jax.random.key(0), jnp.array(0))
    >>> batch = jnp.ones([5, 4, 4, 1]), jnp.arange(5) % 3
    >>> plain = models.cross_entropy_loss(graphdef)(params, batch)
    >>> bool(objective.loss(params, batch, context) > plain)
    True
  """
  _check_names('noisy_softmax', amplitude, direction)
  checks.check_range('noisy_softmax', 'alpha', alpha, 0)
  checks.check_function('noisy_softmax', 'features', features)
  checks.check_function('noisy_softmax', 'classifier', classifier)

  def loss(params, batch, context):
    inputs, labels = batch
    losses = noisy_softmax_cross_entropy(
      features(params, inputs),
      *classifier(params),
      labels,
      alpha=alpha,
      key=context.key,
      amplitude=amplitude,
      direction=direction,
    )
    return jnp.mean(losses)

  return local.Objective(loss, 'noisy_softmax')


def _norms(x: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
  """Along an axis; at zero with the gradient zero, and without overflow."""
  x = x.astype(dtype)
  largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
  is_zero = largest == 0
  unit = x / jnp.where(is_zero, 1, largest)
  squared = jnp.sum(jnp.square(unit), axis=axis, keepdims=True) + is_zero
  return jnp.squeeze(largest * jnp.sqrt(squared), axis=axis)


def _check_names(name: str, amplitude: str, direction: str) -> None:
  for argument, value, known in [
    ('amplitude', amplitude, get_args(Amplitude)),
    ('direction', direction, get_args(Direction)),
  ]:
    if value not in known:
      raise ValueError(
        f'{name} needs {argument} to be one of {", ".join(known)}, got'
        f' {value!r}'
      )


def _check_shapes(name, features, weights, bias, labels):
  shapes = [jnp.shape(x) for x in (features, weights, labels)]
  fits = [len(shape) for shape in shapes] == [2, 2, 1]
  fits = fits and shapes[0] == (*shapes[2], shapes[1][0])
  if not fits or (bias is not None and jnp.shape(bias) != shapes[1][1:]):
    given = [shapes[0], shapes[1], bias if bias is None else jnp.shape(bias)]
    raise ValueError(
      f'{name} needs features [B, d], weights [d, C], bias [C] or None and'
      f' labels [B], got {", ".join(map(str, [*given, shapes[2]]))}'
    )
  if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
    raise ValueError(
      f'{name} needs labels to be integers, got {jnp.result_type(labels)}'
    )
