"""The types that everything in byzjax stands on.

A round's messages are a pytree whose leaves have one more axis than the
parameters: `[num_workers, *param_shape]`. An aggregator is an optax transform
that removes this axis, so it goes wherever an optax transform goes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax._src import checks, recipes

check_count = checks.check_count
check_iterations = checks.check_iterations
check_majority = checks.check_majority
check_range = checks.check_range
check_worker_weights = checks.check_worker_weights
num_workers = checks.num_workers

ArrayTree: TypeAlias = Any  # a pytree of arrays
Params: TypeAlias = ArrayTree
Messages: TypeAlias = ArrayTree  # leaves [n, *param_shape], one row per worker
Aggregate: TypeAlias = ArrayTree  # leaves [*param_shape]
Batch: TypeAlias = ArrayTree  # leaves [n, ...], one slice per worker
State: TypeAlias = ArrayTree
Scalar: TypeAlias = float | jax.Array  # a real number, maybe traced
AxisName = str | tuple[str, ...] | None
ByzantineSchedule = Callable[[jax.Array], jax.Array]  # step -> bool[n]
WeightSchedule = Callable[[jax.Array], jax.Array]  # step -> float[n]
Payload: TypeAlias = Any  # a pytree of arrays: what goes over the wire


class AggregationInfo(NamedTuple):
  """What a rule saw and did in one call; diagnostics, never carried.

  None stands for what a rule does not have; `diagnose` fills in what can be
  said of every rule.

  Attributes:
    weights: float[n], the weight of each message in the aggregate, or None for
      rules that have no single weight per worker.
    mask: bool[n], False for the messages left out as non-finite, or None for
      rules that treat entries and not rows.
    error: float[], distance from the aggregate to the mean of the honest
      messages, where it is known who is honest.
    kept: bool[n], the messages that a rule selected.
    scores: float[n], by which it selected them: low is good, and +inf is
      masked.
    factors: float[n], by which messages were clipped: 1 is not at all.
  """

  weights: jax.Array | None = None
  mask: jax.Array | None = None
  error: jax.Array | None = None
  kept: jax.Array | None = None
  scores: jax.Array | None = None
  factors: jax.Array | None = None


class Gram(NamedTuple):
  """Inner products of the messages after a common centre is subtracted.

  Attributes:
    inner: float[n, n], `inner[i, j] = (x_i - c) . (x_j - c)`; the rows and
      columns of masked messages are zero.
    squared_norms: float[n], `|x_i|^2` without the centre; zero when masked.
    mask: bool[n], False for the messages that must get no weight.
    worker_weights: float[n], what each worker counts relative to the others
      (zero when masked), or None if all count the same. Only rules that say
      that they are `weighted` ever see it.
  """

  inner: jax.Array
  squared_norms: jax.Array
  mask: jax.Array
  worker_weights: jax.Array | None = None


class GramRule(NamedTuple):
  """A rule `c + sum_i w_i (x_i - c)` whose w come from a Gram matrix.

  Attributes:
    init: `params -> state`.
    weights: `(gram, state, *, key) -> (AggregationInfo, state)`; the info has
      `weights`, and whatever else the rule knows.
    center: `state -> aggregate`, the centre c; None for the finite message of
      median norm.
    remember: `(state, aggregate float[d]) -> state`, after the aggregate is
      known.
    selects: whether the weights average a few whole messages; those are
      combined without a centre, so that one selected message is returned
      bit for bit.
    weighted: whether the rule heeds `gram.worker_weights`.
  """

  init: Callable[[Params], State]
  weights: Callable[..., tuple[AggregationInfo, State]]
  center: Callable[[State], Aggregate] | None = None
  remember: Callable[[State, jax.Array], State] = lambda state, aggregate: state
  selects: bool = False
  weighted: bool = False


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


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """The `update` of an `Aggregator`, and all that is known of the rule.

  Attributes:
    inspect, name, gram_rule, inspect_words: see `Aggregator`.
    recipe: the call of the factory that made the rule, if there is one.
  """

  function: InspectFn | Callable[..., tuple[Aggregate, State]]
  name: str = 'rule'
  gram_rule: GramRule | None = None
  inspect_words: Callable[..., tuple[jax.Array, AggregationInfo]] | None = None
  recipe: recipes.Recipe | None = None

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
  """A pair of pure functions that turns n messages into one aggregate.

  `init(params) -> state` and `update(messages, state, params=None, *, key=None,
  axis_name=None, **extra) -> (aggregate, state)`: an optax transform whose
  input leaves are `[n, *param_shape]` and whose output leaves are
  `[*param_shape]`. So `optax.chain(aggregator, optax.sgd(0.1))` is an optimizer
  that takes stacked gradients. `axis_name` names the mesh axes over which the
  coordinates (not the workers) are split; only `worker_sharded` passes it.

  `update` and the call take `worker_weights`, float[n], too: what each worker
  counts (its number of examples, or the trust in it), relative to the others.
  `cap_weights` bounds any one worker's share. A rule without a weighted version
  refuses them.

  Calling it, `aggregator(messages, key=None)`, aggregates once and is compiled:
  build a rule once and call it often. Jit a function that uses it, or
  `aggregator.update`; being a tuple, it cannot itself be an argument of
  `jax.jit`.

  `Aggregator(init, inspect, name=...)` makes a rule of your own, from an
  `inspect` as below or from an `update`.

  Attributes:
    name: of the rule, as in `byzjax.krum`; in errors and in certificates.
    config: the hyper-parameters by name, as the factory was called, defaults
      among them; None for a rule that no factory of byzjax made, or that was
      changed since.
    inspect: like `update`, with an `AggregationInfo` as third result.
    gram_rule: how the rule acts on a Gram matrix, or None; what lets
      `pre_aggregate` compose without touching the coordinates.
    inspect_words: how it acts on packed signs, or None: `(words uint32[n, W],
      *, is_byzantine, axis_name=None) -> (words uint32[W], AggregationInfo)`.

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
    n = num_workers('messages', messages)
    # Here, where they still have values.
    if (weights := extra.get('worker_weights')) is not None:
      check_worker_weights(self.name, weights, n)
    return self.update.once(self.init, messages, key, extra)

  def __repr__(self) -> str:
    return recipes.show(self, f'rule {self.name}')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


def as_aggregator(name: str, rule: Any) -> Aggregator:
  """The rule, or what an optax wrapper such as `inject_hyperparams` made of it.

  A wrapper that hands messages and aggregate through as they are is taken for a
  rule, with the diagnostics of the rule inside; this is seen at trace time, for
  the rule says what it got and gave. What does more, such as a chain, belongs
  into the optimizer.
  """
  if isinstance(rule, Aggregator):
    return rule
  state = None
  if isinstance(rule, optax.GradientTransformation):
    state = jax.eval_shape(rule.init, jnp.zeros(1))
  if not hasattr(state, 'hyperparams'):
    raise ValueError(
      f'{name} needs aggregator to be an Aggregator (put optax transforms'
      f' behind it, in optimizer), got {type(rule).__name__}'
    )

  def inspect(messages, state, params=None, **extra):
    seen: list[tuple] = []
    aggregate, state = rule.update(
      messages, state, params, witness=seen, **extra
    )
    if len(seen) != 1 or not _same(seen[0][:2], (messages, aggregate)):
      raise ValueError(
        f'{name} needs aggregator to be a rule, or'
        ' optax.inject_hyperparams(rule)(...), and nothing around it, got'
        ' a transform of another kind (put optax transforms behind the rule,'
        ' in optimizer)'
      )
    return aggregate, state, seen[0][2]

  return Aggregator(rule.init, inspect, name='injected rule')


def _same(a: Any, b: Any) -> bool:
  a, b = jax.tree.leaves(a), jax.tree.leaves(b)
  return len(a) == len(b) and all(x is y for x, y in zip(a, b))


class PreAggregator(NamedTuple):
  """A map from n messages to m messages, applied before a rule.

  Attributes:
    init: `params -> state`.
    apply: `(messages [n, ...], state, *, key=None, axis_name=None) ->
      (messages [m, ...], state)`. A mixed row with nothing to average is NaN,
      which every rule masks.
    matrix: for linear ones, `(gram, state, *, key) -> (float[m, n], state)`:
      rows sum to one, or to zero where there is nothing to average. None if not
      linear.
    factors: for those that scale messages, `(squared_norms float[n], mask
      bool[n], state, *, key) -> (float[n], state)`.
    weighted: whether `matrix` heeds `gram.worker_weights`, and its m rows are
      still those of the workers.
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
  """What the Byzantine workers send, given all that they may know.

  Attributes:
    init: `params -> state`.
    apply: `(messages, state, *, is_byzantine bool[n], key=None, axis_name=None,
      **knowledge) -> (messages with the Byzantine rows overwritten, state)`. A
      round's knowledge has `aggregator_state`, the state of the rule before
      this call, and `num_coordinates`, d without padding.
    observe: `(state, aggregate) -> state`, after the rule has run; None if the
      attack does not learn from the aggregate.
  """

  init: Callable[[Params], State]
  apply: Callable[..., tuple[Messages, State]]
  observe: Callable[[State, Aggregate], State] | None = None

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
    """The messages after one attack from a fresh state."""
    checks.check_stacked('attack', messages)
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
  """What the Byzantine workers compute on, before any gradient.

  `(batch, is_byzantine bool[n], key) -> batch` with the Byzantine slices of the
  leaves `[n, ...]` replaced.
  """

  def __call__(
    self, batch: Batch, is_byzantine: jax.Array, key: jax.Array | None = None
  ) -> Batch: ...


class Codec(NamedTuple):
  """How one vector goes over the wire, and what that costs.

  Vectors are flat, `float[D]`: the d = `num_coordinates` true ones, and zeros
  up to D, a multiple of 32. Leaves of a payload are scalars, or arrays whose
  last axis is D (a number per coordinate) or D / 32 (a word per 32 coordinates
  in a row). So a payload can be cut where coordinates are split over devices,
  and `encode` can run on such a slice: with an `axis_name`, x is the local part
  of the coordinates, what is summed over all of them is completed over the mesh
  axes, and scalars of the payload are the same on all devices.

  Attributes:
    init: `params float[D] -> state`.
    encode: `(x float[D], state, key, *, num_coordinates, axis_name=None) ->
      (payload, state)`, for one vector; the key may be None for codecs that do
      not draw.
    decode: `payload -> float[D]`, element by element given the scalars, so it
      takes a slice of a payload too. What padding decodes to means nothing.
    bits_per_message: `(payload, num_coordinates) -> float32[]`, the exact
      length of this very message (a whole one, not a slice).
    constrain: `(x float[D], *, num_coordinates, axis_name=None) -> float[D]`,
      the message nearest to x that decoding can give: what a Byzantine worker,
      who need not encode anything, can really make the server see. What was
      decoded stays what it is.
    packs_signs: whether the payload is uint32[D / 32], a bit per coordinate
      that is 1 for -1 and 0 for +1: a vote can be taken on it as it is.
    name: as in `byzjax.sign_codec`.
  """

  init: Callable[[Params], State]
  encode: Callable[..., tuple[Payload, State]]
  decode: Callable[[Payload], jax.Array]
  bits_per_message: Callable[[Payload, int], jax.Array]
  constrain: Callable[..., jax.Array]
  name: str = 'codec'
  packs_signs: bool = False

  @property
  def config(self) -> dict[str, Any] | None:
    """The hyper-parameters by name, as `Aggregator.config`."""
    return recipes.config_of(self)

  def __repr__(self) -> str:
    return recipes.show(self, f'codec {self.name}')

  def __reduce__(self) -> tuple[Any, ...]:
    return recipes.reduce(self)


class RoundState(NamedTuple):
  """All that one round hands to the next.

  Attributes:
    step: int32[], the rounds before this one.
    params: of the model.
    workers: leaves `[n, ...]`, momentum and what else workers keep.
    attack: state of the attack.
    aggregator: state of the rule.
    optimizer: state of the server's optimizer.
    codec: leaves `[n, ...]`, what the workers' codecs keep.
    server_codec: what the server's codec keeps.
    shared: what the server keeps for its workers' local steps.
    sides: rule and attack of what is exchanged beside messages.
    participation: state of who takes part.
  """

  step: jax.Array
  params: Params
  workers: State
  attack: State
  aggregator: State
  optimizer: optax.OptState
  codec: State = ()
  server_codec: State = ()
  shared: State = ()
  sides: State = ()
  participation: State = ()


class RoundInfo(NamedTuple):
  """Diagnostics of one round; not carried.

  Attributes:
    loss: float[], mean loss of the honest workers before the update.
    aggregation_error: float[], distance from the aggregate to the mean of the
      honest messages that are finite, both as the server has them decoded.
    bits_up: float[], bits that the workers sent to the server, all together;
      only of those that took part, and of an attacker what its honest message
      would have taken.
    bits_down: float[], bits that the server sent to those workers.
    num_nonfinite: int32[], the number of messages with a non-finite entry.
    is_byzantine: bool[n], who attacked in this round.
    masked: bool[n], which messages had a non-finite entry.
    weights: float[n], the rule's weights, or None where it has none.
    kept: bool[n], the messages that the rule selected, or None.
    scores: float[n], by which it selected them, or None.
    factors: float[n], by which messages were clipped, or None.
    num_local_steps: int32[] or int32[n], steps of the workers, or None where
      there is no such thing.
    participants: int32[n], the numbers of the n workers of this round, where
      they are drawn from more, or None.
    staleness: int32[], steps of the server since it sent the parameters that
      this message began from, or None where workers wait for each other.
    time: float32[], seconds of simulated time at its arrival, or None.
    num_gradients: int32[] or int32[n], gradients that a worker took: estimates
      times `GradientEstimator.num_gradients` (an `Objective` counts as one, and
      what optimizers ask for is left out), or None where it is not known.
    aux: leaves `[n, ...]`, the auxiliary output of each worker of this round
      where the loss has one (`has_aux=True`), or None. Where workers take
      several steps it is the mean over them, in float. That of an attacker is
      what an honest worker in its place would report.
  """

  loss: jax.Array
  aggregation_error: jax.Array
  bits_up: jax.Array
  bits_down: jax.Array
  num_nonfinite: jax.Array
  is_byzantine: jax.Array
  masked: jax.Array
  weights: jax.Array | None = None
  kept: jax.Array | None = None
  scores: jax.Array | None = None
  factors: jax.Array | None = None
  num_local_steps: jax.Array | None = None
  participants: jax.Array | None = None
  staleness: jax.Array | None = None
  time: jax.Array | None = None
  num_gradients: jax.Array | None = None
  aux: ArrayTree = None


class Round(NamedTuple):
  """One round of training as a pair of pure functions.

  Attributes:
    init: `(params, key=None) -> RoundState`.
    step: `(state, batch, key) -> (RoundState, RoundInfo)`; the key is folded
      with the step number, so the same key may be passed in every round.
  """

  init: Callable[..., RoundState]
  step: Callable[[RoundState, Batch, jax.Array], tuple[RoundState, RoundInfo]]


def zeros_like(params: Params, lead: tuple[int, ...] = ()) -> Params:
  """Zeros with leaves [*lead, *shape], split over devices as the params are."""

  # With a dtype of its own: a weak type would be lost in the first update, and
  # the second call would compile again.
  def zeros(p):
    shape, dtype = lead + jnp.shape(p), jnp.result_type(p)
    return jnp.full_like(p, 0, shape=shape, dtype=dtype)

  return jax.tree.map(zeros, params)
