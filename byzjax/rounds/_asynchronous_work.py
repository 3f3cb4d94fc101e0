"""What the workers of an asynchronous round do: a job, and its message."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AbstractMesh, Mesh

from byzjax._src import base, flat, layouts, local
from byzjax.asynchrony._plan import Plan
from byzjax.rounds import _local_steps, _wire
from byzjax.rounds._asynchronous_rows import from_device, place_of, take


class AsynchronousRows(NamedTuple):
  """What the workers of `asynchronous_round` keep: leaves `[K, ...]`."""

  optimizer: base.State
  chain: base.State


class AsynchronousShared(NamedTuple):
  """What the server of `asynchronous_round` keeps beside the parameters.

  Attributes:
    versions: leaves `[S, ...]`, the parameters that workers have begun from; on
      a mesh they are split by row.
    places: float[B, d], the buffer, or None; on a mesh it is split by
      coordinate, and so is `latest`.
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
  mesh: Mesh | AbstractMesh | None
  num_devices: int  # that workers are split over
  axis_name: str | tuple[str, ...]

  @property
  def axes(self) -> base.AxisName:
    """The axes to sum over: None on one device."""
    return None if self.mesh is None else self.axis_name

  @property
  def num_local(self) -> int:
    """Workers of a device."""
    return self.num_workers // self.num_devices

  @property
  def acts_on_vectors(self) -> bool:
    """Whether a message is needed as one vector on its way to the server."""
    parts = (self.chain, self.codec, self.attack, self.mesh)
    return any(part is not None for part in parts)

  def padded(self, size: int) -> int:
    """D: coordinates are padded where they are cut."""
    if self.mesh is None:
      return size
    return layouts.padded_size(size, self.num_devices)


class JobOutput(NamedTuple):
  """What the job of one message leaves behind."""

  loss: jax.Array
  message: base.Params
  optimizer: base.State  # of the local steps
  aux: Any


class Worked(NamedTuple):
  """What a worker sends and keeps.

  Attributes:
    loss: of its job.
    message: tree like the parameters.
    vector: the same as float[d], or None where nothing acts on vectors.
    rows: what it keeps.
    coder: state of its codec.
    bits: of the message.
    aux: of its job.
  """

  loss: jax.Array
  message: base.Params
  vector: jax.Array | None
  rows: AsynchronousRows
  coder: base.State
  bits: jax.Array
  aux: Any


class Sent(NamedTuple):
  """A message as the server gets it, and what is kept of it.

  Attributes:
    message: tree like the parameters.
    vector: the same as float[d], or None where nothing acts on vectors.
    latest: float[K, d], as in `AsynchronousShared`.
    attack: state of the attack.
  """

  message: base.Params
  vector: jax.Array | None
  latest: jax.Array | None
  attack: base.State


def init(parts: Parts, params: base.Params):
  """`(rows of the workers, what the server shares)`, all at `params`."""
  layout = flat.row_layout(params)
  k, b = parts.num_workers, parts.num_places

  def of_all(init, argument):
    return jax.vmap(init, in_axes=None, axis_size=k)(argument)

  size = parts.padded(layout.size)
  num_versions = parts.num_versions
  if parts.mesh is not None:
    num_versions += -num_versions % parts.num_devices
  local_state: base.State = ()
  if parts.training.optimizer is not None and parts.keeps:
    local_state = of_all(parts.training.optimizer.init, params)
  chain: base.State = ()
  if parts.chain is not None:
    chain = of_all(parts.chain.init, layout.ravel(params))
  latest = None
  if parts.attack is not None:
    # Not heard of yet: attacks learn from finite messages only.
    latest = jnp.full((k, size), jnp.nan, layout.dtype)
  return AsynchronousRows(local_state, chain), AsynchronousShared(
    jax.tree.map(lambda p: jnp.stack([p] * num_versions), params),
    None if b is None else jnp.zeros((b, size), layout.dtype),
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
    axis_name=parts.axes,
  )
  message = jax.tree.map(jnp.subtract, params, end.params)
  return JobOutput(
    end.loss, message, end.optimizer if parts.keeps else (), end.aux
  )


def work(
  parts: Parts,
  now: Plan,
  state: base.RoundState,
  stale: base.Params,
  data: Any,
  is_byzantine: jax.Array,
  job_key: jax.Array,
  codec_key: jax.Array,
) -> Worked:
  """The job of a message from `stale`, and the message up to the wire.

  On a mesh the device that has the worker does it, and the others wait: what is
  sent is on all of them, the rest is each device's own.
  """
  here, place = place_of(now.worker, parts.num_local, parts.axes)
  mine = take((state.workers, state.codec), place)
  compute = functools.partial(
    worker_update, parts, now, data, is_byzantine, job_key, codec_key
  )
  if parts.axes is None:
    return compute(stale, *mine)

  def as_here(stale, rows, coder):
    return _local_steps.varying(compute(stale, rows, coder), parts.axes)

  def elsewhere(stale, rows, coder):
    shapes = jax.eval_shape(compute, stale, rows, coder)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return _local_steps.varying(
      none._replace(rows=rows, coder=coder), parts.axes
    )

  # Each device's own, or its gradients were silently summed over the devices.
  stale = lax.pcast(stale, parts.axes, to='varying')
  worked = lax.cond(here, as_here, elsewhere, stale, *mine)
  loss, vector, bits = from_device(
    (worked.loss, worked.vector, worked.bits), here, parts.axes
  )
  assert vector is not None
  message = flat.row_layout(stale).unravel(vector)
  return worked._replace(loss=loss, vector=vector, bits=bits, message=message)


def worker_update(
  parts: Parts,
  now: Plan,
  data: Any,
  is_byzantine: jax.Array,
  job_key: jax.Array,
  codec_key: jax.Array,
  stale: base.Params,
  rows: AsynchronousRows,
  coder: base.State,
) -> Worked:
  """A job, and its message behind the worker's chain and its codec."""
  job = run_job(parts, now, stale, data, rows.optimizer, is_byzantine, job_key)
  rows, layout = rows._replace(optimizer=job.optimizer), flat.row_layout(stale)
  vector, bits = None, jnp.asarray(32.0 * layout.size)
  if parts.acts_on_vectors:
    vector = layout.ravel(job.message)
  if parts.chain is not None:
    vector, chain = parts.chain.update(vector, rows.chain, layout.ravel(stale))
    rows = rows._replace(chain=chain)
  if vector is not None:
    vector, coder, bits = encode(parts.codec, vector, coder, codec_key)
  message = job.message if vector is None else layout.unravel(vector)
  return Worked(job.loss, message, vector, rows, coder, bits, job.aux)


def send(
  parts: Parts,
  state: base.RoundState,
  now: Plan,
  worked: Worked,
  is_byzantine: jax.Array,
  key: jax.Array,
) -> Sent:
  """A message as the server gets it: behind the attack."""
  latest, vector = state.shared.latest, worked.vector
  if parts.attack is None:
    return Sent(worked.message, vector, latest, state.attack)
  assert vector is not None
  own = layouts.from_everyone(vector, parts.padded(vector.size), parts.axes)
  latest = lax.dynamic_update_index_in_dim(latest, own, now.worker, 0)
  vector, attack_state = byzantine_message(
    parts.attack,
    parts.codec,
    vector,
    latest,
    now.worker,
    is_byzantine,
    state.aggregator,
    state.attack,
    key,
    parts.axes,
  )
  message = flat.row_layout(state.params).unravel(vector)
  return Sent(message, vector, latest, attack_state)


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
  axis_name: base.AxisName = None,
) -> tuple[jax.Array, base.State]:
  """What the server gets of a worker: its message, or what the attack makes.

  Args:
    attack: on messages.
    codec: into whose form its message is put, or None.
    message: float[d], of the worker.
    latest: float[K, d], with it; of each device its coordinates, padded.
    worker: its number.
    is_byzantine: bool[K].
    aggregator_state: which the attack knows.
    attack_state: of the attack.
    key: of the attack.
    axis_name: of the devices, or None.
  """
  size = message.size
  known = {} if axis_name is None else {'axis_name': axis_name}

  def attacked(latest, state):
    messages, state = attack.apply(
      latest,
      state,
      is_byzantine=is_byzantine,
      key=key,
      aggregator_state=aggregator_state,
      num_coordinates=size,
      **known,
    )
    row = lax.dynamic_index_in_dim(messages, worker, keepdims=False)
    if axis_name is not None:
      row = jnp.where(layouts.columns(row.size, size, axis_name), row, 0)
    elif codec is not None:
      row = jnp.pad(row, (0, layouts.padded_size(size, 1) - size))
    if codec is not None:
      row = codec.constrain(row, num_coordinates=size, **known)
    return layouts.to_everyone(row, axis_name)[:size], state

  return lax.cond(
    is_byzantine[worker],
    attacked,
    lambda latest, state: (message, state),
    latest,
    attack_state,
  )
