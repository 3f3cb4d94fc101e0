"""Byz-EF21: against a loop in NumPy, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N, D, K = 8, 5, 2
RNG = np.random.default_rng(0)
TARGETS = RNG.normal(size=(N, D)).astype(np.float32)
START = np.linspace(1, 2, D).astype(np.float32)


def loss_fn(w, target):
  return jnp.sum((w - target) ** 2) / 2


def make_round(codec=None, rule=None, **options):
  parts = byzjax.byz_ef21(
    codec=codec or byzjax.top_k_codec(num_kept=K),
    rule=rule or byzjax.trimmed_mean(num_byzantine=2),
    num_workers=N,
  )
  arguments = {'num_workers': N, 'optimizer': optax.sgd(0.1), **options}
  return byzjax.robust_round(loss_fn, **parts._asdict(), **arguments)


def run(round, num_rounds=12):
  state, step = round.init(jnp.asarray(START)), jax.jit(round.step)
  path = [START]
  for _ in range(num_rounds):
    state, info = step(state, TARGETS, jax.random.key(0))
    path.append(np.asarray(state.params))
  return np.stack(path), state, info


def top(x):
  """The k entries of largest size; ties to the lowest index."""
  kept = np.zeros_like(x)
  order = np.argsort(-np.abs(x), kind='stable')[:K]
  kept[order] = x[order]
  return kept


def loop(num_rounds=12, present=None, liars=0, beta=0.0):
  """The path, and what the server has of each worker at the end."""
  w, g = START.astype(np.float64), np.zeros((N, D))
  m, path = np.zeros((N, D)), [START]
  for t in range(num_rounds):
    here = np.ones(N, bool) if present is None else present[t]
    sent = np.zeros((N, D))
    for i in range(N):
      x = w - TARGETS[i]
      m[i] = x if t == 0 else beta * m[i] + (1 - beta) * x
      sent[i] = top(m[i] - g[i])
    # Sign flip: minus the mean of what honest workers send, as top-k has it.
    for i in range(liars):
      sent[i] = top(-sent[liars:].mean(axis=0))
    g[here] += sent[here]
    w = w - 0.1 * np.sort(g, axis=0)[2:-2].mean(axis=0)
    path.append(w)
  return np.stack(path), g


def test_equals_a_loop():
  path, state, info = run(make_round())
  want, g = loop()
  np.testing.assert_allclose(path, want, 1e-5, 1e-6)
  np.testing.assert_allclose(state.aggregator.estimates[:, :D], g, 1e-5, 1e-6)
  # k values and k indices of each message.
  assert float(info.bits_up) == N * K * (32 + 3)


def test_both_sides_have_the_same_bits():
  _, state, _ = run(make_round())
  np.testing.assert_array_equal(
    state.codec.estimate, state.aggregator.estimates
  )


def test_attackers_have_only_what_fits_on_the_wire():
  options = {'attack': byzjax.sign_flip(), 'byzantine': 2}
  path, state, _ = run(make_round(**options))
  want, g = loop(liars=2)
  np.testing.assert_allclose(path, want, 1e-5, 1e-6)
  np.testing.assert_allclose(state.aggregator.estimates[:, :D], g, 1e-5, 1e-6)
  first = run(make_round(**options), 1)[1].aggregator.estimates[:, :D]
  assert (np.count_nonzero(first, axis=1) <= K).all()


def test_with_worker_momentum_it_is_byz_ef21_sgdm():
  path, *_ = run(make_round(worker=byzjax.worker_momentum(0.7)))
  np.testing.assert_allclose(path, loop(beta=0.7)[0], 1e-5, 1e-6)


def test_who_is_away_changes_nothing():
  present = np.random.default_rng(1).random((12, N)) < 0.6
  round = make_round(
    worker_weights=lambda step: jnp.asarray(present, jnp.float32)[step]
  )
  path, state, _ = run(round)
  want, g = loop(present=present)
  np.testing.assert_allclose(path, want, 1e-5, 1e-6)
  np.testing.assert_array_equal(
    state.codec.estimate, state.aggregator.estimates
  )


def test_without_compression_it_is_the_rule_on_gradients():
  whole = make_round(codec=byzjax.top_k_codec(num_kept=D))
  plain = byzjax.robust_round(
    loss_fn,
    num_workers=N,
    aggregator=byzjax.trimmed_mean(num_byzantine=2),
    optimizer=optax.sgd(0.1),
  )
  np.testing.assert_allclose(run(whole)[0], run(plain)[0], 1e-5, 1e-6)


def test_at_fixed_messages_its_error_vanishes_and_that_of_feedback_does_not():
  still = {'optimizer': optax.set_to_zero()}
  messages = START - TARGETS
  distance = np.linalg.norm(messages, axis=1)
  for rounds in (1, 3, 12):
    _, state, _ = run(make_round(**still), rounds)
    error = state.aggregator.estimates[:, :D] - messages
    bound = (1 - K / D) ** (rounds / 2) * distance
    assert (np.linalg.norm(error, axis=1) <= bound + 1e-6).all()
  feedback = byzjax.error_feedback(byzjax.top_k_codec(num_kept=K))
  x = np.zeros(32, np.float32)
  x[:D] = messages[0]
  state, seen = feedback.init(x), []
  for _ in range(12):
    payload, state = feedback.encode(x, state, None, num_coordinates=D)
    seen.append(np.asarray(feedback.decode(payload))[:D])
  assert np.linalg.norm(seen[-1] - messages[0]) > 0.3 * distance[0]


@pytest.mark.parametrize('bad', [np.nan, np.inf, 3e38])
def test_a_bad_gradient_is_dropped_on_both_sides(bad):
  round, key = make_round(), jax.random.key(0)
  state, step = round.init(jnp.asarray(START)), jax.jit(round.step)
  hostile = TARGETS.copy()
  hostile[3, 1] = bad
  for targets in (TARGETS, hostile, TARGETS, TARGETS):
    state, _ = step(state, targets, key)
  assert np.isfinite(state.params).all()
  if not np.isfinite(bad):
    np.testing.assert_array_equal(
      state.codec.estimate, state.aggregator.estimates
    )
    assert np.isfinite(state.codec.estimate).all()


def test_hostile_sums_do_not_reach_the_aggregate():
  parts = byzjax.byz_ef21(
    codec=byzjax.top_k_codec(num_kept=K),
    rule=byzjax.trimmed_mean(num_byzantine=2),
    num_workers=N,
  )
  rule = parts.aggregator
  state = rule.init(START)
  for value in (3e38, 3e38, -np.inf, 1e30):
    x = TARGETS.copy()
    x[:2] = value
    y, state = rule.update(x, state)
    assert np.isfinite(y).all()
    honest = np.abs(state.estimates[2:]).max()
    assert np.abs(y).max() <= honest


def test_on_a_mesh_as_on_one_device():
  options = {'attack': byzjax.sign_flip(), 'byzantine': 2}
  mesh = jax.make_mesh((8,), ('workers',))
  alone, spread = (run(make_round(mesh=m, **options))[0] for m in (None, mesh))
  np.testing.assert_allclose(spread, alone, 1e-5, 1e-6)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'codec': byzjax.mean()}, 'codec'),
    ({'rule': byzjax.top_k_codec(num_kept=1)}, 'rule'),
    ({'num_workers': 0}, 'num_workers'),
  ],
)
def test_refuses(changed, message):
  given = {
    'codec': byzjax.top_k_codec(num_kept=K),
    'rule': byzjax.mean(),
    'num_workers': N,
    **changed,
  }
  with pytest.raises((TypeError, ValueError), match=message):
    byzjax.byz_ef21(**given)


def test_refuses_another_number_of_messages():
  parts = byzjax.byz_ef21(
    codec=byzjax.top_k_codec(num_kept=K), rule=byzjax.mean(), num_workers=N
  )
  with pytest.raises(ValueError, match='num_workers=8 messages, got 7'):
    parts.aggregator(TARGETS[:7])


def test_a_copy_that_would_overflow_stays_on_both_sides():
  parts = byzjax.byz_ef21(
    codec=byzjax.top_k_codec(num_kept=1), rule=byzjax.mean(), num_workers=1
  )
  known = {'num_coordinates': 1}
  worker = parts.codec.init(jnp.zeros(32))
  server = parts.aggregator.init(jnp.zeros(32))
  kept = []
  # From 2e38 to -3e38 the difference overflows, to -1e38 it does not.
  for value in (2e38, -3e38, -1e38):
    x = jnp.zeros(32).at[0].set(value)
    payload, worker = parts.codec.encode(x, worker, None, **known)
    sent = parts.codec.decode(payload)[None]
    _, server = parts.aggregator.update(sent, server)
    np.testing.assert_array_equal(worker.estimate, server.estimates[0])
    kept.append(float(worker.estimate[0]))
  np.testing.assert_allclose(kept, [2e38, 2e38, -1e38], 1e-6)
  # A liar sends what no difference can be: the server's sum overflows.
  lie = jnp.zeros((1, 32)).at[0, 0].set(-3e38)
  y, server = parts.aggregator.update(lie, server)
  np.testing.assert_allclose(y[0], -1e38, 1e-6)
