"""The work of `robust_round`: one gradient, through the worker's own chain."""

import functools
from typing import NamedTuple

import jax
import optax

from byzjax._src import base, flat, local
from byzjax.rounds._work import Work, WorkContext, WorkerOutput
from byzjax.rounds._worker_gradients import (
  only_for,
  over_workers,
  worker_messages,
)
from byzjax.transforms import per_worker


class Parts(NamedTuple):
  """The arguments of `robust_round` that say what workers do."""

  name: str
  estimator: local.GradientEstimator
  chain: optax.GradientTransformation
  byzantine_chain: bool
  worker_map: str | int


def build(parts: Parts) -> Work:
  """The work of the round with these parts."""
  return Work(
    functools.partial(init_rows, parts), functools.partial(run, parts)
  )


def init_rows(parts: Parts, params: base.Params, n: int) -> base.State:
  """What n workers keep at the start."""
  vector = flat.row_layout(params).ravel(params)
  return per_worker(parts.chain, n).init(vector)


def run(
  parts: Parts, params, batch, rows, keys, *, context: WorkContext, exchange
) -> WorkerOutput:
  """A round of the workers of one device, up to their messages."""
  del exchange
  gradient = functools.partial(worker_gradient, parts)
  of_all = over_workers(parts.name, gradient, parts.worker_map)
  estimate = only_for(context.computes, of_all)(
    (params, context.step), batch, keys
  )
  messages, rows = worker_messages(
    parts, estimate.gradient, rows, params, context.is_byzantine
  )
  return WorkerOutput(
    estimate.loss,
    messages,
    rows,
    context.shared,
    context.auxiliary,
    num_gradients=parts.estimator.count_gradients(1),
    aux=estimate.aux,
  )


def worker_gradient(
  parts: Parts,
  shared: tuple[base.Params, jax.Array],
  batch: base.Batch,
  key: jax.Array,
) -> local.Estimate:
  """The estimate of one worker, its gradient as one vector float[d].

  `shared` are the parameters and the number of the round.
  """
  params, round = shared
  estimate = local.estimate_once(parts.estimator, params, batch, key, round)
  # Here, so that workers one after another need no copy of all rows.
  gradient = flat.row_layout(params).ravel(estimate.gradient)
  return estimate._replace(gradient=gradient)
