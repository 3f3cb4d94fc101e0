"""Zeno++: the filter by one's own gradient, against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony
from tests.transforms import arrivals

D, STEPS, EVERY, RATE = 4, 60, 7, 0.05


def root_of(w, refresh):
  """Of a quadratic, whose minimum moves a little with every batch."""
  return w - 0.1 * refresh


def _reference(messages, start, penalty, tolerance):
  """By the definition; inner is SGD with momentum."""
  w, u, rejected, path = start, np.zeros(D), 0, []
  for t, x in enumerate(messages):
    if t % EVERY == 0:
      g = root_of(w, t // EVERY)
    length, own = np.linalg.norm(x), np.linalg.norm(g)
    taken = np.isfinite(length) and length > 0
    if taken:
      x = own / length * x
      taken = g @ x - penalty * x @ x + tolerance >= 0
    if taken:
      u = 0.7 * u + x
      w = w - RATE * u
    else:
      rejected += 1
    path.append((w, rejected))
  return [np.array(x) for x in zip(*path)]


@pytest.mark.parametrize(
  ('penalty', 'tolerance'), [(0.0, 0.0), (0.3, 0.0), (0.5, 1.0)]
)
def test_is_the_loop(penalty, tolerance):
  messages = arrivals.normal(STEPS, D) * np.exp(2 * arrivals.normal(STEPS, 1))
  messages[5], messages[9, 0], messages[20, 1] = 0, np.nan, np.inf
  start = np.arange(1.0, D + 1)
  want, rejected = _reference(messages, start, penalty, tolerance)
  assert 10 < rejected[-1] < STEPS - 10
  with jax.enable_x64(True):
    tx = byzjax.zeno_plus_plus(
      optax.sgd(RATE, momentum=0.7),
      root_gradient=lambda w, refresh: jax.tree.map(
        lambda x: root_of(x, refresh), w
      ),
      refresh_every=EVERY,
      penalty=penalty,
      tolerance=tolerance,
    )
    tree = {'a': messages[:, :1], 'b': messages[:, 1:]}
    first = {'a': jnp.asarray(start[:1]), 'b': jnp.asarray(start[1:])}
    w, state = arrivals.run(tx, tree, first)
  np.testing.assert_array_equal(state.num_rejected, rejected)
  got = np.concatenate([w['a'], w['b']], 1)
  np.testing.assert_allclose(got, want, 1e-10, 1e-10)


def test_all_but_one_may_be_byzantine():
  """One of five is honest; another sends what it should, but far too long."""
  w, far = jnp.full(D, 3.0), jnp.array([1e30, -1e15, jnp.nan, 1e38])
  tx = byzjax.zeno_plus_plus(
    optax.sgd(0.1), root_gradient=lambda w, refresh: w, refresh_every=1
  )
  state = tx.init(w)
  for t in range(200):
    message = w if t % 5 == 0 else -w * far[t % 5 - 1]
    update, state = tx.update(message, state, w)
    w = w + update
  assert jnp.linalg.norm(w) < 0.1
  assert state.num_rejected == 120


@pytest.mark.parametrize('scale', [1e-19, 1e19, 1e37])
def test_no_message_becomes_longer_than_the_root_gradient(scale):
  # Squares of most numbers are zero in float32, or their sum is inf.
  size = 10_000
  tx = byzjax.zeno_plus_plus(
    optax.sgd(1.0), root_gradient=lambda w, refresh: jnp.full(size, 0.01)
  )
  w = jnp.zeros(size)
  message = jnp.full(size, scale).at[0].mul(2)
  update, state = tx.update(message, tx.init(w), w)
  assert state.num_rejected == 0
  np.testing.assert_allclose(jnp.linalg.norm(update), 1, rtol=1e-5)


@pytest.mark.parametrize('root', [0.0, jnp.nan, jnp.inf])
def test_without_a_gradient_of_its_own_it_takes_nothing(root):
  tx = byzjax.zeno_plus_plus(
    optax.sgd(0.1), root_gradient=lambda w, refresh: root * w
  )
  w = jnp.ones(D)
  update, state = tx.update(w, tx.init(w), w)
  np.testing.assert_array_equal(update, 0)
  assert state.num_rejected == 1


def test_in_asynchronous_round_it_survives_fast_attackers():
  """Three of seven workers send three of four messages, and all of them lie."""
  target = jnp.arange(1.0, D + 1)

  def loss_fn(w, x):
    return jnp.sum((w - x) ** 2) / 2

  def distance(optimizer):
    events = asynchrony.simulate([0.25] * 3 + [1.0] * 4, num_events=120)
    round = byzjax.asynchronous_round(
      loss_fn,
      events=events,
      optimizer=optimizer,
      attack=byzjax.sign_flip(scale=10.0),
      byzantine=3,
    )

    def step(state, _):
      batch = jnp.broadcast_to(target, (7, 1, D))
      return round.step(state, batch, jax.random.key(0))

    start = round.init(jnp.zeros(D))
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=120))(start)
    return jnp.linalg.norm(state.params - target)

  sgd = optax.sgd(0.2)
  assert distance(sgd) > 1e3
  root = jax.grad(lambda w: loss_fn(w, target + 0.01))
  filtered = byzjax.zeno_plus_plus(sgd, root_gradient=lambda w, _: root(w))
  assert distance(filtered) < 0.1


def test_refuses_a_gradient_of_another_form():
  tx = byzjax.zeno_plus_plus(
    optax.sgd(0.1), root_gradient=lambda w, refresh: w[:2]
  )
  w = jnp.ones(D)
  with pytest.raises(
    ValueError, match=r'zeno_plus_plus needs what root_gradient'
  ):
    tx.update(w, tx.init(w), w)
  for argument, value in (
    ('refresh_every', 0),
    ('penalty', -1.0),
    ('tolerance', -1.0),
    ('root_gradient', 3),
  ):
    given = {'root_gradient': root_of, argument: value}
    with pytest.raises((ValueError, TypeError), match=argument):
      byzjax.zeno_plus_plus(optax.sgd(0.1), **given)
