"""What a worker does between two communications, in types."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax._src import base

LossFn = Callable[[base.Params, Any], jax.Array]  # (params, batch_i) -> scalar


class LocalContext(NamedTuple):
  """What a local objective may know beside parameters and batch.

  Attributes:
    anchor: the parameters that the worker received at the start of the round.
    key: of this worker and this local step alone.
    step: int32[], the local step, from 0.
    round: int32[], the rounds before this one, or the steps of the server where
      workers do not wait for each other; what a schedule goes by.
  """

  anchor: base.Params
  key: jax.Array
  step: jax.Array
  round: jax.Array | int = 0


class Objective(NamedTuple):
  """A loss that a worker descends on its own, in place of a plain one.

  Attributes:
    loss: `(params, batch_i, context) -> scalar`, differentiable in params; what
      stands for the loss in `local_round` and `robust_round`. Its gradient is
      what the worker steps along, so that a part of the parameters may ascend
      by reversing its gradient.
    name: as in `byzjax.objectives.proximal`.
  """

  loss: Callable[[base.Params, Any, LocalContext], jax.Array]
  name: str = 'objective'


class GradientEstimator(NamedTuple):
  """What a worker computes in place of a gradient, such as `entropy_gradient`.

  It goes wherever a round takes `value_and_grad`. Called as `(params, batch,
  key, round=0)` it is used alone, like `jax.value_and_grad(loss_fn)`; jit a
  function that calls it.

  Attributes:
    estimate: `(params, batch_i, context) -> (loss, gradient)`, with a
      `LocalContext`.
    num_gradients: gradients of the loss that one estimate takes, a Python int;
      None if that is not known.
    name: as in `byzjax.entropy_gradient`.
  """

  estimate: Callable[
    [base.Params, Any, LocalContext], tuple[jax.Array, base.Params]
  ]
  num_gradients: int | None = 1
  name: str = 'estimator'

  def __call__(
    self,
    params: base.Params,
    batch: Any,
    key: jax.Array,
    round: jax.Array | int = 0,
  ) -> tuple[jax.Array, base.Params]:
    """`(loss, gradient)` at the parameters, in the first local step."""
    first = jnp.zeros([], jnp.int32)
    return self.estimate(params, batch, LocalContext(params, key, first, round))

  def count_gradients(self, num_estimates: jax.Array | int) -> jax.Array | None:
    """Gradients that so many estimates take: int32 of their shape, or None."""
    if self.num_gradients is None:
      return None
    return jnp.asarray(num_estimates, jnp.int32) * self.num_gradients


# `(params, batch_i, key_i) -> (loss, gradient)`, or with a context
ValueAndGrad = (
  Callable[[base.Params, Any, jax.Array], tuple[jax.Array, base.Params]]
  | GradientEstimator
)


class LocalSampler(NamedTuple):
  """How a worker takes batches from its data, step by step, in one round.

  Attributes:
    init: `params -> state`, what one worker keeps from round to round.
    start: `(state, params, data_i, key) -> plan`, once a round: data_i is the
      worker's slice of what the round was given, params are what it received.
    draw: `(plan, data_i, step int32[], key) -> (batch_i, plan)`, once a local
      step, with a key of its own.
    finish: `(state, params) -> state`, with the worker's parameters after its
      last local step.
  """

  init: Callable[[base.Params], base.State]
  start: Callable[..., base.State]
  draw: Callable[..., tuple[Any, base.State]]
  finish: Callable[[base.State, base.Params], base.State]


class Participation(NamedTuple):
  """Who takes part in a round, when that depends on more than its number.

  Attributes:
    init: `num_workers -> state`.
    score: `(params, data_i) -> float[]` of one worker, computed before the
      draw, or None.
    draw: `(state, scores float[n] or None, step, key) -> (weights float[n],
      state)`: exactly m of them positive, and 0 for who does not take part.
    num_participants: m, a Python int.
  """

  init: Callable[[int], base.State]
  score: Callable[[base.Params, Any], jax.Array] | None
  draw: Callable[..., tuple[jax.Array, base.State]]
  num_participants: int


def as_objective(loss_fn: LossFn | Objective) -> Objective:
  """A plain loss as an objective that does not look at the context."""
  if isinstance(loss_fn, Objective):
    return loss_fn
  return Objective(lambda params, batch, context: loss_fn(params, batch))


def as_estimator(
  loss_fn: LossFn | Objective, value_and_grad: ValueAndGrad | None = None
) -> GradientEstimator:
  """What takes the place of the gradient of the loss, or that gradient."""
  if value_and_grad is None:
    return GradientEstimator(jax.value_and_grad(as_objective(loss_fn).loss))
  if isinstance(value_and_grad, GradientEstimator):
    return value_and_grad
  plain = value_and_grad
  return GradientEstimator(
    lambda params, batch, context: plain(params, batch, context.key), None
  )
