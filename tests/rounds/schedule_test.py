"""Events as arguments of a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony

K, KEY = 4, jax.random.key(0)
BATCH = jnp.asarray(
  np.random.default_rng(0).normal(size=(K, 1, 3)), jnp.float32
)
COMPILED = []


def events_of(seed, num_events=12, **options):
  return asynchrony.simulate(
    [1.0, 1.2, 1.9, 2.6],
    num_events=num_events,
    variation=0.4,
    seed=seed,
    **options,
  )


def train(events, num_steps=12, buffer=None, **options):
  """Losses and final parameters."""
  COMPILED.append(None)  # Once for every trace.
  training = byzjax.asynchronous_round(
    lambda w, x: jnp.sum((w - x) ** 2),
    events=events,
    buffer=buffer,
    optimizer=optax.sgd(0.05, 0.5),
    **options,
  )
  state, infos = jax.lax.scan(
    lambda state, _: training.step(state, BATCH, KEY),
    training.init(jnp.zeros(3)),
    length=num_steps,
  )
  return state.params, infos.loss, infos.time


def close(actual, expected):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, 1e-6, 1e-6)


def robust(events):
  return asynchrony.by_worker(events, num_rows=K)


ATTACKED = {
  'aggregator': byzjax.coordinate_median(),
  'attack': byzjax.sign_flip(scale=5.0),
  'byzantine': 1,
}


@pytest.mark.parametrize('has_buffer', [False, True])
def test_one_program_takes_every_schedule(has_buffer):
  options = ATTACKED if has_buffer else {}
  sizes = {'length': 12, 'num_versions': K + 1}
  compiled = jax.jit(lambda schedule: train(schedule, **options))
  before = len(COMPILED)
  for seed in range(3):
    events = events_of(seed)
    buffer = robust(events) if has_buffer else None
    found = compiled(asynchrony.schedule(events, buffer, **sizes))
    if seed == 0:
      traced = len(COMPILED)
    close(found, train(events, buffer=buffer, **options))
  assert traced == before + 1
  assert compiled._cache_size() == 1


def test_runs_in_one_vmap_are_the_runs_alone():
  # Of different lengths: a run that is over stays where it is.
  runs = [events_of(0, 12), events_of(1, 7), events_of(2, 10)]
  stacked = asynchrony.stack_schedules([*map(asynchrony.schedule, runs)])
  params, losses, times = jax.jit(jax.vmap(train))(stacked)
  for i, events in enumerate(runs):
    alone, loss, time = train(events)
    close(params[i], alone)
    close(losses[i, : len(loss)], loss)
    count = len(events.worker)
    np.testing.assert_allclose(times[i, :count], events.time, 1e-6)


def test_a_gradient_flows_through_a_traced_schedule():
  schedule = asynchrony.schedule(events_of(0))

  def last_loss(rate):
    training = byzjax.asynchronous_round(
      lambda w, x: jnp.sum((w - x) ** 2),
      events=schedule,
      optimizer=optax.sgd(rate),
    )
    state = training.init(jnp.zeros(3))
    for _ in range(3):
      state, info = training.step(state, BATCH, KEY)
    return info.loss

  assert np.isfinite(jax.jit(jax.grad(last_loss))(0.05))


def schedule_of(**options):
  return asynchrony.schedule(events_of(0), **options)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: schedule_of(length=3), 'schedule needs length'),
    (lambda: schedule_of(num_versions=1), 'schedule needs num_versions'),
    (
      lambda: asynchrony.schedule(
        events_of(0, num_local_steps=3), max_local_steps=2
      ),
      'schedule needs max_local_steps',
    ),
    (lambda: asynchrony.stack_schedules([]), 'at least one Schedule'),
    (lambda: asynchrony.stack_schedules([events_of(0)]), r"got \['Events'\]"),
    (
      lambda: asynchrony.stack_schedules(
        [
          schedule_of(),
          asynchrony.schedule(events_of(0), robust(events_of(0))),
        ]
      ),
      r'alike in num_rows, got \[None, 4\]',
    ),
    (
      lambda: train(schedule_of(), buffer=robust(events_of(0))),
      'needs buffer to be None where events is a Schedule',
    ),
    (
      lambda: train(asynchrony.stack_schedules([schedule_of()] * 2)),
      r'got one of \[2\] runs',
    ),
    (
      lambda: train(asynchrony.schedule(events_of(0, num_local_steps=3))),
      'local_optimizer for events with several local steps, got None and up to'
      ' 3',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
