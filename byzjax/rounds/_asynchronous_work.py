"""What the workers of an asynchronous round do: a job, and its message."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from byzjax._src import base, flat, layouts, local
from byzjax.asynchrony._plan import Plan
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


class Parts(NamedTuple):
  """The arguments of `asynchronous_round`."""

  plan: Plan
  num_events: jax.Array | int
  num_versions: int
  num_workers: int
  num_shards: int
  training: _local_steps.LocalTraining  # no optimizer: jobs of one gradient
  keeps: bool  # the state of the local optimizer, from job to job
  takes_slices: bool  # of the batch, for there is no sampler
  chain: optax.GradientTransformation | None
  attack: base.Attack | None
  byzantine_at: base.ByzantineSchedule
  codec: base.Codec | None
  incoming: optax.GradientTransformationExtraArgs | None
  num_places: int | None  # of the buffer
  aggregator: base.Aggregator | None
  optimizer: optax.GradientTransformationExtraArgs
  broadcast: Callable[[base.Params, base.State], base.Params]


class JobOutput(NamedTuple):
  """What the job of one message leaves behind."""

  loss: jax.Array
  message: base.Params
  optimizer: base.State  # of the local steps
  aux: Any


class Sent(NamedTuple):
  """A message as the server gets it, and what is kept of it.

  Attributes:
    message: tree like the parameters.
    vector: the same as float[d], or None where nothing acts on vectors.
    chain: state of the worker's chain.
    coder: state of its codec.
    latest: float[K, d], as in `AsynchronousShared`.
    attack: state of the attack.
    bits: of the message.
  """

  message: base.Params
  vector: jax.Array | None
  chain: base.State
  coder: base.State
  latest: jax.Array | None
  attack: base.State
  bits: jax.Array


def init(parts: Parts, params: base.Params):
  """`(rows of the workers, what the server shares)`, all at `params`."""
  layout = flat.row_layout(params)
  k, b = parts.num_workers, parts.num_places

  def of_all(init, argument):
    return jax.vmap(init, in_axes=None, axis_size=k)(argument)

  local_state: base.State = ()
  if parts.training.optimizer is not None and parts.keeps:
    local_state = of_all(parts.training.optimizer.init, params)
  chain: base.State = ()
  if parts.chain is not None:
    chain = of_all(parts.chain.init, layout.ravel(params))
  latest = None
  if parts.attack is not None:
    # Not heard of yet: attacks learn from finite messages only.
    latest = jnp.full((k, layout.size), jnp.nan, layout.dtype)
  return AsynchronousRows(local_state, chain), AsynchronousShared(
    jax.tree.map(lambda p: jnp.stack([p] * parts.num_versions), params),
    None if b is None else jnp.zeros((b, layout.size), layout.dtype),
    None if b is None else jnp.zeros(b, bool),
    latest,
    parts.incoming.init(params) if parts.incoming else (),
  )


def run_job(
  parts: Parts, now: Plan, params, data, state, is_byzantine, key
) -> JobOutput:
  """The local update of one job, or its gradient, from stale parameters."""
  training = parts.training
  # Of the shard, so that what a shard's local step sees is the same in every
  # schedule.
  key = jax.random.fold_in(key, now.shard)
  # No local step has this number, so that no batch has this key.
  start_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
  plan = training.sampler.start(
    training.sampler.init(params), params, data, start_key
  )
  if training.optimizer is None:
    batch, _, key = _local_steps.draw_batch(
      training, plan, data, is_byzantine, now.progress, key, params
    )
    estimate = local.estimate_once(
      training.estimator, params, batch, key, now.issued_at
    )
    return JobOutput(estimate.loss, estimate.gradient, state, estimate.aux)
  end = _local_steps.local_update(
    training,
    params,
    state if parts.keeps else training.optimizer.init(params),
    plan,
    data,
    is_byzantine,
    key,
    now.num_local_steps,
    round=now.issued_at,
    first_step=now.progress,
    progress=now.progress,
  )
  message = jax.tree.map(jnp.subtract, params, end.params)
  return JobOutput(
    end.loss, message, end.optimizer if parts.keeps else (), end.aux
  )


def send(
  parts: Parts,
  state: base.RoundState,
  now: Plan,
  stale: base.Params,
  message: base.Params,
  is_byzantine: jax.Array,
  keys: jax.Array,
) -> Sent:
  """A message as the server gets it: behind chain, codec and attack.

  `keys` are those of codec and attack, and the job began from `stale`.
  """
  k, latest, layout = now.worker, state.shared.latest, flat.row_layout(stale)
  chain, coder = take((state.workers.chain, state.codec), k)
  if parts.chain is None and parts.codec is None and parts.attack is None:
    bits = jnp.asarray(32.0 * layout.size)
    return Sent(message, None, chain, coder, latest, state.attack, bits)
  vector = layout.ravel(message)
  if parts.chain is not None:
    vector, chain = parts.chain.update(vector, chain, layout.ravel(stale))
  vector, coder, bits = encode(parts.codec, vector, coder, keys[0])
  attack_state = state.attack
  if parts.attack is not None:
    latest = lax.dynamic_update_index_in_dim(latest, vector, k, 0)
    vector, attack_state = byzantine_message(
      parts.attack,
      parts.codec,
      vector,
      latest,
      k,
      is_byzantine,
      state.aggregator,
      attack_state,
      keys[1],
    )
  message = layout.unravel(vector)
  return Sent(message, vector, chain, coder, latest, attack_state, bits)


def encode(
  codec: base.Codec | None, message: jax.Array, coder: base.State, key
) -> tuple[jax.Array, base.State, jax.Array]:
  """`(what the server decodes float[d], state of the codec, bits)`."""
  size = message.size
  payload, coder, bits = _wire.encode_rows(
    codec,
    message[None],
    jax.tree.map(lambda x: x[None], coder),
    key[None],
    size if codec is None else layouts.padded_size(size, 1),
  )
  decoded = _wire.decode_rows(codec, payload, message.dtype)[0, :size]
  return decoded, jax.tree.map(lambda x: x[0], coder), bits[0]


def byzantine_message(
  attack: base.Attack,
  codec: base.Codec | None,
  message: jax.Array,
  latest: jax.Array,
  worker: jax.Array,
  is_byzantine: jax.Array,
  aggregator_state: base.State,
  attack_state: base.State,
  key: jax.Array,
) -> tuple[jax.Array, base.State]:
  """What the server gets of a worker: its message, or what the attack makes.

  Args:
    attack: on messages.
    codec: into whose form its message is put, or None.
    message: float[d], of the worker.
    latest: float[K, d], with it.
    worker: its number.
    is_byzantine: bool[K].
    aggregator_state: which the attack knows.
    attack_state: of the attack.
    key: of the attack.
  """

  def attacked(latest, state):
    messages, state = attack.apply(
      latest,
      state,
      is_byzantine=is_byzantine,
      key=key,
      aggregator_state=aggregator_state,
      num_coordinates=message.size,
    )
    row = lax.dynamic_index_in_dim(messages, worker, keepdims=False)
    if codec is not None:
      pad = layouts.padded_size(message.size, 1) - message.size
      row = codec.constrain(
        jnp.pad(row, (0, pad)), num_coordinates=message.size
      )[: message.size]
    return row, state

  return lax.cond(
    is_byzantine[worker],
    attacked,
    lambda latest, state: (message, state),
    latest,
    attack_state,
  )


def take(rows: Any, i: jax.Array) -> Any:
  """Row i of all leaves."""
  return jax.tree.map(
    lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), rows
  )


def put(rows: Any, new: Any, i: jax.Array) -> Any:
  """The leaves with a new row i."""
  return jax.tree.map(
    lambda x, y: lax.dynamic_update_index_in_dim(x, y, i, 0), rows, new
  )
