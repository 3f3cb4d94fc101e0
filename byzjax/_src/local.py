"""The types of local work: objectives, estimators, samplers."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from byzjax._src import base, flat, loss_forms

# `(params, batch_i) -> scalar`; with a key_i behind them where `needs_key`, and
# `-> (scalar, aux)` where `has_aux`.
LossFn = (
  Callable[[base.Params, Any], jax.Array | tuple[jax.Array, Any]]
  | Callable[[base.Params, Any, jax.Array], jax.Array | tuple[jax.Array, Any]]
)
PlainLossFn = Callable[[base.Params, Any], jax.Array]


class LocalContext(NamedTuple):
  """What a local objective may use besides parameters and batch.

  Attributes:
    anchor: the parameters that the worker received at the start of the round.
    key: only for this worker and this local step.
    step: int32[], the local step, from 0.
    round: int32[], the number of rounds before this one, or of server steps if
      rounds are asynchronous; the argument of schedules.
  """

  anchor: base.Params
  key: jax.Array
  step: jax.Array
  round: jax.Array | int = 0


def first_context(
  params: base.Params, key: jax.Array, round: jax.Array | int
) -> LocalContext:
  """The context of the first local step, at the received parameters."""
  return LocalContext(params, key, jnp.zeros([], jnp.int32), round)


class Objective(NamedTuple):
  """A loss that a worker minimises in its local steps, instead of a plain one.

  Attributes:
    loss: `(params, batch_i, context) -> scalar`, differentiable in params; it
      replaces the loss in `local_round` and `robust_round`. The worker descends
      along its gradient; to ascend in a part of the parameters, reverse the
      gradient there. `-> (scalar, aux)` if `has_aux`.
    name: as in `byzjax.objectives.proximal`.
    has_aux: whether there is an auxiliary output, a tree of arrays, which
      rounds report in `RoundInfo.aux`.
  """

  loss: Callable[[base.Params, Any, LocalContext], Any]
  name: str = 'objective'
  has_aux: bool = False


class GradientEstimator(NamedTuple):
  """What a worker computes instead of a gradient, such as `entropy_gradient`.

  It is used wherever a round takes `value_and_grad`. It can also be called
  alone, as `(params, batch, key, round=0)`, like `jax.value_and_grad(loss_fn)`;
  jit a function that calls it.

  Attributes:
    estimate: `(params, batch_i, context) -> (loss, gradient)`, with a
      `LocalContext`; `-> ((loss, aux), gradient)` if `has_aux`.
    num_gradients: number of gradients of the loss per estimate, a Python int;
      None if not known.
    name: as in `byzjax.entropy_gradient`.
    has_aux: whether there is an auxiliary output, as of `jax.value_and_grad`.
  """

  estimate: Callable[[base.Params, Any, LocalContext], tuple[Any, base.Params]]
  num_gradients: int | None = 1
  name: str = 'estimator'
  has_aux: bool = False

  def __call__(
    self,
    params: base.Params,
    batch: Any,
    key: jax.Array,
    round: jax.Array | int = 0,
  ) -> tuple[Any, base.Params]:
    """`(loss, gradient)` at the parameters, in the first local step."""
    return self.estimate(params, batch, first_context(params, key, round))

  def count_gradients(self, num_estimates: jax.Array | int) -> jax.Array | None:
    """The number of gradients of so many estimates: int32 or None."""
    return _count_gradients(self.num_gradients, num_estimates)


def _count_gradients(
  of_one: int | None, num_estimates: jax.Array | int
) -> jax.Array | None:
  if of_one is None:
    return None
  return jnp.asarray(num_estimates, jnp.int32) * of_one


class StatefulEstimator(NamedTuple):
  """An estimator with a state, of the current and the previous parameters.

  It is used where `robust_round` takes `value_and_grad`, such as `storm`.

  Attributes:
    init: `params -> state`, what one worker keeps from round to round.
    estimate: `(params, previous, batch_i, state, context) -> (loss, message,
      state)`: `previous` are the parameters of this worker's last round (in the
      first round, params); the message has the shape of params; loss is `(loss,
      aux)` if `has_aux`.
    num_gradients: number of gradients of the loss per estimate, a Python int;
      None if not known.
    name: as in `byzjax.storm`.
    has_aux: whether there is an auxiliary output.
  """

  init: Callable[[base.Params], base.State]
  estimate: Callable[..., tuple[Any, base.Params, base.State]]
  num_gradients: int | None = None
  name: str = 'estimator'
  has_aux: bool = False

  def count_gradients(self, num_estimates: jax.Array | int) -> jax.Array | None:
    """The number of gradients of so many estimates: int32 or None."""
    return _count_gradients(self.num_gradients, num_estimates)


# `(params, batch_i, key_i) -> (loss, gradient)`, or with a context; with
# `has_aux`, `((loss, aux), gradient)`.
ValueAndGrad = (
  Callable[[base.Params, Any, jax.Array], tuple[Any, base.Params]]
  | GradientEstimator
)


class Estimate(NamedTuple):
  """The result of an estimator, with its auxiliary output or None."""

  loss: jax.Array
  gradient: base.Params
  aux: Any = None


class LocalSampler(NamedTuple):
  """How a worker takes the batches of its local steps from its data.

  Attributes:
    init: `params -> state`, what one worker keeps from round to round.
    start: `(state, params, data_i, key) -> plan`, once a round: data_i is the
      worker's slice of the round's batch, params are those that it received.
    draw: `(plan, data_i, step int32[], key) -> (batch_i, plan)`, once a local
      step, with a key of its own.
    finish: `(state, params) -> state`, with the worker's parameters after its
      last local step.
    carry_over: `(plan, state) -> state`, after `finish`: keeps what the next
      round needs of the plan, such as the position in a pass over the data.
  """

  init: Callable[[base.Params], base.State]
  start: Callable[..., base.State]
  draw: Callable[..., tuple[Any, base.State]]
  finish: Callable[[base.State, base.Params], base.State]
  carry_over: Callable[[base.State, base.State], base.State] = (
    lambda plan, state: state
  )


class Participation(NamedTuple):
  """Sampling of the participants of a round, with a state or with scores.

  Attributes:
    init: `num_workers -> state`.
    score: `(params, data_i) -> float[]` of one worker, computed before `draw`,
      or None.
    draw: `(state, scores float[n] or None, step, key) -> (weights float[n],
      state)`: exactly m weights positive, and 0 for workers not sampled.
    num_participants: m, a Python int.
  """

  init: Callable[[int], base.State]
  score: Callable[[base.Params, Any], jax.Array] | None
  draw: Callable[..., tuple[jax.Array, base.State]]
  num_participants: int


def as_objective(
  loss_fn: LossFn | Objective,
  *,
  name: str,
  needs_key: bool = False,
  has_aux: bool = False,
) -> Objective:
  """A plain loss as an objective, called with the key of the context.

  `name` is of the calling function, for errors. An `Objective` itself defines
  `has_aux` and how it uses keys.
  """
  loss_forms.check_flags(name, needs_key, has_aux)
  if isinstance(loss_fn, Objective):
    if needs_key:
      raise ValueError(
        f'{name} needs needs_key to be False where loss_fn is an Objective,'
        f' which uses the key of its context, got the Objective {loss_fn.name}:'
        ' pass needs_key=True to the function that made it'
      )
    if has_aux and not loss_fn.has_aux:
      raise ValueError(
        f'{name} needs has_aux to be False where loss_fn is an Objective'
        f' without auxiliary output, got the Objective {loss_fn.name}: pass'
        ' has_aux=True to the function that made it'
      )
    return loss_fn
  if isinstance(loss_fn, GradientEstimator):
    raise ValueError(
      f'{name} needs loss_fn to be a loss, got the GradientEstimator'
      f' {loss_fn.name}: pass it as value_and_grad'
    )
  loss_forms.check_signature(name, loss_fn, needs_key)
  plain: Any = loss_fn
  if needs_key:
    return Objective(
      lambda params, batch, context: plain(params, batch, context.key),
      has_aux=has_aux,
    )
  return Objective(
    lambda params, batch, context: plain(params, batch), has_aux=has_aux
  )


def as_estimator(
  loss_fn: LossFn | Objective,
  value_and_grad: ValueAndGrad | None = None,
  *,
  name: str,
  needs_key: bool = False,
  has_aux: bool = False,
) -> GradientEstimator:
  """The estimator in place of the gradient of the loss, or that gradient.

  Its results are checked when it is traced; `name` is for errors.
  """
  loss_forms.check_flags(name, needs_key, has_aux)
  if value_and_grad is None:
    objective = as_objective(
      loss_fn, name=name, needs_key=needs_key, has_aux=has_aux
    )

    def value(params, batch, context):
      output = loss_and_aux(name, objective, params, batch, context)
      return joined(objective, *output)

    return GradientEstimator(
      jax.value_and_grad(value, has_aux=objective.has_aux),
      has_aux=objective.has_aux,
    )
  if not callable(value_and_grad):
    raise TypeError(
      f'{name} needs value_and_grad to be a function (params, batch_i, key_i)'
      f' -> (loss, gradient) or a GradientEstimator, got {value_and_grad!r}'
    )
  if needs_key:
    _refuse_key(name)
  if not isinstance(value_and_grad, GradientEstimator):
    plain = value_and_grad
    value_and_grad = GradientEstimator(
      lambda params, batch, context: plain(params, batch, context.key),
      None,
      has_aux=has_aux,
    )
  else:
    check_own_flags(name, value_and_grad, needs_key, has_aux)
  given = value_and_grad

  def checked(params, batch, context):
    output = given.estimate(params, batch, context)
    if not isinstance(output, tuple) or len(output) != 2:
      raise ValueError(
        f'{name} needs value_and_grad to return a pair with the gradient'
        f' second, got {loss_forms.form(output)}'
      )
    loss_forms.split_value(name, 'value_and_grad', output[0], given.has_aux)
    return output

  return given._replace(estimate=checked)


def check_own_flags(
  name: str,
  estimator: GradientEstimator | StatefulEstimator,
  needs_key: bool,
  has_aux: bool,
) -> None:
  """Raises ValueError if flags of a round contradict those of an estimator."""
  loss_forms.check_flags(name, needs_key, has_aux)
  if needs_key:
    _refuse_key(name)
  if has_aux and not estimator.has_aux:
    raise ValueError(
      f'{name} needs has_aux to be False where value_and_grad is a'
      f' {type(estimator).__name__} without auxiliary output, got'
      f' {estimator.name}: pass has_aux=True to the function that made it'
    )


def _refuse_key(name: str) -> NoReturn:
  raise ValueError(
    f'{name} needs needs_key to be False where value_and_grad is given, because'
    ' value_and_grad always gets a key, got needs_key=True'
  )


def loss_and_aux(
  name: str,
  objective: Objective,
  params: base.Params,
  batch: Any,
  context: LocalContext,
) -> tuple[jax.Array, Any]:
  """The loss, and its auxiliary output or None."""
  output = objective.loss(params, batch, context)
  return loss_forms.split_value(name, 'loss_fn', output, objective.has_aux)


def joined(of: Objective | GradientEstimator, loss: jax.Array, aux: Any) -> Any:
  """The inverse of `loss_and_aux`, in the form that `has_aux` asks for."""
  return (loss, aux) if of.has_aux else loss


def estimate(
  estimator: GradientEstimator,
  params: base.Params,
  batch: Any,
  context: LocalContext,
) -> Estimate:
  """The result of an estimator, in one form."""
  value, gradient = estimator.estimate(params, batch, context)
  if not estimator.has_aux:
    return Estimate(value, gradient)
  loss, aux = value
  return Estimate(loss, gradient, aux)


def estimate_once(
  estimator: GradientEstimator,
  params: base.Params,
  batch: Any,
  key: jax.Array,
  round: jax.Array | int,
) -> Estimate:
  """The same, in the first local step from the parameters."""
  context = first_context(params, key, round)
  return estimate(estimator, params, batch, context)


def zeros_of_mean(name: str, aux: Any) -> Any:
  """Zeros in float, in the shapes of auxiliary outputs, to sum them in."""

  def zeros(path, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != jnp.bool_:
      raise ValueError(
        f'{name} needs the auxiliary output of loss_fn to be of numbers, to'
        f' take their mean over the steps, got {leaf.dtype} at'
        f' aux{jax.tree_util.keystr(path)}'
      )
    return jnp.zeros(leaf.shape, flat.compute_dtype(leaf.dtype))

  return jax.tree.map_with_path(zeros, aux)


def mean_over_steps(
  name: str, estimator: GradientEstimator, values: Any
) -> Any:
  """The mean of the values `[L, ...]` of L steps: of a loss, and of its aux."""
  if not estimator.has_aux:
    return jnp.mean(values)
  losses, aux = values
  zeros = zeros_of_mean(name, jax.eval_shape(lambda: aux))
  means = jax.tree.map(
    lambda x, zero: jnp.mean(x, axis=0, dtype=zero.dtype), aux, zeros
  )
  return jnp.mean(losses), means
