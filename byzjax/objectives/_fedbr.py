"""FedBR: reduces local bias of features and classifier by shared data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, checks, local
from byzjax.objectives import _projection, _wasserstein


def fedbr(
  features: Callable[[base.Params, jax.Array], jax.Array],
  classify: Callable[[base.Params, jax.Array], jax.Array],
  *,
  pseudo_inputs: jax.Array,
  ascent_step_size: base.Scalar,
  contrast_weight: base.Scalar = 0.5,
  pseudo_weight: base.Scalar = 1.0,
  tau_pull: base.Scalar = 2.0,
  tau_push: base.Scalar = 2.0,
  num_mixed: int = 0,
) -> local.Objective:
  """Cross entropy plus two terms that reduce the local bias of a model (FedBR).

  Let z be the features of the batch, z_p those of shared pseudo-inputs, z_g the
  features that the received (global) model gives to the same pseudo-inputs, P a
  projection and s the row-wise cosine:

  `J = CE(classify(z), y) + mu l_con(P) + lambda CE(classify(z_p), 1 / C)`,
  `l_con(P) = mean_i log(1 + exp(tau_push s(P z_p, P z) - tau_pull s(P z_p,
  P z_g)))`.

  The model descends J while the projection ascends l_con. One gradient contains
  both: for `params['projection']` it is minus the gradient of l_con (with z and
  z_p constant), so that a descent step ascends; for `params['model']` it is the
  gradient of J at the projection after one ascent step, P + eta grad l_con.
  This is exactly the published step if the local optimizer is SGD with learning
  rate eta; with another optimizer P takes different steps, but the model still
  uses the ascent step with eta.

  With `mu = lambda = 0` the model follows the plain cross entropy, bit for bit,
  independently of the projection. tau multiplies the cosine, as in the released
  code. z_g is recomputed in each step (which mixtures need; the released code
  keeps that of the first step). A zero row has cosine 0.

  The parameters of a round are `{'model': ..., 'projection': ...}`: workers
  send both, and the same robust rule aggregates both.

  Args:
    features: `(params['model'], x [B, ...]) -> z [B, d]`, as the first of
      `models.features_and_classifier(graphdef)`.
    classify: `(params['model'], z) -> logits [B, C]`, as the second.
    pseudo_inputs: float `[B, ...]`, shared by all workers, one for each row of
      a batch: see `random_sample_means`.
    ascent_step_size: eta >= 0, of the ascent step inside J; may be traced.
    contrast_weight: mu >= 0; may be traced. The paper's value is 0.5.
    pseudo_weight: lambda >= 0; may be traced. 1.0 in the released code.
    tau_pull: tau_pull >= 0, inverse temperature of local vs. global features.
    tau_push: tau_push >= 0, inverse temperature of features of pseudo-inputs
      vs. those of the batch.
    num_mixed: K, a Python int >= 0: in each step each pseudo-input is averaged
      with K random inputs of the batch, and its target 1 / C with their labels.
      0 leaves the pseudo-inputs unchanged.

  Returns:
    An `Objective` for batches `(inputs float[B, ...], labels int[B])`, with
    value J.

  Raises:
    ValueError: if an argument is out of its range; at trace time, if the
      parameters do not have these two parts, pseudo-inputs and inputs differ in
      shape, or inputs are not floats.

  References:
    Guo, Tang, Lin, 2023, arXiv:2205.13462.

  Example:
    >>> import byzjax, jax, jax.numpy as jnp
    >>> from byzjax import models
    >>> graphdef, model = models.split(models.make('mlp', (4, 4, 1), 3, seed=0))
    >>> params = {
    ...   'model': model,
    ...   'projection': byzjax.objectives.projection(
    ...     jax.random.key(0), num_features=32)}
    >>> objective = byzjax.objectives.fedbr(
    ...   *models.features_and_classifier(graphdef),
    ...   pseudo_inputs=jnp.ones([5, 4, 4, 1]), ascent_step_size=0.01)
    >>> context = byzjax.LocalContext(params, jax.random.key(0), jnp.array(0))
    >>> batch = jnp.zeros([5, 4, 4, 1]), jnp.arange(5) % 3
    >>> objective.loss(params, batch, context).shape
    ()
  """
  for name, value in [
    ('ascent_step_size', ascent_step_size),
    ('contrast_weight', contrast_weight),
    ('pseudo_weight', pseudo_weight),
    ('tau_pull', tau_pull),
    ('tau_push', tau_push),
  ]:
    checks.check_range('fedbr', name, value, 0)
  checks.check_count('fedbr', 'num_mixed', num_mixed)
  checks.check_function('fedbr', 'features', features)
  checks.check_function('fedbr', 'classify', classify)

  def contrast(head, z, z_p, z_g):
    a, b, c = (_projection.project(head, x) for x in (z_p, z_g, z))
    pull, push = tau_pull * _cosine(a, b), tau_push * _cosine(a, c)
    return jnp.mean(jax.nn.softplus(push - pull))

  def loss(params, batch, context):
    model, head = _parts(params)
    inputs, labels = batch
    _check_shapes(pseudo_inputs, inputs)
    _wasserstein.check_floats('fedbr', inputs, 'averages')
    shared, chosen = _mix(pseudo_inputs, inputs, num_mixed, context.key)
    z, z_p = features(model, inputs), features(model, shared)
    anchor = lax.stop_gradient(context.anchor['model'])
    z_g = lax.stop_gradient(features(anchor, shared))
    logits, logits_p = classify(model, z), classify(model, z_p)

    fixed_head = lax.stop_gradient(head)
    direction = jax.grad(contrast)(
      fixed_head, lax.stop_gradient(z), lax.stop_gradient(z_p), z_g
    )
    ascended = jax.tree.map(
      lambda p, g: (p + ascent_step_size * g).astype(p.dtype),
      fixed_head,
      direction,
    )
    targets = _targets(logits_p, labels, chosen)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    value = (
      jnp.mean(cross_entropy(logits, labels))
      + contrast_weight * contrast(ascended, z, z_p, z_g)
      + pseudo_weight * jnp.mean(optax.softmax_cross_entropy(logits_p, targets))
    )
    # Zero, with the gradient -direction: one gradient of the contrast is
    # enough, and no second derivative is taken.
    moved = jax.tree.map(jnp.subtract, head, fixed_head)
    return value - optax.tree.vdot(direction, moved).astype(value.dtype)

  return local.Objective(loss, 'fedbr')


def _parts(params: Any) -> tuple[base.Params, base.Params]:
  if not isinstance(params, dict) or set(params) != {'model', 'projection'}:
    keys = sorted(params) if isinstance(params, dict) else type(params)
    raise ValueError(
      "fedbr needs params to be {'model': ..., 'projection': ...}, got"
      f' {keys}'
    )
  return params['model'], params['projection']


def _check_shapes(pseudo_inputs: jax.Array, inputs: jax.Array) -> None:
  if jnp.shape(pseudo_inputs) != jnp.shape(inputs):
    raise ValueError(
      'fedbr needs pseudo_inputs to have the shape of the inputs, one for each'
      f' row, got {list(jnp.shape(pseudo_inputs))} and'
      f' {list(jnp.shape(inputs))}'
    )


def _mix(
  pseudo_inputs: jax.Array, inputs: jax.Array, num_mixed: int, key: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
  """Means with K random rows of the inputs, and which rows: int[B, K]."""
  shared = jnp.asarray(pseudo_inputs, inputs.dtype)
  if num_mixed == 0:
    return shared, None
  rows = inputs.shape[0]
  chosen = jax.random.randint(key, (rows, num_mixed), 0, rows)
  return (shared + inputs[chosen].sum(axis=1)) / (num_mixed + 1), chosen


def _targets(
  logits: jax.Array, labels: jax.Array, chosen: jax.Array | None
) -> jax.Array:
  """What the classifier should say of pseudo-inputs: [B, C]."""
  num_classes = logits.shape[-1]
  uniform = jnp.full_like(logits, 1 / num_classes)
  if chosen is None:
    return uniform
  mixed = jax.nn.one_hot(labels[chosen], num_classes, dtype=logits.dtype)
  return (uniform + mixed.sum(axis=1)) / (chosen.shape[1] + 1)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.sum(_unit(x) * _unit(y), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
  # Not x / max(|x|, small): its derivative at zero is 1 / small.
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  is_zero = squared == 0
  scale = lax.rsqrt(jnp.where(is_zero, 1, squared))
  return x * jnp.where(is_zero, 0, scale)
