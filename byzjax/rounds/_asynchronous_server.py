"""What the server of an asynchronous round does when a message arrives."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from byzjax._src import base, flat, layouts, reductions
from byzjax.asynchrony._plan import Plan
from byzjax.rounds import _stages
from byzjax.rounds._asynchronous_work import AsynchronousShared, Parts, Sent


class Server(NamedTuple):
  """The parts of a `RoundState` that a step of the server changes."""

  params: base.Params
  aggregator: base.State
  attack: base.State
  optimizer: base.State


class Received(NamedTuple):
  """A message at the server.

  Attributes:
    message: tree like the parameters.
    places: float[B, d], the buffer with it, or it alone, and on a mesh the
      coordinates of a device; None without a rule.
    is_byzantine: bool[B], which places have an attacker's message.
    incoming: the state of the transform of single messages.
  """

  message: base.Params
  places: jax.Array | None
  is_byzantine: jax.Array
  incoming: base.State


class Outcome(NamedTuple):
  """What a step of the server says of the places: zeros if there was none."""

  error: jax.Array
  masked: jax.Array  # bool[B], or bool[1] without a buffer


def receive(
  parts: Parts,
  now: Plan,
  state: base.RoundState,
  sent: Sent,
  is_byzantine: jax.Array,
  extra: dict[str, Any],
) -> Received:
  """A message behind the transform of single messages, in its place."""
  message, vector, incoming = sent.message, sent.vector, state.shared.incoming
  if parts.incoming is not None:
    finite = reductions.finite_tree(message)
    # What is not finite is dropped later, and must not stay in a state here.
    message, incoming = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      parts.incoming.update(message, incoming, state.params, **extra),
      (message, incoming),
    )
    vector = None
  if parts.aggregator is None:
    return Received(message, None, is_byzantine[None], incoming)
  if vector is None:
    vector = flat.row_layout(state.params).ravel(message)
  vector = layouts.from_everyone(vector, parts.padded(vector.size), parts.axes)
  places, byzantine_places = vector[None], is_byzantine[None]
  if parts.num_places is not None:
    places, byzantine_places = place(now, vector, is_byzantine, state.shared)
  return Received(message, places, byzantine_places, incoming)


def place(
  now: Plan,
  vector: jax.Array,
  is_byzantine: jax.Array,
  shared: AsynchronousShared,
) -> tuple[jax.Array, jax.Array]:
  """The buffer with a message in its place, averaged with those there.

  Returns:
    float[B, d], and which have an attacker's message, bool[B].
  """
  old = lax.dynamic_index_in_dim(shared.places, now.row, keepdims=False)
  # By a choice, for the old one may hold NaN.
  old = jnp.where(now.num_averaged == 1, vector, old)
  row = old + (vector - old) / now.num_averaged
  was_byzantine = shared.is_byzantine[now.row] & (now.num_averaged > 1)
  return (
    lax.dynamic_update_index_in_dim(shared.places, row, now.row, 0),
    shared.is_byzantine.at[now.row].set(is_byzantine | was_byzantine),
  )


def serve(
  parts: Parts,
  now: Plan,
  state: base.RoundState,
  attack_state: base.State,
  received: Received,
  extra: dict[str, Any],
  key: jax.Array,
  is_over: jax.Array,
) -> tuple[Server, Outcome]:
  """The server after a message: after a step, if the buffer is full.

  `attack_state` is that after the message was made; `is_over` says that the
  message is none of the run.
  """
  before = Server(state.params, state.aggregator, state.attack, state.optimizer)
  step = functools.partial(server_step, parts, received, extra, key)
  server = before._replace(attack=attack_state)
  if parts.num_places is None:
    server, outcome = step(server)
  else:
    wait = functools.partial(_wait, step)
    server, outcome = lax.cond(now.is_full, step, wait, server)
  # Nothing moves after the last message, nor by one that is not finite and that
  # no rule has seen.
  stays = is_over
  if parts.aggregator is None:
    stays = is_over | outcome.masked[0]
  server = jax.tree.map(
    lambda old, new: jnp.where(stays, old, new), before, server
  )
  return server, outcome


def server_step(
  parts: Parts,
  received: Received,
  extra: dict[str, Any],
  key: jax.Array,
  server: Server,
) -> tuple[Server, Outcome]:
  """A step of the server with the aggregate of all places, or the message."""
  params = server.params
  if parts.aggregator is None:
    gradient = received.message
    finite = reductions.finite_tree(gradient)
    outcome = Outcome(jnp.zeros([]), ~finite[None])
  else:
    gradient, server, outcome = aggregate(
      parts, received.places, received.is_byzantine, server, key
    )
  updates, state = parts.optimizer.update(
    gradient, server.optimizer, params, **extra
  )
  params = optax.apply_updates(params, updates)
  return server._replace(params=params, optimizer=state), outcome


def aggregate(
  parts: Parts, places, is_byzantine, server: Server, key
) -> tuple[base.Params, Server, Outcome]:
  """What the rule makes of all places, float[B, d], or a device's part."""
  assert parts.aggregator is not None
  layout = flat.row_layout(server.params)
  row, state, info = layouts.attacked(parts.aggregator, None).inspect(
    places,
    layouts.WorkerShardedState(server.aggregator, ()),
    key=key,
    axis_name=parts.axes,
    is_byzantine=is_byzantine,
    columns=_stages.true_columns(parts, places, layout.size),
    num_coordinates=layout.size,
  )
  assert info.mask is not None and info.error is not None
  if parts.attack is not None and parts.attack.observe is not None:
    seen = parts.attack.observe(server.attack, row)
    server = server._replace(attack=seen)
  server = server._replace(aggregator=state.aggregator)
  gradient = layout.unravel(layouts.to_everyone(row, parts.axes))
  return gradient, server, Outcome(info.error, ~info.mask)


def _wait(step: Callable, server: Server) -> tuple[Server, Outcome]:
  """No step, with the outcome of none."""
  outcome = jax.eval_shape(step, server)[1]
  return server, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outcome)
