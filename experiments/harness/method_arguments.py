"""What a run tells its method, and how methods hand it on to their rounds."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, topology

from .cells import Task


class Arguments(NamedTuple):
  """What a run says, whatever its method.

  Attributes:
    task: the loss and the examples.
    num_workers, num_byzantine: n and f.
    rounds: of the run.
    planned: rounds of its schedules.
    steps: local steps of a round, at least 1.
    local_rate: of local steps.
    batch_size: examples per worker and step.
    num_participants: workers drawn in a round, or None.
    optimizer: of the server, with the schedule of the run.
    rate: the learning rate over the rounds, a number or a schedule.
    momentum: decay of the momentum of workers.
    aggregator: the rule.
    attacked: `attack`, `byzantine`.
    codecs: `codec`, `server_codec`.
    devices: `mesh`, `worker_map`.
    topology: a graph, for gossip.
    speeds: seconds that a job of each worker takes, for asynchronous methods.
  """

  task: Task
  num_workers: int
  num_byzantine: int
  rounds: int
  planned: int
  steps: int
  local_rate: float
  batch_size: int
  num_participants: int | None
  optimizer: optax.GradientTransformation
  rate: Any
  momentum: float
  aggregator: byzjax.Aggregator
  attacked: dict[str, Any]
  codecs: dict[str, Any]
  devices: dict[str, Any]
  topology: topology.Topology
  speeds: np.ndarray


def shared(of: Arguments) -> dict[str, Any]:
  """What all rounds with a server are given."""
  return {
    'needs_key': of.task.needs_key,
    'num_workers': of.num_workers,
    'aggregator': of.aggregator,
    **of.attacked,
    **of.codecs,
  }


def local(of: Arguments) -> dict[str, Any]:
  """What rounds of local steps are given, which draw their batches."""
  return {
    **shared(of),
    **of.devices,
    'num_local_steps': of.steps,
    'participation': of.num_participants,
    'worker': byzjax.worker_momentum(of.momentum),
    'sampler': of.task.sampler(of.batch_size),
  }


def corrected(of: Arguments) -> dict[str, Any]:
  """What local rounds that correct gradients are given."""
  return {
    **shared(of),
    'participation': of.num_participants,
    'mesh': of.devices['mesh'],
  }


def in_slices(of: Arguments, training: byzjax.Round) -> byzjax.Round:
  """A round whose batch `[n, steps x size, ...]` is cut into steps."""

  def step(state, batch, key):
    batch = jax.tree.map(
      lambda x: x.reshape(x.shape[0], of.steps, -1, *x.shape[2:]), batch
    )
    return training.step(state, batch, key)

  return training._replace(step=step)


def events(of: Arguments) -> asynchrony.Events:
  """Who comes when, from the speeds of the run."""
  return asynchrony.simulate(of.speeds, num_events=of.rounds)


def asynchronous(of: Arguments, optimizer, **options) -> byzjax.Round:
  """A round for every message, on the examples of its worker."""
  options.setdefault('aggregator', None)
  return byzjax.asynchronous_round(
    of.task.loss_fn,
    events=events(of),
    optimizer=optimizer,
    sampler=of.task.sampler(of.batch_size),
    needs_key=of.task.needs_key,
    codec=of.codecs['codec'],
    mesh=of.devices['mesh'],
    **of.attacked,
    **options,
  )
