"""Every round that takes a loss, on one small problem: what all must do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, topology

N, H, D = 4, 2, 3
SGD = optax.sgd(0.1)


def loss_fn(params, batch):
  return jnp.mean((params[None] - batch) ** 2)


def _events():
  """Worker 0, 1, ... in turn, every job of H steps."""
  return asynchrony.simulate(
    np.ones(N), num_events=2 * N, num_local_steps=np.full(N, H)
  )


LOCAL = dict(local_optimizer=SGD, num_local_steps=H)


def robust(loss_fn, **arguments):
  defaults = dict(aggregator=byzjax.mean(), optimizer=SGD, num_workers=N)
  return byzjax.robust_round(loss_fn, **(defaults | arguments))


def local(loss_fn, **arguments):
  defaults = dict(aggregator=byzjax.mean(), optimizer=SGD, num_workers=N)
  return byzjax.local_round(loss_fn, **(LOCAL | defaults | arguments))


def asynchronous(loss_fn, **arguments):
  defaults = dict(events=_events(), local_optimizer=SGD, optimizer=SGD)
  return byzjax.asynchronous_round(loss_fn, **(defaults | arguments))


def gossip(loss_fn, **arguments):
  defaults = dict(topology=topology.ring(N), optimizer=SGD)
  return byzjax.gossip_round(loss_fn, **(defaults | arguments))


def modular(loss_fn, **arguments):
  """One module for all, so that a path is `(params,)`."""
  defaults = dict(paths=np.zeros((N, 1), int), optimizer=SGD)
  return byzjax.modular_round(loss_fn, **(LOCAL | defaults | arguments))


def elastic(loss_fn, **arguments):
  defaults = dict(num_workers=N)
  return byzjax.elastic_averaging(loss_fn, **(LOCAL | defaults | arguments))


def parle(loss_fn, **arguments):
  defaults = dict(
    learning_rate=0.1,
    num_workers=N,
    num_local_steps=H,
    batches_per_epoch=4,
  )
  return byzjax.parle(loss_fn, **(defaults | arguments))


ROUNDS = {
  'robust_round': robust,
  'local_round': local,
  'asynchronous_round': asynchronous,
  'gossip_round': gossip,
  'modular_round': modular,
  'elastic_averaging': elastic,
  'parle': parle,
}


def as_params(name, params):
  """The parameters as a round takes them: one level, in a modular round."""
  if name != 'modular_round':
    return params
  return (jax.tree.map(lambda x: x[None], params),)
