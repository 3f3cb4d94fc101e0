"""What happens when one message arrives: its job, and what the server does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax._src import base, flat, layouts, local
from byzjax.asynchrony import Buffer, Events
from byzjax.rounds import _local_steps, _wire


class AsynchronousRows(NamedTuple):
  """What the workers of `asynchronous_round` keep: leaves `[K, ...]`."""

  optimizer: base.State
  chain: base.State


class AsynchronousShared(NamedTuple):
  """What the server of `asynchronous_round` keeps beside the parameters.

  Attributes:
    versions: leaves `[S, ...]`, the parameters that workers have begun from.
    places: float[B, d], the buffer, or None.
    is_byzantine: bool[B], whose places have an attacker's message.
    latest: float[K, d], what honest workers sent last, which attackers know; or
      None.
    incoming: the state of the transform of single messages.
  """

  versions: base.Params
  places: Any
  is_byzantine: Any
  latest: Any
  incoming: base.State


class Plan(NamedTuple):
  """All that is known of the messages before training, by message."""

  worker: jax.Array
  time: jax.Array
  issued_at: jax.Array  # in steps of the server
  staleness: jax.Array  # in steps of the server
  num_local_steps: jax.Array
  shard: jax.Array
  progress: jax.Array
  is_waiting: jax.Array
  read: jax.Array  # where the job's parameters are
  write: jax.Array  # where the new ones go; S - 1 if nobody will read them
  row: jax.Array
  num_averaged: jax.Array
  is_full: jax.Array


class Parts(NamedTuple):
  """The arguments of `asynchronous_round`."""

  estimator: local.GradientEstimator
  local_optimizer: optax.GradientTransformationExtraArgs | None
  keeps: bool
  sampler: local.LocalSampler
  data_attack: base.DataAttack | None
  chain: optax.GradientTransformation | None
  attack: base.Attack | None
  codec: base.Codec | None
  incoming: optax.GradientTransformationExtraArgs | None
  aggregator: base.Aggregator | None
  optimizer: optax.GradientTransformationExtraArgs
  broadcast: Callable[[base.Params, base.State], base.Params]
  num_places: int | None
  num_workers: int

  @property
  def needs_vectors(self) -> bool:
    """Whether a message is touched as one vector before it arrives."""
    return any(x is not None for x in (self.chain, self.codec, self.attack))


def plan(events: Events, buffer: Buffer | None) -> tuple[Plan, int]:
  """The messages with what follows from them, and S, the versions to keep.

  A version of the parameters needs a place from when it is sent until the last
  job that began from it has arrived. So S is at most K + 1, however late the
  latest message is.
  """
  count = len(events.worker)
  if buffer is None:
    zeros = np.zeros(count, np.int32)
    buffer = Buffer(1, zeros, zeros + 1, np.ones(count, bool))
  # Before message e the server has made steps[e] steps.
  steps = np.concatenate([[0], np.cumsum(buffer.is_full)])
  issued_at = steps[events.issued_at]
  last_use = dict(zip(issued_at.tolist(), range(count)))
  place_of, free = {0: 0}, list[int]()
  num_places, read, write = 1, [], []
  for e, version in enumerate(issued_at.tolist()):
    read.append(place_of[version])
    if last_use[version] == e:
      free.append(place_of.pop(version))
    new = int(steps[e + 1])
    if not buffer.is_full[e] or new not in last_use:
      write.append(-1)
      continue
    if not free:
      free.append(num_places)
      num_places += 1
    place_of[new] = free.pop()
    write.append(place_of[new])
  write = [num_places if w < 0 else w for w in write]

  def integers(x):
    return jnp.asarray(x, jnp.int32)

  found = Plan(
    integers(events.worker),
    jnp.asarray(events.time, jnp.float32),
    integers(issued_at),
    integers(steps[:-1] - issued_at),
    integers(events.num_local_steps),
    integers(events.shard),
    integers(events.progress),
    jnp.asarray(events.is_waiting),
    integers(read),
    integers(write),
    integers(buffer.row),
    integers(buffer.num_averaged),
    jnp.asarray(buffer.is_full),
  )
  return found, num_places + 1


def init(parts: Parts, params: base.Params, num_versions: int):
  """`(rows of the workers, what the server shares)`, all at `params`."""
  layout = flat.row_layout(params)
  vector = layout.ravel(params)
  k = parts.num_workers

  def of_all(init, argument):
    return jax.vmap(init, in_axes=None, axis_size=k)(argument)

  local_state: base.State = ()
  if parts.local_optimizer is not None and parts.keeps:
    local_state = of_all(parts.local_optimizer.init, params)
  b = parts.num_places
  return (
    AsynchronousRows(
      local_state, of_all(parts.chain.init, vector) if parts.chain else ()
    ),
    AsynchronousShared(
      jax.tree.map(lambda p: jnp.stack([p] * num_versions), params),
      None if b is None else jnp.zeros((b, layout.size), layout.dtype),
      None if b is None else jnp.zeros(b, bool),
      None
      if parts.attack is None
      # Not heard of yet: attacks learn from finite messages only.
      else jnp.full((k, layout.size), jnp.nan, layout.dtype),
      parts.incoming.init(params) if parts.incoming else (),
    ),
  )


def job(parts: Parts, now: Plan, params, data, state, is_byzantine, key):
  """`(loss, message, state, aux)` of one job, from stale parameters."""
  walker = _local_steps.Walker(
    'asynchronous_round',
    parts.estimator,
    parts.local_optimizer,
    parts.sampler,
    parts.data_attack,
  )
  # Of the shard, so that what a shard's local step sees is the same in every
  # schedule.
  key = jax.random.fold_in(key, now.shard)
  # No local step has this number, so that no batch has this key.
  start_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
  data_plan = parts.sampler.start(
    parts.sampler.init(params), params, data, start_key
  )
  if parts.local_optimizer is None:
    batch, _, key = _local_steps.draw(
      walker, data_plan, data, is_byzantine, now.progress, key
    )
    found = local.estimate_once(
      parts.estimator, params, batch, key, now.issued_at
    )
    return found.loss, found.gradient, state, found.aux
  start = state if parts.keeps else parts.local_optimizer.init(params)
  walk = _local_steps.walk(
    walker,
    params,
    start,
    data_plan,
    data,
    is_byzantine,
    key,
    now.num_local_steps,
    lambda gradient: gradient,
    lambda tree: tree,
    now.progress,
    round=now.issued_at,
  )
  message = jax.tree.map(jnp.subtract, params, walk.params)
  state = walk.optimizer if parts.keeps else ()
  return walk.loss, message, state, walk.aux


def send(parts: Parts, message, coder, key):
  """`(what the server decodes float[d], state of the codec, bits)`."""
  size = layouts.padded_size(message.size, 1)
  payload, coder, bits = _wire.encode_rows(
    parts.codec,
    message[None],
    jax.tree.map(lambda x: x[None], coder),
    key[None],
    message.size if parts.codec is None else size,
  )
  found = _wire.decode_rows(parts.codec, payload, message.dtype)
  found = found[0, : message.size]
  return found, jax.tree.map(lambda x: x[0], coder), bits[0]


def lie(parts: Parts, message, latest, worker, is_byzantine, server, key):
  """What attackers make of the message of one of them.

  Returns:
    `(message float[d], latest, state of the attack)`.
  """
  if parts.attack is None:
    return message, latest, server.attack
  attack = parts.attack
  latest = lax.dynamic_update_index_in_dim(latest, message, worker, 0)

  def attacked(latest, state):
    found, state = attack.apply(
      latest,
      state,
      is_byzantine=is_byzantine,
      key=key,
      aggregator_state=server.aggregator,
      num_coordinates=message.size,
    )
    row = lax.dynamic_index_in_dim(found, worker, keepdims=False)
    if parts.codec is not None:
      pad = layouts.padded_size(message.size, 1) - message.size
      row = parts.codec.constrain(
        jnp.pad(row, (0, pad)), num_coordinates=message.size
      )[: message.size]
    return row, state

  message, state = lax.cond(
    is_byzantine[worker],
    attacked,
    lambda latest, state: (message, state),
    latest,
    server.attack,
  )
  return message, latest, state


def place(parts: Parts, now: Plan, vector, lies, shared: AsynchronousShared):
  """The message in its place of the buffer, averaged with those there."""
  if parts.num_places is None:
    return vector[None], lies[None]
  old = lax.dynamic_index_in_dim(shared.places, now.row, keepdims=False)
  # By a choice, for the old one may hold NaN.
  old = jnp.where(now.num_averaged == 1, vector, old)
  row = old + (vector - old) / now.num_averaged
  mine = lies | (shared.is_byzantine[now.row] & (now.num_averaged > 1))
  return (
    lax.dynamic_update_index_in_dim(shared.places, row, now.row, 0),
    shared.is_byzantine.at[now.row].set(mine),
  )


def combine(parts: Parts, places, liars, server, params, key):
  """What the rule makes of all places: `(aggregate, server state, found)`."""
  assert parts.aggregator is not None
  layout = flat.row_layout(params)
  aggregate, state, info = layouts.attacked(parts.aggregator, None).inspect(
    places,
    layouts.WorkerShardedState(server.aggregator, ()),
    key=key,
    is_byzantine=liars,
  )
  assert info.mask is not None
  if parts.attack is not None and parts.attack.observe is not None:
    seen = parts.attack.observe(server.attack, aggregate)
    server = server._replace(attack=seen)
  server = server._replace(aggregator=state.aggregator)
  return layout.unravel(aggregate), server, (info.error, ~info.mask)


class Server(NamedTuple):
  """The parts of a `RoundState` that a step of the server changes."""

  aggregator: base.State
  attack: base.State
  optimizer: base.State
