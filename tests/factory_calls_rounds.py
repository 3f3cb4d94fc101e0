"""Arguments of every round, for the tests of factories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony, topology
from tests.factory_calls import D, N

RING = topology.ring(N)
STEPS = 2


def round_once(training):
  """A batch with a row for every worker, or S slices of such."""

  def once(x):
    return training.step(training.init(x[0, 0]), x, jax.random.key(0))

  return jax.eval_shape(once, jax.ShapeDtypeStruct((N, STEPS, D), 'float32'))


def squares(params, batch):
  return jnp.sum((params - batch.reshape(-1, D).mean(axis=0)) ** 2)


def nothing_but_batches(params, batch, rows, keys, *, context, exchange):
  """A work whose messages are the first numbers of its batch."""
  return byzjax.WorkerOutput(
    jnp.zeros(len(keys)),
    batch.reshape(len(keys), -1)[:, :D],
    rows,
    context.shared,
    context.auxiliary,
  )


WORK = byzjax.Work(lambda params, n: (), nothing_but_batches)
RATE = {'learning_rate': 0.1}
SGD = optax.sgd(0.1)
ROUND = {'loss_fn': squares, 'num_workers': N}
LOCAL = {**ROUND, **RATE, 'num_local_steps': STEPS}
SYNC = {'learning_rate': lambda step: 0.1, 'total_steps': 8, 'base_steps': 1}
EVENTS = asynchrony.simulate(np.ones(N), num_events=20)
ROUNDS = {
  'd_sgd': {'loss_fn': squares, 'topology': RING, 'consensus': 0.5, **RATE},
  'diloco': LOCAL,
  'elastic_averaging': {
    **ROUND, 'local_optimizer': SGD, 'num_local_steps': STEPS
  },
  'fed_avg': LOCAL,
  'fed_dyn': {**ROUND, **RATE, 'alpha': 0.1},
  'fed_opt': {**LOCAL, 'optimizer': SGD},
  'fed_prox': {**LOCAL, 'mu': 0.1},
  'from_work': {
    'work': WORK,
    'num_workers': N,
    'aggregator': byzjax.mean(),
    'optimizer': SGD,
  },
  'gossip_round': {'loss_fn': squares, 'topology': RING, 'optimizer': SGD},
  'local_round': {
    **ROUND,
    'local_optimizer': SGD,
    'num_local_steps': STEPS,
    'aggregator': byzjax.mean(),
    'optimizer': SGD,
  },
  'parle': {**LOCAL, 'gamma': 0.1, 'rho': 0.1},
  'robust_round': {**ROUND, 'aggregator': byzjax.mean(), 'optimizer': SGD},
  'scaffold': {**ROUND, **RATE},
}  # fmt: skip
