"""The work of `robust_round` with an estimator that remembers."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byzjax._src import base, flat, local
from byzjax.rounds._work import Work, WorkContext, WorkerOutput
from byzjax.rounds._worker_gradients import over_workers, worker_messages
from byzjax.transforms import per_worker


class Parts(NamedTuple):
  """The arguments of `robust_round` that say what workers do.

  `own_previous` is for workers that may be away: each then keeps the parameters
  of its own last round, and the server's are kept once otherwise.
  """

  name: str
  estimator: local.StatefulEstimator
  chain: optax.GradientTransformation
  byzantine_chain: bool
  worker_map: str | int
  own_previous: bool


class Rows(NamedTuple):
  """What every worker keeps: leaves [n, ...]."""

  chain: base.State
  estimator: base.State
  previous: Any  # parameters, or () where the server keeps them


def build(parts: Parts) -> Work:
  """The work of the round with these parts."""
  return Work(
    functools.partial(init_rows, parts),
    functools.partial(run, parts),
    init_shared=lambda params: () if parts.own_previous else params,
  )


def init_rows(parts: Parts, params: base.Params, n: int) -> Rows:
  """What n workers keep at the start."""
  vector = flat.row_layout(params).ravel(params)
  kept = (parts.estimator.init(params), params if parts.own_previous else ())
  estimator, previous = _repeat(kept, n)
  return Rows(per_worker(parts.chain, n).init(vector), estimator, previous)


def run(
  parts: Parts, params, batch, rows, keys, *, context: WorkContext, exchange
) -> WorkerOutput:
  """A round of the workers of one device, up to their messages."""
  del exchange
  gradient = functools.partial(worker_gradient, parts)
  estimate, state = over_workers(parts.name, gradient, parts.worker_map)(
    (params, context.shared, context.step),
    batch,
    keys,
    rows.estimator,
    rows.previous,
  )
  messages, chain = worker_messages(
    parts, estimate.gradient, rows.chain, params, context.is_byzantine
  )
  shared, previous = params, ()
  if parts.own_previous:
    shared, previous = (), _repeat(params, len(keys))
  return WorkerOutput(
    estimate.loss,
    messages,
    Rows(chain, state, previous),
    shared,
    context.auxiliary,
    num_gradients=parts.estimator.count_gradients(1),
    aux=estimate.aux,
  )


def _repeat(tree: Any, n: int) -> Any:
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), tree)


def worker_gradient(
  parts: Parts, shared, batch: base.Batch, key: jax.Array, state, own_previous
) -> tuple[local.Estimate, base.State]:
  """The estimate of one worker, its message as one vector; and its state."""
  params, previous, round = shared
  if parts.own_previous:
    previous = own_previous
  context = local.first_context(params, key, round)
  value, message, state = parts.estimator.estimate(
    params, previous, batch, state, context
  )
  loss, aux = value if parts.estimator.has_aux else (value, None)
  vector = flat.row_layout(params).ravel(message)
  return local.Estimate(loss, vector, aux), state
