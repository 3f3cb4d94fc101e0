"""Target projection: layers that learn from fixed targets without backprop."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, checks, flat, local, loss_forms
from byzjax.gradients import _layer_gradients
from byzjax.gradients._stages import (
  AnyStage,
  Model,
  Stage,
  groups_of,
  layers_of,
)

_NAME = 'target_projection'

# `(P y*, y) -> e`, with -e the derivative of the layer's loss by y.
_RESIDUALS = {
  'l2': lambda target, y: target - y,
  'l1': lambda target, y: jnp.sign(target - y),
  'drtp': lambda target, y: target,
}

_PROJECTIONS = {
  'signs': jax.random.rademacher,
  'uniform': lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -1, 1
  ),
  'he_uniform': jax.nn.initializers.he_uniform(in_axis=-1, out_axis=-2),
}


# `(key, (num_classes, width), dtype) -> array`, as of jax.nn.initializers.
Projection = Callable[[jax.Array, tuple[int, int], Any], jax.Array]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses.mean()


def target_projection(
  stages: Sequence[AnyStage],
  *,
  num_classes: int,
  projection_key: jax.Array,
  residual: str = 'l2',
  projection: str | Projection = 'signs',
  scale: base.Scalar = 0.5,
  output_loss: Callable[[jax.Array, jax.Array], Any] = _cross_entropy,
  has_aux: bool = False,
) -> local.GradientEstimator:
  r"""Trains each layer on its own loss with fixed random targets (tpSGD, DRTP).

  The target of layer i, `y_i = sigma(W_i h_{i-1} + b_i)`, is the column of a
  fixed random matrix P_i that belongs to the label of the example (y* is the
  one-hot label). Its loss J_i is the batch mean of one of these, with h_{i-1} a
  constant:

  * `'l2'`: `J_i = |P_i y* - y_i|^2 / 2`, so that `e_i = P_i y* - y_i`;
  * `'l1'`: `J_i = |P_i y* - y_i|_1`, so that `e_i = sign(P_i y* - y_i)`;
  * `'drtp'`: `J_i = -<P_i y*, y_i>`, so that `e_i = P_i y*`: direct random
    target projection, whose matrix B is -P.

  The gradient is `dJ_i / dW_i = -(e_i * sigma'(z_i)) h_{i-1}^T`, averaged over
  the batch, and correspondingly for the kernel of a convolution; no other
  parameters depend on J_i. (The papers' l2 has no 1/2: their factor 2 is here
  in the learning rate.) The last stage gets the exact gradient of the task loss
  for its own parameters.

  The target is for y_i by default, or for the input of the next layer, such as
  a pooled y_i (`Stage.targets_after`), or for k numbers, `R_i` times one of
  these (`Stage.readout`), with a fixed R_i drawn from N(0, 1 / width). With a
  target for every pixel, one kernel gets different targets at different
  positions, so convolutions learn better with the last two options. J_i is then
  the loss of these numbers, and its gradient is propagated to W_i through
  pooling and R_i.

  In recurrent layers J_i is the sum over the steps t of such losses of h_t,
  with h_{t-1} a constant: `dW = -sum_t (e_t * sigma') x_t^T` and `dU = -sum_t
  (e_t * sigma') h_{t-1}^T`. With `RecurrentStage.last_step` J_i is the loss of
  h_T alone; a target for every step requires the class after the first input.
  With `through_time` the gradient of J_i is propagated through the h_t of the
  layer itself, and only its inputs are constants. The stage after consecutive
  recurrent stages gets the last h_t of the last one.

  Nothing is stored for a backward pass: the gradient of a layer is complete
  before the next layer is computed. Temporary memory is that of one layer for
  any depth, and of one step of the recurrent layers for any length. If one of
  consecutive recurrent stages has `through_time`, they run through time one
  after another, and memory is that of all steps of one layer.

  Gradients of hidden layers have their own scale. If the last layer needs
  another learning rate, use `optax.partition`. DRTP's released code takes the
  batch mean for the output layer, but the *sum* for hidden layers, so at one
  learning rate these move B times as fast as here. The gradient of 'drtp' is
  linear in P, so `scale=B` reproduces that code: 100 with its batches of 100
  and 'he_uniform'.

  Args:
    stages: the stages of a model from input to output, as from
      `byzjax.models.stages`; every parameter belongs to exactly one of them.
      The last is a `Stage`, and its y is the output. A recurrent stage that
      does not follow another one gets inputs [B, T, ...].
    num_classes: C >= 1, a Python int; labels are int[B] from 0 to C - 1.
    projection_key: the key of all P_i. It must be the same for all workers in
      all rounds; a worker's own key is not used.
    residual: 'l2', 'l1' or 'drtp'.
    projection: distribution of P_i, drawn as its transpose float[C, width of
      y_i]: 'signs' (-1 and 1), 'uniform' (from -1 to 1), 'he_uniform' (from
      -sqrt(6 / width) to sqrt(6 / width), for DRTP with a scale of 1), or a
      function like those of `jax.nn.initializers`.
    scale: factor on P_i, scale >= 0; may be traced. Targets of l2 and l1 should
      be inside the range of the activation.
    output_loss: `(output, labels) -> scalar`; the mean softmax cross entropy.
    has_aux: whether output_loss is `(loss, aux)`; the round then reports aux.

  Returns:
    A `GradientEstimator` for batches `(inputs [B, ...], labels)`, for
    `value_and_grad` of every round that accepts one; it reports the loss of the
    last stage. It counts as one gradient.

  Raises:
    ValueError: if an argument is out of range; at trace time, if a parameter
      belongs to no stage or to several, or labels are not int[B].

  References:
    Lomnitz, Daniels, Zhang, Piacentino, 2022, arXiv:2208.08503; DRTP: Frenkel,
    Lefebvre, Bol, 2021, arXiv:1909.01311.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> stages = [
    ...   byzjax.Stage(lambda p: p['a'], lambda p, h: jnp.tanh(h @ p['a'])),
    ...   byzjax.Stage(lambda p: p['b'], lambda p, h: h @ p['b'])]
    >>> estimator = byzjax.target_projection(
    ...   stages, num_classes=2, projection_key=jax.random.key(0))
    >>> params = {'a': jnp.ones([3, 4]), 'b': jnp.zeros([4, 2])}
    >>> batch = (jnp.ones([5, 3]), jnp.array([0, 1, 1, 0, 1]))
    >>> loss, gradient = estimator(params, batch, jax.random.key(1))
    >>> print(f'{loss:.4f}', jax.tree.map(jnp.shape, gradient))
    0.6931 {'a': (3, 4), 'b': (4, 2)}
  """
  checks.check_sequence(_NAME, 'stages', stages)
  checks.check_key(_NAME, 'projection_key', projection_key)
  checks.check_function(_NAME, 'output_loss', output_loss)
  checks.check_flag(_NAME, 'has_aux', has_aux)
  stages = tuple(stages)
  checks.check_count(_NAME, 'num_classes', num_classes, 1)
  checks.check_range(_NAME, 'scale', scale, 0)
  checks.check_choice(_NAME, 'residual', residual, _RESIDUALS)
  if not callable(projection):
    checks.check_choice(_NAME, 'projection', projection, _PROJECTIONS)
    projection = _PROJECTIONS[projection]
  if not stages or not isinstance(stages[-1], Stage):
    raise ValueError(f'{_NAME} needs stages to end with a Stage, got {stages}')
  draw, residual_of = projection, _RESIDUALS[residual]
  _check_stages(stages)

  def key_of(layer):
    return jax.random.fold_in(projection_key, layer.number)

  def errors(layer, y, labels):
    """`y -> e / B` of a layer that has a target of what is like this."""
    shape = (num_classes, math.prod(y.shape[1:]))
    dtype = flat.compute_dtype(y.dtype)
    columns = jnp.asarray(scale * draw(key_of(layer), shape, dtype), dtype)
    if columns.shape != shape:
      raise ValueError(
        f'{_NAME} needs projection to draw float{list(shape)}, got the shape'
        f' {list(columns.shape)}'
      )
    target = columns[labels].reshape(y.shape)

    def of(y):
      return (residual_of(target, y.astype(dtype)) / len(y)).astype(y.dtype)

    return of

  def estimate(params, batch, context):
    del context  # The projections are the same for all workers.
    h, labels = batch
    labels = _check_labels(labels, h)
    model = Model(*jax.tree.flatten(params))
    layers = layers_of(_NAME, stages, params, model)
    gradient = model
    for group in groups_of(layers[:-1]):
      of_layers = _layer_gradients.of(group)
      h, gradients = of_layers(model, group, errors, key_of, h, labels)
      for layer, own in zip(group, gradients):
        gradient = gradient.replace(layer, own)
      h = _layer_gradients.once_known(h, gradients)
    last = layers[-1]

    def of_last(own):
      value = output_loss(model.apply(last, own, h), labels)
      loss_forms.split_value(_NAME, 'output_loss', value, has_aux)
      return value

    value, own = jax.value_and_grad(of_last, has_aux=has_aux)(model.own(last))
    return value, gradient.replace(last, own).params()

  return local.GradientEstimator(estimate, name=_NAME, has_aux=has_aux)


def _check_stages(stages: Sequence[AnyStage]) -> None:
  for number, stage in enumerate(stages):
    if isinstance(stage, Stage) and stage.readout is not None:
      checks.check_count(_NAME, f'stages[{number}].readout', stage.readout, 1)


def _check_labels(labels: Any, inputs: jax.Array) -> jax.Array:
  labels = jnp.asarray(labels)
  integers = jnp.issubdtype(labels.dtype, jnp.integer)
  if not integers or labels.shape != inputs.shape[:1]:
    raise ValueError(
      f'{_NAME} needs labels to be int[{inputs.shape[0]}], one per example, got'
      f' {labels.dtype}{list(labels.shape)}'
    )
  return labels
