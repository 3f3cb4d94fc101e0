"""What one round hands to the next, and what it says of itself."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

ArrayTree: TypeAlias = Any  # a pytree of arrays


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
    auxiliary: rule and attack of what is exchanged beside messages.
    participation: state of who takes part.
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
  step: Callable[
    [RoundState, ArrayTree, jax.Array], tuple[RoundState, RoundInfo]
  ]
