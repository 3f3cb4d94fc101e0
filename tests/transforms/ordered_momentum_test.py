"""Ordered momentum: the equations, what they keep, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.transforms import arrivals

make = byzjax.ordered_momentum


def _reference(gradients, seen, eta, beta, num_workers, bucket, **variant):
  """The algorithm of the paper, one message after the other."""
  divide = {'ceil': np.ceil, 'floor': np.floor}[bucket]
  w = np.zeros(gradients.shape[1:])
  u, ticks, result = np.zeros_like(w), 0, []
  for t, g in enumerate(gradients):
    issued_at = seen.issued_at[t]
    if divide(t / num_workers) > ticks and not seen.is_waiting[t]:
      w, u, ticks = w - beta * u, beta * u, ticks + 1
    j = ticks - divide(issued_at / num_workers)
    assert j >= 0
    rate = eta[t]
    if variant.get('delay_adaptive'):
      rate *= min(1, num_workers / max(t - issued_at, 1))
    u = u + beta**j * rate * g
    if variant.get('catch_up', True):
      w = w - sum(beta**i for i in range(int(j) + 1)) * rate * g
    else:
      w = w - rate * g
    result.append((w, u, ticks))
  return [np.array(x) for x in zip(*result)]


def _decaying(step):
  return 0.1 / (1 + step)


def _run(tx, gradients, seen, **extra):
  """A model of two leaves; momenta and parameters joined again, [T, 5]."""
  tree = {'a': gradients[:, :2], 'b': gradients[:, 2:]}
  w, state = arrivals.run(tx, tree, **{**seen._asdict(), **extra})
  return [
    np.concatenate([x['a'], x['b']], 1) for x in (w, state.momentum)
  ], state


def _missing(w, u, gradients, eta, beta):
  """By how much the conservation law is broken."""
  total = np.cumsum(eta[:, None] * gradients, 0)
  return np.abs((1 - beta) * -w + beta * u - total).max()


@pytest.mark.parametrize(
  'variant',
  [
    {},
    {'bucket': 'floor'},
    {'delay_adaptive': True},
    {'bucket': 'floor', 'catch_up': False},
  ],
)
def test_is_the_loop(variant):
  gradients, seen = arrivals.normal(60, 5), arrivals.asynchronous(4, 60)
  assert seen.staleness.max() > 12  # j is not only 0 and 1
  eta = 0.1 / (1 + np.arange(60))
  with jax.enable_x64(True):
    tx = make(_decaying, num_workers=4, momentum=0.7, **variant)
    (w, u), state = _run(tx, gradients, seen)
  variant = {'bucket': 'ceil'} | variant
  expected = _reference(gradients, seen, eta, 0.7, 4, **variant)
  np.testing.assert_allclose(w, expected[0], 0, 1e-14)
  np.testing.assert_allclose(u, expected[1], 0, 1e-14)
  np.testing.assert_array_equal(state.num_ticks, expected[2])
  np.testing.assert_array_equal(state.step, np.arange(1, 61))
  if variant.get('delay_adaptive'):
    eta = eta * np.minimum(1, 4 / np.maximum(seen.staleness, 1))
  broken = _missing(w, u, gradients, eta, 0.7)
  if variant.get('catch_up', True):
    assert broken < 1e-14
  else:
    assert broken > 1e-3


def test_delay_adaptive_is_the_transform_in_front():
  gradients, seen = arrivals.normal(40, 5), arrivals.asynchronous(3, 40)
  with jax.enable_x64(True):
    inside = make(0.1, num_workers=3, delay_adaptive=True)
    (w, u), _ = _run(inside, gradients, seen)
    chain = optax.chain(byzjax.delay_adaptive(3), make(0.1, num_workers=3))
    other, _ = arrivals.run(chain, gradients, **seen._asdict())
  np.testing.assert_allclose(w, other, 0, 1e-14)


def test_order_of_arrival_does_not_matter():
  num_workers, n = 3, 40
  gradients, seen = arrivals.normal(n, 5), arrivals.asynchronous(num_workers, n)
  rng = np.random.default_rng(1)
  ends = []
  with jax.enable_x64(True):
    tx = make(0.1, num_workers=num_workers, momentum=0.8)
    for _ in range(4):
      # Any order in which no gradient comes before its parameters were sent.
      order = list(range(n))
      for _ in range(400):
        a, b = rng.integers(n, size=2)
        if max(seen.issued_at[order[a]], seen.issued_at[order[b]]) <= min(a, b):
          order[a], order[b] = order[b], order[a]
      issued_at = seen.issued_at[order]
      staleness = np.arange(n, dtype=np.int32) - issued_at
      assert staleness.min() >= 0
      ends.append(_ends(tx, gradients[order], issued_at, staleness))
  assert not np.array_equal(order, np.arange(n))
  for w, u in ends[1:]:
    np.testing.assert_allclose(w, ends[0][0], 0, 1e-13)
    np.testing.assert_allclose(u, ends[0][1], 0, 1e-13)


def _ends(tx, gradients, issued_at, staleness):
  w, state = arrivals.run(
    tx, gradients, issued_at=issued_at, staleness=staleness
  )
  return w[-1], state.momentum[-1]


@pytest.mark.parametrize('bucket', ['ceil', 'floor'])
@pytest.mark.parametrize('num_workers', [1, 4])
def test_synchronous_schedule_is_heavy_ball_on_the_sum(num_workers, bucket):
  gradients = arrivals.normal(8 * num_workers, 5)
  seen = arrivals.synchronous(num_workers, 8)
  with jax.enable_x64(True):
    tx = make(0.1, num_workers=num_workers, momentum=0.7, bucket=bucket)
    (w, u), _ = _run(tx, gradients, seen)
    sums = gradients.reshape(8, num_workers, 5).sum(1)
    heavy_ball, state = arrivals.run(optax.sgd(0.1, momentum=0.7), sums)
  ends = slice(num_workers - 1, None, num_workers)
  np.testing.assert_allclose(w[ends], heavy_ball, 0, 1e-14)
  np.testing.assert_allclose(u[ends], 0.1 * state[0].trace, 0, 1e-14)


def test_without_momentum_is_asynchronous_sgd():
  gradients, seen = arrivals.normal(30, 5), arrivals.asynchronous(4, 30)
  (w, u), _ = _run(make(0.25, num_workers=4, momentum=0.0), gradients, seen)
  sgd, _ = arrivals.run(optax.sgd(0.25), gradients)
  np.testing.assert_array_equal(w, sgd)


def test_traced_momentum_up_to_one():
  """The sum 1 + ... + beta^j to all digits, also where it nearly is j + 1."""
  betas = np.array([0, 1e-6, 0.5, 0.9, 1 - 1e-6, 1], np.float32)

  @jax.jit
  @jax.vmap
  def late(beta):
    """The step that a gradient 5 buckets late makes, and its momentum."""
    tx = make(1.0, num_workers=2, momentum=beta)
    state = tx.init(jnp.zeros(1))._replace(num_ticks=jnp.asarray(5, jnp.int32))
    update, state = tx.update(
      jnp.ones(1), state, issued_at=0, staleness=jnp.asarray(10)
    )
    return -update[0], state.momentum[0]

  step, u = late(betas)
  exact = np.float64(betas)
  np.testing.assert_allclose(step, sum(exact**i for i in range(6)), 3e-7)
  np.testing.assert_allclose(u, exact**5, 3e-7)


def test_counts_the_updates_of_the_server_behind_a_filter():
  gradients, seen = arrivals.normal(60, 5), arrivals.asynchronous(4, 60)
  taken = seen.staleness <= 1
  assert 0 < taken.sum() < 50
  with jax.enable_x64(True):
    inner = make(0.1, num_workers=4, momentum=0.7)
    (w, u), state = _run(
      byzjax.drop_stale(inner, max_staleness=1), gradients, seen
    )
  # One tick at most per message that is taken: late ones are made up for.
  kept = np.where(taken[:, None], gradients, 0)
  assert _missing(w, u, kept, np.full(60, 0.1), 0.7) < 1e-14
  assert np.all(state.num_ticks <= np.ceil(np.arange(60) / 4))
  assert state.num_ticks[-1] >= 14
  np.testing.assert_array_equal(state.step, np.cumsum(taken))


def test_errors():
  with pytest.raises(ValueError, match='num_workers'):
    make(0.1, num_workers=0)
  with pytest.raises(ValueError, match='momentum'):
    make(0.1, num_workers=2, momentum=-0.1)
  with pytest.raises(ValueError, match='momentum < 1, got 1'):
    make(0.1, num_workers=2, momentum=1)
  with pytest.raises(ValueError, match='bucket'):
    make(0.1, num_workers=2, bucket='round')
  tx = make(0.1, num_workers=2)
  state = tx.init(jnp.zeros(1))
  with pytest.raises(ValueError, match='ordered_momentum needs issued_at'):
    tx.update(jnp.zeros(1), state, staleness=0)
  with pytest.raises(ValueError, match='ordered_momentum needs staleness'):
    tx.update(jnp.zeros(1), state, issued_at=0)
