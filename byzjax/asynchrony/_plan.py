"""What is known of all messages of an asynchronous run before it begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax.asynchrony._buffers import Buffer
from byzjax.asynchrony._events import Events


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


def plan(events: Events, buffer: Buffer | None) -> tuple[Plan, int]:
  """The messages with what follows from them, and S, the versions to keep."""
  count = len(events.worker)
  if buffer is None:
    zeros = np.zeros(count, np.int32)
    buffer = Buffer(1, zeros, zeros + 1, np.ones(count, bool))
  # Before message e the server has made steps[e] steps.
  steps = np.concatenate([[0], np.cumsum(buffer.is_full)])
  issued_at = steps[events.issued_at]
  read, write, num_places = _places(issued_at, steps, buffer.is_full)

  def integers(x):
    return jnp.asarray(x, jnp.int32)

  messages = Plan(
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
  return messages, num_places + 1


def _places(issued_at, steps, is_full):
  """`(read, write, number of places)` of the versions of the parameters.

  A version needs a place from when it is sent until the last job that began
  from it has arrived. So there are at most K, however late the latest message
  is. What nobody will read goes to a place behind them.
  """
  last_use = dict(zip(issued_at.tolist(), range(len(issued_at))))
  place_of, free = {0: 0}, list[int]()
  num_places, read, write = 1, [], []
  for e, version in enumerate(issued_at.tolist()):
    read.append(place_of[version])
    if last_use[version] == e:
      free.append(place_of.pop(version))
    new = int(steps[e + 1])
    if not is_full[e] or new not in last_use:
      write.append(-1)
      continue
    if not free:
      free.append(num_places)
      num_places += 1
    place_of[new] = free.pop()
    write.append(place_of[new])
  return read, [num_places if w < 0 else w for w in write], num_places
