"""The state and the diagnostics of a round, as types."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

ArrayTree: TypeAlias = Any  # a pytree of arrays


class RoundState(NamedTuple):
  """The state of a round.

  Attributes:
    step: int32[], the number of rounds before this one.
    params: of the model.
    workers: leaves `[n, ...]`, the workers' momentum and other state.
    attack: state of the attack.
    aggregator: state of the rule.
    optimizer: state of the server's optimizer.
    codec: leaves `[n, ...]`, the state of the workers' codecs.
    server_codec: the state of the server's codec.
    shared: what the server keeps for the local steps of its workers.
    auxiliary: rule and attack of what is exchanged besides messages.
    participation: state of the sampling of participants.
    trusted: leaves `[1, ...]`, what the server keeps for its own gradient.
  """

  step: jax.Array
  params: ArrayTree
  workers: ArrayTree
  attack: ArrayTree
  aggregator: ArrayTree
  optimizer: optax.OptState
  codec: ArrayTree = ()
  server_codec: ArrayTree = ()
  shared: ArrayTree = ()
  auxiliary: ArrayTree = ()
  participation: ArrayTree = ()
  trusted: ArrayTree = ()


class RoundInfo(NamedTuple):
  """Diagnostics of one round; not part of the state.

  Attributes:
    loss: float[], mean loss of the honest workers that take part, before the
      update; those that take no local step have none.
    aggregation_error: float[], distance from the aggregate to the mean of the
      finite honest messages, both as decoded by the server.
    bits_up: float[], total bits that the participating workers sent to the
      server; for a Byzantine worker, those of its honest message.
    bits_down: float[], bits that the server sent to those workers.
    num_nonfinite: int32[], the number of messages with a non-finite entry.
    is_byzantine: bool[n], the Byzantine workers of this round.
    masked: bool[n], which messages had a non-finite entry.
    weights: float[n], the rule's weights, or None if it has none.
    kept: bool[n], the messages that the rule selected, or None.
    scores: float[n], by which it selected them, or None.
    factors: float[n], by which messages were clipped, or None.
    num_local_steps: int32[] or int32[n], local steps of the workers, or None
      without local steps.
    participants: int32[n], the indices of the n workers of this round, if they
      are sampled from more workers, or None.
    staleness: int32[], the number of server steps since the parameters of this
      message were sent, or None in synchronous rounds.
    time: float32[], arrival time in simulated seconds, or None.
    num_gradients: int32[] or int32[n], gradients per worker: estimates times
      `GradientEstimator.num_gradients` (an `Objective` counts as one; gradients
      that optimizers compute are not counted), or None if not known.
    aux: leaves `[n, ...]`, the auxiliary output of each worker of this round if
      the loss has one (`has_aux=True`), or None. With several local steps it is
      their mean, in float. For a Byzantine worker it is the output that an
      honest worker in its place would report.
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
    step: `(state, batch, key) -> (RoundState, RoundInfo)`; the step number is
      folded into the key, so the same key may be passed in every round.
  """

  init: Callable[..., RoundState]
  step: Callable[
    [RoundState, ArrayTree, jax.Array], tuple[RoundState, RoundInfo]
  ]
