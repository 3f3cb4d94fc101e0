"""Training in messages in place of rounds: all seeds and rates of a server."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from byzjax import asynchrony

from ..harness.cells import Program, Rows
from ..reporting import tables


def program(
  labels: Mapping[str, Any],
  rates: Sequence[float],
  seeds: Sequence[int],
  *,
  schedules: Sequence[asynchrony.Schedule],
  num_evals: int,
  params: Callable[[int], Any],
  make_round: Callable[[asynchrony.Schedule, jax.Array], byzjax.Round],
  batch: Any,
  measure: Callable[[Any], dict[str, jax.Array]],
) -> Program:
  """A run for every seed and rate; the column `round` counts messages.

  Args:
    labels: what all runs are.
    rates: learning rates, each a run.
    seeds: of parameters and draws, each a run.
    schedules: the messages of every seed.
    num_evals: rows of a run, evenly spaced.
    params: of a seed.
    make_round: of a schedule and a rate.
    batch: what the round is given; the same for all runs.
    measure: of parameters, at every evaluation.
  """
  count = max(int(one.num_events) for one in schedules)
  stops = np.linspace(0, count, num_evals + 1).astype(int)[1:]
  keys = jax.vmap(jax.random.key)(jnp.array(seeds))
  orders = asynchrony.stack_schedules(schedules)
  all_rates = jnp.array(rates)

  def go_on(schedule, state, key, rate, done, length):
    training = make_round(schedule, rate)
    # The schedule is the same for all rates, and stays out of what is batched.
    state = state._replace(step=jnp.asarray(done, jnp.int32))
    state = jax.lax.fori_loop(
      0, length, lambda _, state: training.step(state, batch, key)[0], state
    )
    last = jnp.minimum(done + length, schedule.num_events) - 1
    told = {
      'time': schedule.plan.time[last],
      'local_steps': jnp.cumsum(schedule.plan.num_local_steps)[last],
    }
    return state, told | measure(state.params)

  def init(params, schedule, rate):
    return make_round(schedule, rate).init(params)

  def first(tree):
    return jax.tree.map(lambda x: x[0], tree)

  @functools.cache
  def axes():
    """And so do the workers' counts of steps."""
    like = jax.eval_shape(init, params(seeds[0]), first(orders), all_rates[0])
    return like._replace(
      **dict.fromkeys(like._fields, 0)
      | {
        'workers': jax.tree.map(
          lambda x: None if jnp.issubdtype(x.dtype, jnp.integer) else 0,
          like.workers,
        )
      },
    )

  @jax.jit
  def start(params, orders):
    of_seed = jax.vmap(init, (None, None, 0), axes())
    return jax.lax.map(
      lambda one: of_seed(one[0], one[1], all_rates), (params, orders)
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def stretch(states, orders, done, length):
    def of_seed(one):
      over_rates = jax.vmap(
        go_on, (None, axes(), None, 0, None, None), (axes(), 0)
      )
      schedule, state, key = one
      return over_rates(schedule, state, key, all_rates, done, length)

    # One after the other: their orders differ, and so where they read.
    return jax.lax.map(of_seed, (orders, states, keys))

  def trace():
    def one_run(params, schedule, key, rate):
      state = init(params, schedule, rate)
      return go_on(schedule, state, key, rate, 0, 1)[1]

    return jax.eval_shape(
      one_run, params(seeds[0]), first(orders), keys[0], all_rates[0]
    )

  return Program(
    [{**labels, 'rate': r, 'seed': seed} for seed in seeds for r in rates],
    lambda: start(byzjax.stack([*map(params, seeds)]), orders),
    lambda states, done, length: stretch(states, orders, done, length),
    stops.tolist(),
    trace,
  )


@functools.cache
def simulate(seconds: tuple[float, ...], **options: Any) -> asynchrony.Events:
  """As `asynchrony.simulate`; many cells have the same messages."""
  return asynchrony.simulate(seconds, **options)


def keep(
  rows: Rows,
  more: Callable[[Rows], dict[str, float]],
  curves: Callable[[dict[str, Any]], bool],
  every: int = 1,
) -> Rows:
  """Of every run its last row with more columns, and rows for pictures.

  Those are every so many-th. The clock is left out: it follows from the
  schedule.
  """
  kept = []
  for run in tables.runs(rows).values():
    derived = more(run)
    nothing = dict.fromkeys(derived, math.nan)
    before = run[every - 1 : -1 : every]
    kept += [row | nothing for row in before if curves(row)]
    kept.append(run[-1] | derived)
  return [
    {k: v for k, v in row.items() if k not in ('time', 'local_steps')}
    for row in kept
  ]


def seconds_until(run: Rows, loss: float) -> float:
  """When the loss of a run is first so low, on the clock; inf if never."""
  return min((r['time'] for r in run if r['loss'] <= loss), default=math.inf)


def with_clock(rows: Rows, events: asynchrony.Events) -> Rows:
  """The rows with what `keep` left out."""
  steps = np.cumsum(events.num_local_steps)
  return [
    row
    | {
      'time': events.time[row['round'] - 1],
      'local_steps': steps[row['round'] - 1],
    }
    for row in rows
  ]
