"""Signum with majority vote."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

M, D = 7, 33


def _gradients(seed, m=M):
  return np.random.default_rng(seed).normal(size=(m, D)).astype(np.float32)


def _run(optimizer, num_rounds=3, m=M, w=None):
  w = jnp.zeros(D) if w is None else w
  state, path = optimizer.init(w), [w]
  update = jax.jit(optimizer.update)
  for t in range(num_rounds):
    updates, state = update(jnp.asarray(_gradients(t, m)), state, w)
    w = optax.apply_updates(w, updates)
    path.append(w)
  return np.array(path)


def test_votes_on_momenta_that_start_at_zero():
  path = _run(byzjax.signum_majority_vote(0.25, num_workers=M))
  v, w = np.zeros((M, D)), np.zeros(D)
  for t in range(3):
    v = 0.9 * v + 0.1 * _gradients(t)
    w = w - 0.25 * np.where(np.sign(v).sum(axis=0) < 0, -1, 1)
    np.testing.assert_allclose(path[t + 1], w, 1e-6)
  # Every coordinate moves by exactly eta, a power of two.
  np.testing.assert_array_equal(np.abs(np.diff(path, axis=0)), 0.25)


def test_momenta_of_half_precision_forget():
  signum = byzjax.signum_majority_vote(1.0, num_workers=1, momentum=0.999)

  def step(state, gradient):
    gradient = jnp.full((1, 1), gradient)
    updates, state = signum.update(gradient, state, jnp.zeros_like(gradient[0]))
    return state, updates[0]

  @jax.jit
  def steps_to_turn(gradients):
    start = signum.init(jnp.zeros(1, gradients.dtype))
    votes = jax.lax.scan(step, start, gradients)[1][1000:]
    return jnp.argmax(votes > 0), votes

  gradients = jnp.repeat(jnp.array([1.0, -1.0]), 1000)
  (turn, _), (half, votes) = (
    steps_to_turn(gradients.astype(dtype))
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  assert votes.dtype == jnp.bfloat16
  assert half == turn > 0


def test_one_worker_without_momentum_is_sign_sgd_and_adam():
  signum = byzjax.signum_majority_vote(0.5, num_workers=1, momentum=0.0)
  path = _run(signum, m=1)
  sgd, adam = (
    _run(tx, m=1)
    for tx in (
      optax.chain(
        optax.stateless(lambda g, _: jax.tree.map(lambda x: x[0], g)),
        optax.stateless(lambda g, _: jnp.sign(g)),
        optax.sgd(0.5),
      ),
      optax.chain(byzjax.mean(), optax.adam(0.5, b1=0.0, b2=0.0, eps=0.0)),
    )
  )
  np.testing.assert_array_equal(path, sgd)
  np.testing.assert_allclose(path, adam, atol=1e-6)


def test_weight_decay_is_decoupled():
  w = jnp.full(D, 2.0)
  kwargs = dict(num_workers=M, momentum=0.0)
  plain = _run(byzjax.signum_majority_vote(0.5, **kwargs), 1, w=w)
  decayed = _run(
    byzjax.signum_majority_vote(0.5, weight_decay=0.125, **kwargs), 1, w=w
  )
  np.testing.assert_array_equal(decayed[1], plain[1] - 0.5 * 0.125 * 2.0)


def test_sizes_of_gradients_do_not_matter():
  signum = byzjax.signum_majority_vote(0.5, num_workers=M)
  state = signum.init(jnp.zeros(D))
  scales = np.exp(np.random.default_rng(9).normal(size=(M, D)))
  first = signum.update(_gradients(0), state, jnp.zeros(D))[0]
  second = signum.update(
    np.float32(scales * _gradients(0)), state, jnp.zeros(D)
  )[0]
  np.testing.assert_array_equal(first, second)


def test_it_is_the_same_over_the_wire():
  def loss_fn(w, batch):
    return jnp.vdot(w, batch)

  rounds = byzjax.robust_round(
    loss_fn,
    num_workers=M,
    worker=optax.ema(0.9, debias=False),
    codec=byzjax.sign_codec(),
    aggregator=byzjax.majority_vote(),
    server_codec=byzjax.sign_codec(),
    optimizer=optax.sgd(0.25),
  )
  state, step = rounds.init(jnp.zeros(D)), jax.jit(rounds.step)
  path = _run(byzjax.signum_majority_vote(0.25, num_workers=M))
  for t in range(3):
    state, _ = step(state, jnp.asarray(_gradients(t)), jax.random.key(0))
    np.testing.assert_array_equal(state.params, path[t + 1])


def test_refusals():
  with pytest.raises(ValueError, match='momentum'):
    byzjax.signum_majority_vote(0.1, num_workers=3, momentum=1.5)
  with pytest.raises(ValueError, match='momentum < 1, got 1'):
    byzjax.signum_majority_vote(0.1, num_workers=3, momentum=1.0)
  with pytest.raises(ValueError, match='weight_decay >= 0'):
    byzjax.signum_majority_vote(0.1, num_workers=3, weight_decay=-0.1)
