"""Nodes that want different things: quadratics with a target each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import topology

KEY = jax.random.key(5)
D = 5
TORUS = topology.torus(4, 4)
N = TORUS.num_nodes


def loss_fn(params, batch):
  return jnp.sum((params['w'] - batch) ** 2) / 2


def targets(n=N, seed=0):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(size=(n, D)), jnp.float32)


def params():
  return {'w': jnp.zeros(D)}


def starts(state, seed=1):
  """The state with a different model at every node."""
  random = np.random.default_rng(seed)
  shape = state.params['w'].shape
  w = jnp.asarray(random.normal(size=shape), jnp.float32)
  return state._replace(params={'w': w})


def training(**kwargs):
  defaults = dict(topology=TORUS, optimizer=optax.sgd(0.1))
  return byzjax.gossip_round(loss_fn, **(defaults | kwargs))


def scan(rounds, batch, num_rounds, state=None):
  """Rounds on the same batch: last state, all infos, all models."""
  state = jax.jit(rounds.init)(params()) if state is None else state

  @functools.partial(jax.jit, static_argnums=2)
  def run(state, batch, num_rounds):
    def step(state, _):
      state, info = rounds.step(state, batch, KEY)
      return state, (info, state.params['w'])

    return jax.lax.scan(step, state, length=num_rounds)

  state, (infos, models) = run(state, batch, num_rounds)
  return state, infos, np.asarray(models)
