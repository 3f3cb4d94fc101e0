"""How large a rate may be: servers on a parabola, workers in turn.

The loss is w^2 / 2, so the rate times the curvature is the rate. Every method
is linear there, and its parameters grow or fall by a factor per K messages.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import asynchrony

from ...harness.cells import OwnCell, Rows
from ...reporting import tables
from .. import arrivals
from .methods import BARRIER, methods
from .training import SCHEDULES, names

ATTACK = 'parabola'  # In the column of attacks: these are no training runs.
EQUAL = ('16, equal', '64, equal')
ROUNDS = 100  # Of K messages.
PRODUCTS = np.geomspace(0.02, 8, 400)  # K x rate, 1.5 % apart.


def cells(settings: Any) -> list[OwnCell]:
  """A limit for every method and K."""
  return [
    cell(settings, method, schedule)
    for schedule in EQUAL
    for method in names(settings)[0]
  ]


def cell(settings: Any, method: str, schedule: str) -> OwnCell:
  labels = {'method': method, 'schedule': schedule, 'attack': ATTACK}

  def make_rows(seeds):
    del seeds
    k, _ = SCHEDULES[schedule]
    found = limit(method, k, settings.momentum)
    return [{**labels, 'rate': 0.0, 'seed': 0, 'round': 0, 'limit': found}]

  return OwnCell(labels=labels, make_rows=make_rows)


def limit(method: str, k: int, momentum: float) -> float:
  """The largest K x rate below all at which parameters do not shrink."""
  shrinks = np.asarray(shrinking(method, k, momentum))
  grows = np.flatnonzero(~shrinks)
  return float(PRODUCTS[grows[0] - 1]) if grows.any() else math.inf


def shrinking(method: str, k: int, momentum: float) -> jax.Array:
  """For every product, whether the largest parameter of a few rounds falls."""
  events = arrivals.simulate(
    (1.0,) * k,
    num_events=ROUNDS * k,
    grace=math.inf if method == BARRIER else 0.0,
  )

  def sizes(rate):
    arguments = methods(k, momentum, ())[method](optax.constant_schedule(rate))
    if num_rows := arguments.pop('num_rows', None):
      arguments['buffer'] = asynchrony.by_distinct_workers(
        events, num_rows=num_rows
      )
    training = byzjax.asynchronous_round(
      lambda w, batch: w**2 / 2 + 0 * batch, events=events, **arguments
    )

    def step(state, _):
      state, _ = training.step(state, jnp.zeros([k, 1]), jax.random.key(0))
      return state, jnp.abs(state.params)

    start = training.init(jnp.ones([]))
    return jax.lax.scan(step, start, length=ROUNDS * k)[1]

  found = jax.jit(jax.vmap(sizes))(jnp.asarray(PRODUCTS / k, jnp.float32))
  parts = jnp.max(found.reshape(len(PRODUCTS), 5, -1), axis=-1)
  middle, last = parts[:, 2], parts[:, -1]
  # What is nearly zero may stay as it is. False for NaN.
  return (last < middle) | (last < 1e-30)


def table(rows: Rows) -> tables.Cells:
  return tables.Cells(
    ((row['method'], f'K = {SCHEDULES[row["schedule"]][0]}'), row['limit'])
    for row in tables.select(rows, attack=ATTACK)
  )
