"""Delayed Nesterov and SMEGA2: the equations, and what ties them together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.transforms import arrivals

make = byzjax.delayed_nesterov


def _reference(gradients, eps, beta, n, c, aggregate=lambda x: x.mean(0)):
  """The algorithm of the paper, one message after the other."""
  w = np.zeros(gradients.shape[1:])
  m, result = np.zeros_like(w), []
  for t, g in enumerate(gradients):
    if (t + 1) % n == 0:
      m = beta * m + aggregate(gradients[t + 1 - n : t + 1])
      w = w - eps[t] * ((1 - c * n + c) * beta * m + g / n)
    else:
      w = w - eps[t] * (c * beta * m + g / n)
    result.append((w, m))
  return [np.array(x) for x in zip(*result)]


def _decaying(step):
  return 0.3 / (1 + step)


@pytest.mark.parametrize(('n', 'c'), [(4, 0.0), (4, 0.25), (5, 0.1), (1, 0.6)])
def test_is_the_loop(n, c):
  gradients = arrivals.normal(23, 5)
  with jax.enable_x64(True):
    tx = make(_decaying, num_buffered=n, momentum=0.7, activation=c)
    tree = {'a': gradients[:, :2], 'b': gradients[:, 2:]}
    w, state = arrivals.run(tx, tree)
  expected = _reference(gradients, 0.3 / (1 + np.arange(23)), 0.7, n, c)
  for found, exact in zip((w, state.momentum), expected):
    found = np.concatenate([found['a'], found['b']], 1)
    np.testing.assert_allclose(found, exact, 0, 1e-14)


@pytest.mark.parametrize('c', [0.0, 0.3, 1.0])
def test_buffer_of_one_is_nesterov_bit_by_bit(c):
  gradients = arrivals.normal(5, 7).astype(np.float32)
  tx = make(0.3, num_buffered=1, momentum=0.7, activation=c)
  nesterov = optax.sgd(0.3, momentum=0.7, nesterov=True)
  w = jnp.zeros(7)
  state, other = tx.init(w), nesterov.init(w)
  # Not compiled: fused, products and sums may be rounded once or twice.
  for g in gradients:
    update, state = tx.update(jnp.asarray(g), state, w)
    expected, other = nesterov.update(jnp.asarray(g), other, w)
    np.testing.assert_array_equal(update, expected)
    np.testing.assert_array_equal(state.momentum, other[0].trace)


def test_without_momentum_is_sgd_with_weight_one_in_n():
  gradients = arrivals.normal(11, 5)
  tx = make(0.5, num_buffered=4, momentum=0.0, activation=0.2)
  w, _ = arrivals.run(tx, gradients)
  expected, _ = arrivals.run(optax.sgd(0.125), gradients)
  np.testing.assert_array_equal(w, expected)


@pytest.mark.parametrize('c', [0.0, 0.2])
def test_groups_are_synchronous_nesterov_and_a_known_rest(c):
  n, eps, beta = 4, 0.3, 0.7
  gradients = arrivals.normal(9 * n, 5)
  with jax.enable_x64(True):
    tx = make(eps, num_buffered=n, momentum=beta, activation=c)
    w, state = arrivals.run(tx, gradients)
    nesterov = optax.sgd(eps, momentum=beta, nesterov=True)
    means = gradients.reshape(9, n, 5).mean(1)
    expected, other = arrivals.run(nesterov, means)
  ends = slice(n - 1, None, n)
  m = state.momentum[ends]
  np.testing.assert_allclose(m, other[0].trace, 0, 1e-14)
  rest = eps * beta * (n - 1) * c * m
  np.testing.assert_allclose(w[ends], expected + rest, 0, 1e-14)


def test_the_same_message_over_and_over():
  beta, eps, k = 0.9, 0.3, 4
  before, g = arrivals.normal(2, 5)
  many = np.stack([before] + [g] * k)
  with jax.enable_x64(True):
    tx = make(eps, num_buffered=1, momentum=beta)
    w, state = arrivals.run(tx, many)
    # The closed form of Liu et al., equation 5; m is `before` after one.
    geometric = sum(beta**i for i in range(k))
    factor = 4 + 4 * beta + 3 * beta**2 + 2 * beta**3 + beta**4
    m = beta**k * before + geometric * g
    np.testing.assert_allclose(state.momentum[-1], m, 0, 1e-14)
    step = -eps * (factor * g + beta**2 * geometric * before)
    np.testing.assert_allclose(w[-1] - w[0], step, 0, 1e-13)
    # In the long run all go eps / (1 - beta) g per N messages.
    long = np.repeat(g[None], 1200, 0)
    for n, c in ((1, 0.0), (4, 0.0), (4, 0.25)):
      tx = make(eps, num_buffered=n, momentum=beta, activation=c)
      w, _ = arrivals.run(tx, long)
      step = w[-1] - w[-1 - n]
      np.testing.assert_allclose(step, -eps / (1 - beta) * g, 1e-9)


def test_aggregator_in_place_of_the_mean():
  n = 5
  gradients = arrivals.normal(4 * n + 2, 5)
  lies = gradients.copy()
  lies[2::n] = 1e30
  eps = np.full(len(lies), 0.3)
  with jax.enable_x64(True):

    def tx(rule):
      return make(
        0.3, num_buffered=n, momentum=0.7, activation=0.1, aggregator=rule
      )

    mean, _ = arrivals.run(tx(byzjax.mean()), gradients)
    median, state = arrivals.run(tx(byzjax.coordinate_median()), lies)
    # The state of a rule changes with its N-th message only.
    clip = byzjax.centered_clipping(radius=1.0)
    _, clipped = arrivals.run(tx(clip), gradients)
    rule_state, expected = clip.init(jnp.zeros(5)), []
    for i in range(4):
      rows = jnp.asarray(gradients[i * n : (i + 1) * n])
      found, rule_state = clip.update(rows, rule_state)
      expected += [found]
    expected = np.array(expected)
  plain = _reference(gradients, eps, 0.7, n, 0.1)[0]
  np.testing.assert_allclose(mean, plain, 0, 1e-13)
  robust = _reference(
    lies, eps, 0.7, n, 0.1, aggregate=lambda x: np.median(x, 0)
  )[1]
  np.testing.assert_allclose(state.momentum, robust, 0, 1e-13)
  assert np.abs(state.momentum).max() < 10 < np.abs(median).max()
  momentum = np.zeros(5)
  for i in range(4):
    momentum = 0.7 * momentum + expected[i]
    inside = clipped.momentum[(i + 1) * n - 1 : (i + 2) * n - 1]
    np.testing.assert_allclose(inside, inside[:1].repeat(len(inside), 0))
    np.testing.assert_allclose(inside[0], momentum, 0, 1e-13)


def test_traced_numbers_make_a_sweep():
  gradients = jnp.asarray(arrivals.normal(9, 3), jnp.float32)

  def end(eps, beta, c):
    tx = make(eps, num_buffered=3, momentum=beta, activation=c)
    state, w = tx.init(jnp.zeros(3)), jnp.zeros(3)
    for g in gradients:
      update, state = tx.update(g, state)
      w = w + update
    return w

  sweep = np.array([[0.1, 0.9, 0.0], [0.3, 0.5, 0.2]], np.float32)
  found = jax.jit(jax.vmap(end))(*sweep.T)
  for row, (eps, beta, c) in zip(found, sweep):
    exact = _reference(np.float64(gradients), np.full(9, eps), beta, 3, c)
    np.testing.assert_allclose(row, exact[0][-1], 1e-5, 1e-6)


# SMEGA2.


def test_smega2_is_the_loop():
  n, beta = 5, 0.7
  gradients = arrivals.normal(18, 5)
  with jax.enable_x64(True):
    server = byzjax.smega2(_decaying, num_workers=n, momentum=beta)
    w, state = arrivals.run(server, gradients)
    sent = jax.jit(jax.vmap(server.estimate))(w, state)
  eta = 0.3 / (1 + np.arange(19))
  x, m, total = np.zeros(5), np.zeros(5), np.zeros(5)
  for t, g in enumerate(gradients):
    s = (t + 1) % n
    total = total + g
    x = x - eta[t] * (g + beta * m)
    if s == 0:
      m, total = beta * m + total / n, np.zeros(5)
    forecast = (n + s * (beta - 1)) * m + s / n * total
    np.testing.assert_allclose(w[t], x, 0, 1e-14)
    np.testing.assert_allclose(
      sent[t], x - eta[t + 1] * beta * forecast, 0, 1e-14
    )


def test_smega2_estimate_is_what_comes_without_new_gradients():
  n = 5
  gradients = arrivals.normal(12, 3)
  server = byzjax.smega2(0.3, num_workers=n, momentum=0.8)
  w, state = arrivals.run(server, gradients)
  zeros = jnp.zeros(3)

  @jax.jit
  def later(w, state):
    for _ in range(n):
      update, state = server.update(zeros, state)
      w = w + update
    return w

  for t in range(12):
    here = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), (w, state))
    np.testing.assert_allclose(later(*here), server.estimate(*here), 1e-5, 1e-6)


def test_smega2_is_delayed_nesterov_but_for_the_last_momentum():
  n, eta, beta = 4, 0.1, 0.7
  gradients = arrivals.normal(18, 5)
  with jax.enable_x64(True):
    server = byzjax.smega2(eta, num_workers=n, momentum=beta)
    nesterov = make(n * eta, num_buffered=n, momentum=beta, activation=1 / n)
    w, state = arrivals.run(server, gradients)
    x, other = arrivals.run(nesterov, gradients)
  np.testing.assert_allclose(state.momentum, other.momentum, 0, 1e-14)
  # In each N-th step DN takes the momentum after it: m once more, in all.
  np.testing.assert_allclose(x, w - eta * beta * state.momentum, 0, 1e-14)


def test_errors():
  for bad in (
    {'num_buffered': 0},
    {'num_buffered': 4, 'activation': 0.3},
    {'num_buffered': 4, 'activation': -0.1},
    {'num_buffered': 4, 'momentum': 1.5},
  ):
    with pytest.raises(ValueError, match=f'delayed_nesterov.*{list(bad)[-1]}'):
      make(0.1, **bad)
  with pytest.raises(ValueError, match='smega2.*num_workers'):
    byzjax.smega2(0.1, num_workers=0)
  with pytest.raises(ValueError, match='smega2.*momentum'):
    byzjax.smega2(0.1, num_workers=1, momentum=2.0)
