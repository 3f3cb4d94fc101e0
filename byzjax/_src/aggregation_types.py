"""The inputs and diagnostics of aggregation rules, as types."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

ArrayTree: TypeAlias = Any  # a pytree of arrays


class AggregationInfo(NamedTuple):
  """Diagnostics of one call of a rule; not carried to the next call.

  A value is None if the rule does not define it; `diagnose` computes those that
  are defined for every rule.

  Attributes:
    weights: float[n], the weight of each message in the aggregate, or None for
      rules that have no single weight per worker.
    mask: bool[n], False for the messages left out as non-finite, or None for
      rules that work on coordinates and not on messages.
    error: float[], distance from the aggregate to the mean of the honest
      messages, if it is known which workers are honest.
    kept: bool[n], the messages that a rule selected.
    scores: float[n], by which it selected them: low is good, +inf is masked.
    factors: float[n], by which messages were clipped: 1 means not clipped.
  """

  weights: jax.Array | None = None
  mask: jax.Array | None = None
  error: jax.Array | None = None
  kept: jax.Array | None = None
  scores: jax.Array | None = None
  factors: jax.Array | None = None


class CommonRow(NamedTuple):
  """A message that all Byzantine workers send, not yet in the messages.

  Attributes:
    row: leaves [*param_shape], one message.
    mask: bool[n], the rows of the messages that it replaces.
  """

  row: ArrayTree
  mask: jax.Array


class Gram(NamedTuple):
  """Inner products of the messages after a common centre is subtracted.

  Attributes:
    inner: float[n, n], `inner[i, j] = (x_i - c) . (x_j - c)`; the rows and
      columns of masked messages are zero.
    squared_norms: float[n], `|x_i|^2` without the centre; zero when masked.
    mask: bool[n], False for the messages that must get no weight.
    worker_weights: float[n], the weight of each worker relative to the others
      (zero when masked), or None if all are equal. Only passed to rules that
      are `weighted`.
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
      `weights`, and further diagnostics of the rule.
    center: `state -> aggregate`, the centre c; None for the finite message of
      median norm.
    remember: `(state, aggregate float[d]) -> state`, called after the aggregate
      is computed.
    selects: whether the weights average a few whole messages; these are
      combined without a centre, so that a single selected message is returned
      bit for bit.
    weighted: whether the rule uses `gram.worker_weights`.
    selects_one: whether at most one message has a weight, which is then 1.
  """

  init: Callable[[ArrayTree], ArrayTree]
  weights: Callable[..., tuple[AggregationInfo, ArrayTree]]
  center: Callable[[ArrayTree], ArrayTree] | None = None
  remember: Callable[[ArrayTree, jax.Array], ArrayTree] = (
    lambda state, aggregate: state
  )
  selects: bool = False
  weighted: bool = False
  selects_one: bool = False
