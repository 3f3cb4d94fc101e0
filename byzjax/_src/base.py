"""The basic types of byzjax.

A round's messages are a pytree whose leaves have one more axis than the
parameters: `[num_workers, *param_shape]`. An aggregator is an optax transform
that removes this axis, so it can be used wherever an optax transform can.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import (
  aggregation_types,
  checks,
  codec_type,
  recipes,
  round_types,
)

AggregationInfo = aggregation_types.AggregationInfo
CommonRow = aggregation_types.CommonRow
Gram = aggregation_types.Gram
GramRule = aggregation_types.GramRule
Codec = codec_type.Codec
Round = round_types.Round
RoundInfo = round_types.RoundInfo
RoundState = round_types.RoundState

ArrayTree: TypeAlias = Any  # a pytree of arrays
Params: TypeAlias = ArrayTree
Messages: TypeAlias = ArrayTree  # leaves [n, *param_shape], one row per worker
Aggregate: TypeAlias = ArrayTree  # leaves [*param_shape]
Batch: TypeAlias = ArrayTree  # leaves [n, ...], one slice per worker
State: TypeAlias = ArrayTree
Scalar: TypeAlias = float | jax.Array  # a real number, maybe traced
# The alias of optax has no types to check.
ScalarOrSchedule: TypeAlias = Scalar | Callable[[jax.Array], Scalar]
AxisName = str | tuple[str, ...] | None
ByzantineSchedule = Callable[[jax.Array], jax.Array]  # step -> bool[n]
BatchSchedule = Callable[[jax.Array], ArrayTree]  # step -> batch
WeightSchedule = Callable[[jax.Array], jax.Array]  # step -> float[n]
Payload = codec_type.Payload  # what goes over the wire


class InspectFn(Protocol):
  """`Aggregator.update`, with an `AggregationInfo` as third result."""

  def __call__(
    self,
    messages: Messages,
    state: State,
    params: Params | None = None,
    *,
    key: jax.Array | None = None,
    axis_name: AxisName = None,
    **extra: Any,
  ) -> tuple[Aggregate, State, AggregationInfo]: ...


def value_at(value: ScalarOrSchedule, step: jax.Array) -> Scalar:
  """The number, or that of a schedule at this step."""
  return value(step) if callable(value) else value


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """The `update` of an `Aggregator`, with the properties of the rule.

  Attributes:
    inspect, name, gram_rule, inspect_words: see `Aggregator`.
    recipe: the call of the factory that made the rule, if there is one.
    takes_common: whether the function takes the keyword `common`, a
      `CommonRow`, and aggregates as if the row had been written into the
      messages.
    takes_norms: whether it takes the keyword `squared_norms`, float[n], of the
      messages as they are given, summed over all devices.
    of_rows: the rule on a matrix of which not all rows are written, or None:
      see `calls.from_rows`.
    by_coordinate: whether it treats each coordinate apart.
    keeps_rows: whether its state has a row for each worker, by its place among
      the messages.
  """

  function: InspectFn | Callable[..., tuple[Aggregate, State]]
  name: str = 'rule'
  gram_rule: GramRule | None = None
  inspect_words: Callable[..., tuple[jax.Array, AggregationInfo]] | None = None
  recipe: recipes.Recipe | None = None
  takes_common: bool = False
  takes_norms: bool = False
  of_rows: Callable[..., Any] | None = None
  by_coordinate: bool = False
  keeps_rows: bool = False

  def inspect(self, messages, state, params=None, **extra):
    """`update` with an `AggregationInfo` as third result."""
    checks.check_messages(self.name, messages, params)
    result = self.function(messages, state, params, **extra)
    return result if len(result) == 3 else (*result, AggregationInfo())

  def __call__(self, messages, state, params=None, *, witness=None, **extra):
    aggregate, state, info = self.inspect(messages, state, params, **extra)
    if witness is not None:
      witness.append((messages, aggregate, info))
    return aggregate, state

  # Compiled: unrolled rules are slow operation by operation.
  @functools.cached_property
  def once(self):
    """`(init, messages, key, extra) -> aggregate`, from a fresh state."""

    def call(init, messages, key, extra):
      params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)
      return self(messages, init(params), key=key, **extra)[0]

    return jax.jit(call, static_argnums=0)


class Aggregator(optax.GradientTransformationExtraArgs):
  """An aggregation rule: a pair of pure functions, from n messages to one.

  `init(params) -> state` and `update(messages, state, params=None, *, key=None,
  axis_name=None, **extra) -> (aggregate, state)`: an optax transform whose
  input leaves are `[n, *param_shape]` and whose output leaves are
  `[*param_shape]`. So `optax.chain(aggregator, optax.sgd(0.1))` is an optimizer
  that takes stacked gradients. `axis_name` names the mesh axes over which the
  coordinates (not the workers) are split; only `worker_sharded` passes it.

  `update` and the call also take `worker_weights`, float[n], the weight of each
  worker relative to the others (such as its number of examples, or a trust
  score). `cap_weights` bounds the share of any one worker. A rule without a
  weighted version raises an error.

  Calling it, `aggregator(messages, key=None)`, aggregates once and is compiled:
  build a rule once and call it often. Jit a function that uses it, or
  `aggregator.update`; it cannot be an argument of `jax.jit`, because it is a
  tuple of functions.

  `Aggregator(init, inspect, name=...)` makes your own rule, from an `inspect`
  as below or from an `update`.

  Attributes:
    name: of the rule, as in `byzjax.krum`; used in errors and certificates.
    config: the hyper-parameters by name, with defaults; None for a rule that
      was not made by a factory of byzjax, or was changed since.
    inspect: like `update`, with an `AggregationInfo` as third result.
    gram_rule: the rule as a function of a Gram matrix, or None; with it
      `pre_aggregate` composes rules without a pass over the coordinates.
    inspect_words: the rule on packed signs, or None: `(words uint32[n, W], *,
      is_byzantine, axis_name=None) -> (words uint32[W], AggregationInfo)`.

  Raises:
    ValueError: at trace time, by `update` and the call: if leaves do not share
      their first axis or are complex; if `params` are given and a leaf is not
      `[n, *param_shape]`; by the call, for a list of n messages (see `stack`).

  Example:
    >>> import byzjax, jax.numpy as jnp
    >>> messages = {'w': jnp.array([[0., 1.], [2., 1.], [1., 1.], [99., -99.]])}
    >>> byzjax.coordinate_median()(messages)
    {'w': Array([1.5, 1. ], dtype=float32)}
    >>> byzjax.trimmed_mean(num_byzantine=1)
    byzjax.trimmed_mean(num_byzantine=1)
  """

  update: Update

  def __new__(
    cls,
    init: Callable[[Params], State],
    inspect: InspectFn | Callable[..., tuple[Aggregate, State]] | Update,
    gram_rule: GramRule | None = None,
    name: str = 'rule',
    inspect_words: Callable | None = None,
  ) -> 'Aggregator':
    """Builds the transform from `init` and `inspect`."""
    # All that there is stands in the two fields, as copies of the tuple, such
    # as those of `jax.tree.map`, have nothing else.
    if not isinstance(inspect, Update):
      inspect = Update(inspect, name, gram_rule, inspect_words)
    return super().__new__(cls, init, inspect)

  @classmethod
  def _make(cls, fields):
    return cls(*fields)

  @property
  def name(self) -> str:
    return self.update.name

  @property
  def config(self) -> dict[str, Any] | None:
    return recipes.config_of(self)

  @property
  def inspect(self) -> InspectFn:
    return self.update.inspect

  @property
  def gram_rule(self) -> GramRule | None:
    return self.update.gram_rule

  @property
  def inspect_words(self) -> Callable | None:
    return self.update.inspect_words

  def __call__(
    self, messages: Messages, *, key: jax.Array | None = None, **extra: Any
  ) -> Aggregate:
    """Aggregates once, from a fresh state; messages `[n, ...]` -> `[...]`."""
    checks.check_stacked(self.name, messages)
    checks.check_messages(self.name, messages)
    # Here, where they still have values.
    if (weights := extra.get('worker_weights')) is not None:
      n = checks.num_workers('messages', messages)
      checks.check_worker_weights(self.name, weights, n)
    return self.update.once(self.init, messages, key, extra)

  def __repr__(self) -> str:
    return recipes.show(self, f'rule {self.name}')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


class PreAggregator(NamedTuple):
  """A map from n messages to m messages, applied before a rule.

  Attributes:
    init: `params -> state`.
    apply: `(messages [n, ...], state, *, key=None, axis_name=None) -> (messages
      [m, ...], state)`. A mixed row that averages no message is NaN, which
      every rule masks.
    matrix: for linear pre-aggregators, `(gram, state, *, key) -> (float[m, n],
      state)`: rows sum to one, or to zero if they average no message. None if
      not linear.
    factors: for pre-aggregators that scale messages, `(squared_norms float[n],
      mask bool[n], state, *, key) -> (float[n], state)`.
    weighted: whether `matrix` uses `gram.worker_weights`, and its m rows still
      belong to the workers.
    name: as in `byzjax.bucketing`.
  """

  init: Callable[[Params], State]
  apply: Callable[..., tuple[Messages, State]]
  matrix: Callable[..., tuple[jax.Array, State]] | None = None
  factors: Callable[..., tuple[jax.Array, State]] | None = None
  weighted: bool = False
  name: str = 'pre-aggregator'

  @property
  def config(self) -> dict[str, Any] | None:
    """The hyper-parameters by name, as `Aggregator.config`."""
    return recipes.config_of(self)

  def __repr__(self) -> str:
    return recipes.show(self, f'pre-aggregator {self.name}')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


class Attack(NamedTuple):
  """An attack: what the Byzantine workers send, given all messages.

  Attributes:
    init: `params -> state`.
    apply: `(messages, state, *, is_byzantine bool[n], key=None, axis_name=None,
      **knowledge) -> (messages with the Byzantine rows overwritten, state)`. A
      round passes as knowledge `aggregator_state`, the state of the rule before
      this call; `num_coordinates`, d without padding; `is_finite` bool[n]; and
      `honest_mean` float[d], if all workers have the same weight.
    observe: `(state, aggregate) -> state`, called after the rule; None if the
      attack does not learn from the aggregate.
    send: like `apply`, for attacks in which all Byzantine workers send the
      same: `(the one message, leaves [*shape], state)`, so that a round need
      not write it into every row; None if messages differ.
    reads_own: whether what is sent depends on the messages that Byzantine
      workers would send if they were honest. If not, a round need not compute
      them.
  """

  init: Callable[[Params], State]
  apply: Callable[..., tuple[Messages, State]]
  observe: Callable[[State, Aggregate], State] | None = None
  send: Callable[..., tuple[Aggregate, State]] | None = None
  reads_own: bool = True

  @property
  def config(self) -> dict[str, Any] | None:
    """The hyper-parameters by name, as `Aggregator.config`."""
    return recipes.config_of(self)

  def __call__(
    self,
    messages: Messages,
    *,
    is_byzantine: jax.Array | np.ndarray | Sequence[bool],
    key: jax.Array | None = None,
    **knowledge: Any,
  ) -> Messages:
    """The messages after one attack, from a fresh state."""
    checks.check_stacked('attack', messages)
    checks.check_messages('attack', messages)
    params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)
    return self.apply(
      messages,
      self.init(params),
      is_byzantine=is_byzantine,
      key=key,
      **knowledge,
    )[0]

  def __repr__(self) -> str:
    return recipes.show(self, 'attack')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


class DataAttack(Protocol):
  """An attack on the batches of Byzantine workers, before gradients.

  `(batch, is_byzantine bool[n], key) -> batch` with the Byzantine slices of the
  leaves `[n, ...]` replaced. If it has the keyword `rank`, it gets int32[n],
  the index of each Byzantine worker among those of the round and -1 for others;
  if it has the keyword `params`, the parameters that the server sent (None
  where there is no server).
  """

  def __call__(
    self, batch: Batch, is_byzantine: jax.Array, key: jax.Array | None = None
  ) -> Batch: ...
