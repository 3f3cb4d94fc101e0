"""One message at a time: attackers, whatever they send and how often."""

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
  PARAMS,
  K,
  S,
  build,
  close,
  last,
  run,
)


def test_attackers_know_what_honest_workers_sent_last():
  epsilon = 3.0
  training = build(
    attack=byzjax.inner_product_manipulation(epsilon=epsilon), byzantine=1
  )
  _, _, path = run(training)
  held, params, jobs, latest = [PARAMS] * K, PARAMS, [0] * K, {}
  for e in range(40):
    k = int(EVENTS.worker[e])
    gradient = GRADIENT(held[k], BATCH[k, jobs[k] % S])
    jobs[k] += 1
    if k > 0:
      latest[k] = gradient
    elif latest:
      gradient = jax.tree.map(
        lambda *g: -epsilon * sum(g) / len(g), *latest.values()
      )
    else:
      gradient = jax.tree.map(jnp.zeros_like, PARAMS)
    params = jax.tree.map(lambda w, g: w - 0.1 * g, params, gradient)
    held[k] = params
  close(last(path), params, 1e-5)


def test_places_of_workers_hold_off_attackers_who_are_fast():
  # Two of seven send twenty times as often.
  speeds = np.array([0.05, 0.05, 1.0, 1.0, 1.1, 1.2, 1.3])
  events = asynchrony.simulate(speeds, num_events=1500, variation=0.1)
  target = jnp.ones([7, 1, 4, 3])

  def quadratic(params, batch):
    return jnp.mean((params[None] - batch) ** 2)

  def error(buffer, attack, aggregator=None, **arguments):
    training = build(
      events,
      quadratic,
      optax.sgd(0.6),
      buffer=buffer and buffer(events, num_rows=7),
      attack=attack,
      byzantine=2,
      aggregator=aggregator,
      **arguments,
    )
    state, infos, _ = run(training, 1500, target, jnp.zeros(3))
    return float(jnp.abs(state.params - 1).max()), infos

  median = byzjax.coordinate_median()
  flip = byzjax.sign_flip(scale=5.0, own=True)
  assert not error(None, flip)[0] < 1e3
  assert not error(asynchrony.by_arrival, flip, median)[0] < 1e3
  assert error(asynchrony.by_worker, flip, median)[0] < 1e-3
  assert not error(asynchrony.by_worker, flip)[0] < 10
  for value in (math.nan, math.inf, 1e30):
    distance, infos = error(
      asynchrony.by_worker, byzjax.constant(value=value), median
    )
    assert distance < 1e-3
  fills = asynchrony.by_worker(events, num_rows=7).is_full
  assert infos.is_byzantine[fills].sum(axis=1).tolist() == [2] * fills.sum()


PAIRS = {
  'krum': (byzjax.krum(num_byzantine=2), byzjax.mimic()),
  'geometric median': (byzjax.geometric_median(), byzjax.alie(z=1.0)),
  'diameter': (
    byzjax.minimum_diameter_averaging(num_byzantine=2),
    byzjax.min_max(),
  ),
  'mixing': (
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=2),
      byzjax.centered_clipping(radius=1.0),
    ),
    byzjax.min_sum(),
  ),
}


@pytest.mark.parametrize('pair', PAIRS)
def test_any_rule_behind_places_meets_any_attack(pair):
  rule, attack = PAIRS[pair]
  events = asynchrony.simulate(
    np.r_[0.2, 0.2, np.ones(6)], num_events=700, variation=0.1
  )
  noise = jax.random.normal(jax.random.key(3), (8, 5, 4, 3)) / 4
  training = build(
    events,
    lambda params, batch: jnp.mean((params[None] - batch) ** 2),
    optax.sgd(0.4),
    worker=byzjax.worker_momentum(0.5),
    buffer=asynchrony.by_worker(events, num_rows=8),
    aggregator=rule,
    attack=attack,
    byzantine=2,
  )
  state, infos, _ = run(training, 700, 1 + noise, jnp.zeros(3))
  # Honest data scatter by less than that around 1.
  assert float(jnp.abs(state.params - 1).max()) < 0.25
  assert np.isfinite(infos.loss).all()


def test_single_messages_that_are_not_finite_change_nothing():
  training = build(
    attack=byzjax.constant(value=math.nan),
    byzantine=1,
    optimizer=optax.sgd(0.1, 0.9),
  )
  _, infos, path = run(training)
  mine = EVENTS.worker == 0
  np.testing.assert_array_equal(infos.num_nonfinite, mine)
  moved = jnp.abs(jnp.diff(path['w'], axis=0, prepend=0)).max(axis=1)
  np.testing.assert_array_equal(moved > 0, ~mine)
  assert np.isfinite(moved).all()


@pytest.mark.parametrize('is_buffered', [False, True])
def test_transforms_of_single_messages_do_not_remember_nan(is_buffered):
  buffer = asynchrony.by_worker(EVENTS, num_rows=K) if is_buffered else None
  training = build(
    attack=byzjax.constant(value=math.nan),
    byzantine=1,
    incoming=optax.trace(0.5),
    buffer=buffer,
    aggregator=byzjax.coordinate_median() if is_buffered else None,
  )
  state, infos, path = run(training)
  assert np.isfinite(state.shared.incoming.trace['w']).all()
  assert int(infos.num_nonfinite.sum()) > 0
  # Honest messages after the first NaN still move the parameters.
  (attacks,) = np.nonzero(EVENTS.worker == 0)
  moved = jnp.abs(path['w'][-1] - path['w'][attacks[-2]]).max()
  assert float(moved) > 1e-4


CODECS = {
  'sign': (byzjax.sign_codec(), lambda rows: np.abs(rows) == 1),
  'top_k': (
    byzjax.error_feedback(byzjax.top_k_codec(num_kept=2)),
    lambda rows: np.count_nonzero(rows, axis=1) == 2,
  ),
}


@pytest.mark.parametrize('name', CODECS)
def test_attackers_send_what_a_codec_can_carry(name):
  codec, is_possible = CODECS[name]
  training = build(
    codec=codec,
    attack=byzjax.sign_flip(scale=5.0),
    byzantine=1,
    buffer=asynchrony.by_arrival(EVENTS, num_rows=8),
  )
  state, _, path = run(training)
  # The last eight messages, attackers' ones among them.
  assert state.shared.is_byzantine.any()
  assert is_possible(np.asarray(state.shared.places)).all()
  assert np.isfinite(path['w']).all()


def test_transforms_of_single_messages_see_attackers_too():
  arguments = dict(
    attack=byzjax.constant(value=100.0),
    byzantine=1,
    incoming=optax.clip_by_global_norm(0.5),
  )
  buffer = asynchrony.by_arrival(EVENTS, num_rows=4)
  for extra in ({}, {'buffer': buffer}):
    _, _, path = run(build(optimizer=optax.sgd(1.0), **arguments, **extra))
    moved = jnp.diff(path['w'], axis=0, prepend=0)
    assert float(jnp.linalg.norm(moved, axis=1).max()) < 0.5 + 1e-6


def test_codecs_data_attacks_and_rules_with_memory():
  sent = build(codec=byzjax.error_feedback(byzjax.scaled_sign_codec()))
  _, infos, path = run(sent)
  # A bit for each of 4 coordinates, and the scale.
  np.testing.assert_array_equal(infos.bits_up, 4 + 32)
  assert np.isfinite(path['w']).all()

  def wrong(batch, is_byzantine, key):
    return jnp.where(is_byzantine[:, None, None], -50.0, batch)

  clipped = build(
    attack=wrong,
    byzantine=1,
    aggregator=byzjax.centered_clipping(radius=0.1),
    optimizer=optax.sgd(0.1),
  )
  state, infos, path = run(clipped)
  assert np.isfinite(path['w']).all()
  assert float(infos.loss[EVENTS.worker == 0].min()) > 0.9
