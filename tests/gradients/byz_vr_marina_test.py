"""Byz-VR-MARINA: against a loop in NumPy, and that its noise vanishes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N, M, D, B, RATE, P = 6, 7, 3, 2, 0.1, 0.3
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(N, M, D)).astype(np.float32)
OUTPUTS = RNG.normal(size=(N, M)).astype(np.float32)
START = np.linspace(1, 2, D).astype(np.float32)
COIN, KEY = jax.random.key(7), jax.random.key(0)
MEDIAN = byzjax.coordinate_median()


def loss_fn(w, batch):
  x, y = batch
  return jnp.mean((x @ w - y) ** 2) / 2


def make(**changed):
  given = {
    'optimizer': optax.sgd(RATE),
    'batch_size': B,
    'probability': P,
    'key': COIN,
    **changed,
  }
  return byzjax.byz_vr_marina(given.pop('loss_fn', loss_fn), **given)


def make_round(marina=None, **options):
  arguments = {'num_workers': N, 'aggregator': MEDIAN, **options}
  return byzjax.robust_round(
    loss_fn, **(marina or make())._asdict(), **arguments
  )


def run(round, num_rounds=15, batch=(INPUTS, OUTPUTS)):
  state, step = round.init(jnp.asarray(START)), jax.jit(round.step)
  path = [START]
  for _ in range(num_rounds):
    state, info = step(state, batch, KEY)
    path.append(np.asarray(state.params))
  return np.stack(path), state, info


def coins(num_rounds, probability=P):
  """The coin of every round, as users may toss it, too."""
  keys = [jax.random.fold_in(COIN, t) for t in range(num_rounds)]
  tossed = [bool(jax.random.bernoulli(key, probability)) for key in keys]
  return [True, *tossed[1:]]


def chosen(t, i):
  """The examples of worker i in round t, from the keys of a round."""
  work = jax.random.split(jax.random.fold_in(KEY, t), 5)[2]
  draw = jax.random.split(jax.random.fold_in(work, i), 3)[0]
  return np.asarray(jax.random.randint(draw, (B,), 0, M))


def gradient(w, x, y):
  return x.T.astype(np.float64) @ (x @ w - y) / len(y)


def loop(num_rounds=15, liars=0):
  w, previous = START.astype(np.float64), START.astype(np.float64)
  g, path = np.zeros(D), [START]
  for t, heads in enumerate(coins(num_rounds)):
    sent = np.zeros((N, D))
    for i in range(N):
      rows = np.arange(M) if heads else chosen(t, i)
      x, y = INPUTS[i, rows], OUTPUTS[i, rows]
      sent[i] = gradient(w, x, y)
      if not heads:
        sent[i] -= gradient(previous, x, y)
    sent[:liars] = -sent[liars:].mean(axis=0)
    g = np.median(sent, axis=0) + (0 if heads else g)
    w, previous = w - RATE * g, w
    path.append(w)
  return np.stack(path)


def test_equals_a_loop():
  assert 2 < sum(coins(15)) < 13  # Both kinds of rounds.
  np.testing.assert_allclose(run(make_round())[0], loop(), 1e-4, 1e-5)


def test_equals_a_loop_under_attack_and_on_a_mesh():
  options = {'attack': byzjax.sign_flip(), 'byzantine': 2}
  alone = run(make_round(**options))[0]
  np.testing.assert_allclose(alone, loop(liars=2), 1e-4, 1e-5)
  mesh = jax.make_mesh((2,), ('workers',))
  spread = run(make_round(mesh=mesh, **options))[0]
  np.testing.assert_allclose(spread, alone, 1e-5, 1e-6)


def test_with_heads_alone_it_is_the_rule_on_whole_gradients():
  plain = byzjax.robust_round(
    loss_fn, num_workers=N, aggregator=MEDIAN, optimizer=optax.sgd(RATE)
  )
  always = make_round(make(probability=1.0))
  np.testing.assert_allclose(run(always)[0], run(plain)[0], 1e-5, 1e-6)


def test_with_equal_data_and_curvature_it_is_gradient_descent():
  # f = |w - x|^2 / 2: differences do not depend on the examples.
  def square(w, x):
    return jnp.mean(jnp.sum((w[None] - x) ** 2, axis=1)) / 2

  x = np.broadcast_to(INPUTS[0], INPUTS.shape)
  path, *_ = run(make_round(make(loss_fn=square)), batch=x)
  mean = INPUTS[0].mean(axis=0)
  want = [mean + (1 - RATE) ** t * (START - mean) for t in range(16)]
  np.testing.assert_allclose(path, want, 1e-5, 1e-6)


def test_with_equal_data_it_converges_where_noise_lets_attackers_in():
  x = np.broadcast_to(INPUTS[0], INPUTS.shape)
  y = np.broadcast_to(OUTPUTS[0], OUTPUTS.shape)
  options = {'attack': byzjax.alie(z=1.0), 'byzantine': 2}
  path, *_ = run(make_round(**options), 1200, (x, y))
  end = gradient(path[-1], INPUTS[0], OUTPUTS[0])
  assert np.linalg.norm(end) < 1e-4
  # The same rule on the gradients of B examples stays away.
  rng = np.random.default_rng(1)
  sgd = byzjax.robust_round(
    loss_fn,
    num_workers=N,
    aggregator=MEDIAN,
    optimizer=optax.sgd(RATE),
    **options,
  )
  state, step = sgd.init(jnp.asarray(START)), jax.jit(sgd.step)
  for _ in range(400):
    rows = rng.integers(M, size=(N, B))
    state, _ = step(state, (x[0][rows], y[0][rows]), KEY)
  stays = gradient(np.asarray(state.params), INPUTS[0], OUTPUTS[0])
  assert np.linalg.norm(stays) > 0.05


def test_the_codec_acts_on_differences_alone():
  # A codec that loses everything: rounds of tails repeat the old estimate.
  codec = byzjax.top_k_codec(num_kept=1)
  lost = codec._replace(decode=lambda payload: 0 * payload)
  path, *_ = run(make_round(make(codec=lost)))
  moves = np.diff(path, axis=0)
  for t, heads in enumerate(coins(15)):
    if t:
      same = np.allclose(moves[t], moves[t - 1], 1e-4, 1e-6)
      assert same != heads
  # And one that loses nothing.
  whole = byzjax.top_k_codec(num_kept=D)
  path, *_ = run(make_round(make(codec=whole)))
  np.testing.assert_allclose(path, loop(), 1e-4, 1e-5)


def test_who_was_away_is_masked_until_the_next_whole_gradient():
  tossed = coins(15)
  tails = next(t for t in range(2, 15) if not (tossed[t] or tossed[t - 1]))
  away = tails - 1  # Worker 0 misses this round of tails, and the next is one.

  def weights(step):
    return jnp.where((step == away) & (jnp.arange(N) == 0), 0.0, 1.0)

  round = make_round(worker_weights=weights, aggregator=byzjax.mean())
  state, step = round.init(jnp.asarray(START)), jax.jit(round.step)
  masked = []
  for _ in range(tails + 1):
    state, info = step(state, (INPUTS, OUTPUTS), KEY)
    masked.append(np.flatnonzero(info.masked).tolist())
  assert masked[tails] == [0]
  assert not any(masked[: tails - 1])
  assert np.isfinite(state.params).all()


def test_both_gradients_have_the_same_key():
  def noisy(w, batch, key):
    return jnp.sum(w * jax.random.normal(key, w.shape)) + 0 * loss_fn(w, batch)

  path, *_ = run(make_round(make(loss_fn=noisy, needs_key=True)))
  moves = np.diff(path, axis=0)
  for t, heads in enumerate(coins(15)):
    if t and not heads:  # The noise cancels, so g stays what it was.
      np.testing.assert_allclose(moves[t], moves[t - 1], 1e-3, 1e-5)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'batch_size': 0}, 'batch_size'),
    ({'probability': 0.0}, 'probability'),
    ({'probability': 1.5}, 'probability'),
    ({'key': 3}, 'key'),
    ({'optimizer': 0.1}, 'optimizer'),
    ({'codec': byzjax.mean()}, 'codec'),
  ],
)
def test_refuses(changed, message):
  with pytest.raises((TypeError, ValueError), match=message):
    make(**changed)
