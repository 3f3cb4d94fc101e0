"""Optax transforms, the named chains, and an optax user's own loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import reference, tables

SIZE = tables.SIZE


def _run(tx, gradients, params=None):
  """Updates of a transform for gradients [T, ...], by a scan."""
  params = gradients[0] if params is None else params

  def body(state, gradient):
    update, state = tx.update(gradient, state, params)
    return state, update

  return jax.jit(functools.partial(jax.lax.scan, body))(
    tx.init(params), gradients
  )[1]


# Worker momentum.


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.9, 0.99, 1.0])
def test_worker_momentum_is_the_loop_of_the_paper(decay):
  gradients = np.random.default_rng(0).normal(size=(30, 5))
  result = _run(byzjax.worker_momentum(decay), jnp.asarray(gradients, 'f4'))
  expected = reference.worker_momentum(gradients, decay)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


def test_worker_momentum_of_half_precision_gradients_has_no_bias():
  # Constant gradients with noise: the average must be the gradient, not 0.84.
  gradients = 1 + np.random.default_rng(0).normal(size=(400, 500))
  gradients = jnp.asarray(gradients, jnp.bfloat16)
  result = _run(byzjax.worker_momentum(0.99), gradients)
  assert result.dtype == jnp.bfloat16
  expected = reference.worker_momentum(np.float64(gradients), 0.99)[-1].mean()
  np.testing.assert_allclose(np.float64(result[-1]).mean(), expected, rtol=0.02)


def test_worker_momentum_has_the_stationary_variance():
  gradients = np.random.default_rng(0).normal(size=(300, 20_000))
  for decay in (0.5, 0.9):
    last = _run(byzjax.worker_momentum(decay), jnp.asarray(gradients, 'f4'))[-1]
    expected = (1 - decay) / (1 + decay)
    # Five standard errors of a variance of 20 000 values.
    np.testing.assert_allclose(np.var(last), expected, rtol=5 * 0.01)


def test_worker_momentum_decay_may_be_traced():
  gradients = jnp.asarray(
    np.random.default_rng(0).normal(size=(5, 3)), jnp.float32
  )
  swept = jax.vmap(lambda b: _run(byzjax.worker_momentum(b), gradients))(
    jnp.array([0.0, 0.9])
  )
  np.testing.assert_array_equal(swept[0], gradients)
  inside = jax.jit(lambda: _run(byzjax.worker_momentum(0.9), gradients))()
  np.testing.assert_allclose(inside, swept[1], 1e-5, 1e-6)


@pytest.mark.parametrize('decay', [-0.1, 1.1, float('nan')])
def test_worker_momentum_decay_must_be_in_the_unit_interval(decay):
  with pytest.raises(ValueError, match=f'worker_momentum.*decay.*got {decay}'):
    byzjax.worker_momentum(decay)


# Per worker.


@pytest.mark.parametrize(
  'tx',
  [
    byzjax.worker_momentum(0.9),
    optax.clip_by_global_norm(1.0),
    optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1)),
  ],
  ids=['worker_momentum', 'clip', 'adam_and_decay'],
)
def test_per_worker_equals_a_loop_over_workers(tx):
  steps, n = 4, 3
  x = np.random.default_rng(0).normal(size=(steps, n, SIZE))
  gradients = tables.to_tree(x)
  params = tables.to_tree(np.linspace(-1, 1, SIZE))
  stacked = _run(byzjax.per_worker(tx, n), gradients, params)
  for i in range(n):
    single = _run(tx, jax.tree.map(lambda g, i=i: g[:, i], gradients), params)
    mine = jax.tree.map(lambda u, i=i: u[:, i], stacked)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(single)):
      np.testing.assert_allclose(a, b, 1e-5, 1e-6)


def test_per_worker_counts_rows():
  tx = byzjax.per_worker(optax.identity(), 4)
  state = tx.init(jnp.zeros(2))
  with pytest.raises(ValueError, match='num_workers=4 rows, got 3'):
    tx.update(jnp.ones((3, 2)), state)
  with pytest.raises(ValueError, match='per_worker: updates.*leading worker'):
    tx.update({'a': jnp.ones((4, 2)), 'b': jnp.ones((3, 2))}, state)
  for bad in (0, 2.0, True, -1):
    with pytest.raises(ValueError, match=f'num_workers.*got {bad}'):
      byzjax.per_worker(optax.identity(), bad)


# Normalised steps.


def _normalized(tree):
  tx = byzjax.normalize_by_global_norm()
  return jax.jit(tx.update)(tree, tx.init(tree))[0]


@pytest.mark.parametrize('scale', [1e-36, 1e-30, 1.0, 1e30, 1e38])
def test_normalize_gives_length_one_over_all_leaves(scale):
  x = np.random.default_rng(0).uniform(-1, 1, size=SIZE)
  result = tables.to_matrix(_normalized(tables.to_tree(scale * x)))
  np.testing.assert_allclose(result, x / np.linalg.norm(x), 1e-6)


def test_normalize_leaves_zero_at_zero():
  result = tables.to_matrix(_normalized(tables.to_tree(np.zeros(SIZE))))
  np.testing.assert_array_equal(result, np.zeros(SIZE))


def test_normalize_keeps_half_precision():
  x = np.random.default_rng(0).normal(size=SIZE)
  tree = tables.to_tree(x, jnp.bfloat16)
  result = _normalized(tree)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(result))
  x = tables.to_matrix(tree)
  np.testing.assert_allclose(
    tables.to_matrix(result), x / np.linalg.norm(x), 2**-7
  )


# Named chains.

RULES = {
  'mean': byzjax.mean(),
  'coordinate_median': byzjax.coordinate_median(),
  'krum': byzjax.krum(num_byzantine=2),
}


@pytest.mark.parametrize('name', RULES)
def test_byz_sgdm_is_momentum_rule_and_step(name):
  gradients = np.random.default_rng(0).normal(size=(6, 7, SIZE))
  gradients = np.float32(gradients)
  optimizer = byzjax.byz_sgdm(
    0.1, aggregator=RULES[name], num_workers=7, momentum=0.9
  )
  updates = _run(optimizer, jnp.asarray(gradients), jnp.zeros(SIZE))
  momenta = reference.worker_momentum(gradients, 0.9)
  oracle = tables.RULE[name].oracle
  expected = [-0.1 * oracle(m, None, 2, None) for m in momenta]
  np.testing.assert_allclose(updates, expected, 1e-5, 1e-6)


@pytest.mark.parametrize('name', RULES)
def test_byz_sgdnm_steps_have_length_lr_whatever_is_sent(name):
  gradients = np.random.default_rng(0).normal(size=(6, 7, SIZE))
  optimizer = byzjax.byz_sgdnm(0.1, aggregator=RULES[name], num_workers=7)
  results = []
  for scale in (1.0, 1e-6, 1e6):
    x = jnp.asarray(scale * gradients, jnp.float32)
    updates = np.float64(_run(optimizer, x, jnp.zeros(SIZE)))
    lengths = np.linalg.norm(updates, axis=1)
    np.testing.assert_allclose(lengths, 0.1, rtol=1e-6)
    results.append(updates)
  # The direction does not know the units of the gradients.
  for other in results[1:]:
    np.testing.assert_allclose(other, results[0], 1e-4, 1e-6)


def test_byz_sgdnm_of_the_mean_is_normalised_momentum():
  gradients = np.random.default_rng(1).normal(size=(6, 7, SIZE))
  optimizer = byzjax.byz_sgdnm(0.3, aggregator=byzjax.mean(), num_workers=7)
  updates = _run(optimizer, jnp.asarray(gradients, 'f4'), jnp.zeros(SIZE))
  params = np.zeros(SIZE)
  for update, momenta in zip(
    updates, reference.worker_momentum(gradients, 0.9)
  ):
    stepped = reference.normalized_step(params, reference.mean(momenta), 0.3)
    np.testing.assert_allclose(update, stepped - params, 1e-5, 1e-6)
    params = stepped


def test_learning_rate_schedules():
  schedule = optax.piecewise_constant_schedule(1.0, {1: 0.1})
  for make in (byzjax.byz_sgdm, byzjax.byz_sgdnm):
    optimizer = make(schedule, aggregator=byzjax.mean(), num_workers=2)
    updates = _run(optimizer, jnp.ones((2, 2, 1)), jnp.zeros(1))
    np.testing.assert_allclose(updates[:, 0], [-1, -0.1], 1e-6)


# An optax user's loop.


def _accuracy_under_sign_flip(make_optimizer, gradient_fn):
  """An ordinary training loop; 2 of 7 workers send -10 times the truth."""
  random = np.random.default_rng(0)
  images = jnp.asarray(random.normal(size=(7, 32, 4)), jnp.float32)
  labels = (images.sum(axis=-1) > 0).astype(jnp.float32)

  def loss_fn(params, images, labels):
    logits = images @ params['w'] + params['b']
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

  optimizer = make_optimizer()
  params = {'w': jnp.zeros(4), 'b': jnp.zeros([])}
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    grads = gradient_fn(loss_fn)(params, images, labels)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(50):
    params, state = step(params, state)
  logits = images @ params['w'] + params['b']
  return float(((logits > 0) == (labels > 0)).mean())


def _lying(gradient_fn):
  """The gradients that arrive when the first two workers lie."""

  def gradients(params, images, labels):
    per_worker = jax.vmap(gradient_fn, (None, 0, 0))(params, images, labels)
    attack = byzjax.sign_flip(scale=10.0)
    liars = jnp.arange(7) < 2
    return attack.apply(per_worker, attack.init(None), is_byzantine=liars)[0]

  return gradients


def test_two_lines_make_an_optax_training_step_byzantine_robust():
  def plain_optimizer():
    return optax.chain(
      byzjax.mean(),  # what a server without defence does
      optax.sgd(0.5),
    )

  def robust_optimizer():
    return optax.chain(
      byzjax.coordinate_median(),  # line one: a rule before the optimizer
      optax.sgd(0.5),
    )

  def gradient_fn(loss_fn):
    return _lying(jax.grad(loss_fn))  # line two: one gradient per worker

  assert _accuracy_under_sign_flip(plain_optimizer, gradient_fn) < 0.2
  assert _accuracy_under_sign_flip(robust_optimizer, gradient_fn) > 0.95
