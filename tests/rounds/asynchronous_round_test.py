"""One message at a time: against event loops, and synchronous limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony
from tests.rounds.asynchronous_problem import (
  BATCH,
  EVENTS,
  GRADIENT,
  KEY,
  PARAMS,
  SPEEDS,
  TOGETHER,
  K,
  S,
  build,
  close,
  last,
  loss_fn,
  minus,
  run,
)


def loop(events, rate, num_events):
  """The event loop that a user would write: every worker holds its copy."""
  held, params, jobs = [PARAMS] * K, PARAMS, [0] * K
  path = []
  waiting = []
  for e in range(num_events):
    k = int(events.worker[e])
    batch = BATCH[k, jobs[k] % S]
    jobs[k] += 1
    gradient = GRADIENT(held[k], batch)
    params = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
    path.append(params)
    waiting.append(k)
    if e + 1 < len(events.worker) and not events.is_waiting[e + 1]:
      for i in waiting:
        held[i] = params
      waiting = []
  return path


@pytest.mark.parametrize('grace', [0.0, 0.8])
def test_gradients_are_those_of_the_event_loop(grace):
  events = asynchrony.simulate(
    SPEEDS, num_events=40, variation=0.3, grace=grace
  )
  expected = loop(events, 0.1, 40)
  _, infos, path = run(build(events))
  for e in (0, 1, 7, 39):
    close(jax.tree.map(lambda x, e=e: x[e], path), expected[e])
  np.testing.assert_array_equal(infos.staleness, events.staleness)
  np.testing.assert_allclose(infos.time, events.time, 1e-6)


def test_versions_are_kept_only_while_somebody_has_them():
  # One slow worker of four: 50 steps pass while it computes.
  events = asynchrony.simulate([1.0, 1.0, 1.0, 50.0], num_events=400)
  assert events.staleness.max() > 100
  versions = build(events).init(PARAMS).shared.versions
  assert len(versions['w']) <= K + 1
  # Under a barrier all have the same one; beside it the place nobody reads.
  assert len(build(TOGETHER).init(PARAMS).shared.versions['w']) == 2


def test_a_single_worker_is_sgd():
  events = asynchrony.simulate([1.0], num_events=6)
  _, _, path = run(build(events), 6, BATCH[:1])
  params = PARAMS
  for e in range(6):
    params = jax.tree.map(
      lambda w, g: w - 0.1 * g, params, GRADIENT(params, BATCH[0, e % S])
    )
  close(last(path), params)


def test_a_barrier_and_a_buffer_of_all_are_the_synchronous_round():
  training = byzjax.robust_round(
    loss_fn,
    num_workers=K,
    aggregator=byzjax.coordinate_median(),
    optimizer=optax.sgd(0.1, 0.9),
    worker=byzjax.worker_momentum(0.5),
  )
  state = training.init(PARAMS)
  for t in range(5):
    state, _ = training.step(state, BATCH[:, t % S], KEY)
  mine, infos, _ = run(
    build(
      TOGETHER,
      optimizer=optax.sgd(0.1, 0.9),
      worker=byzjax.worker_momentum(0.5),
      buffer=asynchrony.by_distinct_workers(TOGETHER, num_rows=K),
      aggregator=byzjax.coordinate_median(),
    ),
    20,
  )
  close(mine.params, state.params)
  assert int(infos.staleness.max()) == 0


@pytest.mark.parametrize('keeps', ['keep', 'reset'])
def test_with_local_steps_they_are_the_local_round(keeps):
  arguments = dict(
    local_optimizer=optax.adam(0.05), optimizer=optax.sgd(0.7, 0.9, True)
  )
  training = byzjax.local_round(
    loss_fn,
    num_workers=K,
    num_local_steps=S,
    aggregator=byzjax.mean(),
    local_state=keeps,
    **arguments,
  )
  state = training.init(PARAMS)
  for _ in range(5):
    state, _ = training.step(state, BATCH, KEY)
  events = asynchrony.simulate(
    SPEEDS, num_events=20, num_local_steps=S, grace=math.inf
  )
  buffer = asynchrony.by_arrival(events, num_rows=K)
  mine, _, _ = run(
    build(events, buffer=buffer, local_state=keeps, **arguments), 20
  )
  close(mine.params, state.params, 1e-5)
  # Delayed Nesterov makes the same of it, without a buffer.
  delayed, _, _ = run(
    build(
      events,
      local_optimizer=optax.adam(0.05),
      local_state=keeps,
      optimizer=byzjax.delayed_nesterov(0.7, num_buffered=K, momentum=0.9),
    ),
    20,
  )
  close(delayed.params, state.params, 1e-5)


def test_ordered_momentum_under_a_barrier_is_momentum_sgd():
  optimizer = byzjax.ordered_momentum(0.02, num_workers=K, momentum=0.8)
  mine, _, _ = run(build(TOGETHER, optimizer=optimizer), 20)
  params, momentum = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
  for t in range(5):
    total = jax.tree.map(
      lambda *g: sum(g), *(GRADIENT(params, BATCH[k, t % S]) for k in range(K))
    )
    momentum = jax.tree.map(lambda m, g: 0.8 * m + 0.02 * g, momentum, total)
    params = minus(params, momentum)
  # The last decay waits for the next gradient: w - beta u is not yet made.
  close(mine.params, params)


def test_a_buffer_is_accumulation():
  events = asynchrony.simulate(SPEEDS, num_events=12)
  buffer = asynchrony.by_arrival(events, num_rows=3)
  tx = optax.sgd(0.3, 0.9)
  one, _, path = run(build(events, optimizer=tx, buffer=buffer), 12)
  two, _, _ = run(build(events, optimizer=optax.MultiSteps(tx, 3)), 12)
  close(one.params, two.params)
  # Nothing moves until it is full.
  close(jax.tree.map(lambda x: x[1], path), PARAMS)


def test_every_schedule_draws_the_same_batches_of_a_shard():
  # A gradient that is the batch: the sum of all steps tells what was drawn.
  def linear(params, batch):
    return jnp.sum(params * batch)

  noise = byzjax.LocalSampler(
    init=lambda params: (),
    start=lambda state, params, data, key: (),
    draw=lambda plan, data, step, key: (
      data[0, 0] + jax.random.normal(key, (3,)) + step,
      plan,
    ),
    finish=lambda state, params: state,
  )

  def total(events):
    training = build(events, linear, optax.sgd(1.0), sampler=noise)
    length = len(events.worker)
    return run(training, length, params=jnp.zeros(3))[0].params

  one = asynchrony.simulate(np.ones(K), num_events=8, grace=math.inf)
  # Other speeds and another order, but as many steps of every shard.
  other = asynchrony.simulate(
    [1.0, 1.4, 1.1, 1.2], num_events=8, variation=0.05
  )
  assert (one.worker != other.worker).any()
  np.testing.assert_array_equal(np.bincount(other.worker), [2, 2, 2, 2])
  np.testing.assert_allclose(total(one), total(other), 1e-5)


def test_local_optimizers_are_told_the_progress_of_the_data():
  events = asynchrony.simulate(
    SPEEDS, num_events=9, num_local_steps=[3, 2, 1, 1], shards='least_visited'
  )

  def update(updates, state, params=None, *, progress, **extra):
    return jax.tree.map(lambda u: -progress.astype(u.dtype), updates), state

  told = optax.GradientTransformationExtraArgs(lambda params: (), update)
  _, _, path = run(
    build(
      events,
      lambda w, b: jnp.sum(w * b[0]),
      optax.sgd(1.0),
      local_optimizer=told,
      local_state='reset',
    ),
    9,
    params=jnp.zeros(3),
  )
  steps = [
    sum(range(p, p + n))
    for p, n in zip(events.progress, events.num_local_steps)
  ]
  np.testing.assert_allclose(path[:, 0], -np.cumsum(steps))


def test_one_executable_vmaps_and_ends():
  training = build(optimizer=optax.sgd(0.1, 0.9))
  step, state = jax.jit(training.step), training.init(PARAMS)
  for _ in range(41):
    before = state.params
    state, _ = step(state, BATCH, KEY)
  assert step._cache_size() == 1
  close(state.params, before, 0)  # After the last message nothing moves.
  scanned, _, _ = run(training)
  close(state.params, scanned.params)

  def last_of(rate):
    training = build(optimizer=optax.sgd(rate, 0.9))
    return run(training)[0].params

  many = jax.vmap(last_of)(jnp.array([0.05, 0.1]))
  close(jax.tree.map(lambda x: x[1], many), scanned.params)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(events=3), 'events from asynchrony.simulate or .*, got int'),
    (dict(byzantine=2), 'byzantine'),
    (dict(byzantine=lambda step: step), 'byzantine to be an int'),
    (dict(aggregator=optax.sgd(0.1)), 'aggregator to be an Aggregator'),
    (dict(local_state='average'), 'local_state to be one of keep, reset'),
    (dict(buffer=3), 'a buffer of these 40 events'),
    (
      dict(events=asynchrony.simulate([1.0], num_events=1, num_local_steps=2)),
      'a local_optimizer for events with several local steps',
    ),
  ],
)
def test_errors_name_the_argument(arguments, message):
  with pytest.raises(ValueError, match=message):
    build(**arguments)


def test_a_rule_that_keeps_rows_needs_one_of_its_own_for_every_worker():
  rule = byzjax.delayed_momentum(byzjax.mean(), num_workers=K, decay=0.5)
  codec = byzjax.top_k_codec(num_kept=1)
  ef21 = byzjax.byz_ef21(codec=codec, rule=byzjax.mean(), num_workers=K)
  own = asynchrony.by_worker(EVENTS, num_rows=K)
  build(buffer=own, aggregator=rule)
  shared = asynchrony.by_arrival(EVENTS, num_rows=K)
  message = f'one row of its own .*delayed_momentum.*num_rows={K}'
  for buffer in (shared, None):
    with pytest.raises(ValueError, match=message):
      build(buffer=buffer, aggregator=rule)
  with pytest.raises(ValueError, match='averages no messages with .*ef21'):
    build(buffer=own, **ef21._asdict())
  alike = asynchrony.by_worker(TOGETHER, num_rows=K)
  build(TOGETHER, buffer=alike, **ef21._asdict())


def test_batches_have_a_row_for_every_shard():
  training = build()
  with pytest.raises(ValueError, match='num_shards=4 rows, got 3'):
    training.step(training.init(PARAMS), BATCH[:3], KEY)
  with pytest.raises(ValueError, match='batch leaves'):
    training.step(training.init(PARAMS), jnp.zeros(4), KEY)


@pytest.mark.parametrize(
  'optimizer',
  [
    byzjax.ordered_momentum(0.1, num_workers=K),
    byzjax.delayed_nesterov(0.1, num_buffered=2),
  ],
)
def test_states_with_the_same_zeros_twice_can_be_donated(optimizer):
  training = build(optimizer=optimizer)
  step = jax.jit(training.step, donate_argnums=0)
  state = training.init(PARAMS)
  for _ in range(2):
    state, _ = step(state, BATCH, KEY)
  assert int(state.step) == 2
