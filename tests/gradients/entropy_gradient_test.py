"""Entropy-SGD: the walk around x, and what a round makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem, smooth_problem
from tests.rounds.smooth_problem import KEY, D, batches, gradient, loss_fn, one

X = smooth_problem.start()
estimator = functools.partial(byzjax.entropy_gradient, loss_fn, noise=0.0)


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def close(actual, expected, tolerance=1e-12):
  np.testing.assert_allclose(actual, expected, tolerance, tolerance)


def walk(x, batch, *, gamma, rate=0.1, beta=0.9, a=0.25, decay=0.0):
  """The inner loop, without noise: `(mu, [x'_0, x'_1, ...])`."""
  w, mu, m, path = x, x, 0.0, [x]
  for k in range(len(batch[1])):
    g = gradient(w, one(batch, k)) + decay * w
    m = beta * m + g
    w = w - rate * (g + beta * m - gamma * (x - w))
    mu = (1 - a) * mu + a * w
    path.append(w)
  return mu, path


@pytest.mark.parametrize('a', [0.25, 0.75])
def test_is_the_loop_of_the_paper(a):
  batch = batches(6)
  found = estimator(num_steps=6, gamma=0.7, averaging=a, weight_decay=0.3)
  loss, moved = jax.jit(lambda *args: found(*args))(X, batch, KEY)
  mu, path = walk(X, batch, gamma=0.7, a=a, decay=0.3)
  close(moved, X - mu)
  losses = [loss_fn(w, one(batch, k)) for k, w in enumerate(path[:-1])]
  close(loss, np.mean(losses))


def test_one_step_is_a_gradient_whatever_gamma_is():
  batch = batches(1)

  def of(gamma, momentum):
    return estimator(num_steps=1, gamma=gamma, momentum=momentum)(
      X, batch, KEY
    )[1]

  gammas, momenta = jnp.array([0.0, 1.0, 50.0]), jnp.array([0.0, 0.0, 0.9])
  g = gradient(X, one(batch, 0))
  for moved, factor in zip(jax.vmap(of)(gammas, momenta), (1, 1, 1.9)):
    close(moved, 0.25 * 0.1 * factor * g)


def test_no_steps_are_nesterov_sgd_to_the_bit():
  def ends(value_and_grad):
    rounds = byzjax.robust_round(
      loss_fn,
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(0.1, momentum=0.9, nesterov=True),
      num_workers=4,
      value_and_grad=value_and_grad,
    )
    state, info = smooth_problem.run(rounds, X, [batches(4)] * 3)[-1]
    assert int(info.num_gradients) == 1
    return state.params

  found = ends(estimator(num_steps=0, gamma=1.0))
  np.testing.assert_array_equal(found, ends(None))
  assert np.abs(found - X).max() > 0.1


def test_steps_of_no_length_go_nowhere():
  still = byzjax.entropy_gradient(
    loss_fn, num_steps=3, gamma=1.0, step_size=0.0, noise=1.0
  )
  np.testing.assert_array_equal(still(X, batches(3), KEY)[1], 0)


def test_without_gamma_and_averaging_it_is_lookahead():
  eta = 0.5
  batch = batches(4)
  moved = estimator(num_steps=4, gamma=0.0, momentum=0.0, averaging=1.0)(
    X, batch, KEY
  )[1]
  tx = optax.lookahead(optax.sgd(0.1), sync_period=4, slow_step_size=eta)
  params = optax.LookaheadParams.init_synced(jnp.asarray(X))
  state = tx.init(params)
  for k in range(4):
    g = gradient(np.asarray(params.fast), one(batch, k))
    updates, state = tx.update(jnp.asarray(g), state, params)
    params = optax.apply_updates(params, updates)
  close(X - eta * moved, params.slow)


def test_on_a_quadratic_the_mean_is_the_proximal_point():
  # Momentum makes the loss weigh 1 / (1 - beta) times more, not the spring.
  hessian = np.diag([0.5, 2.0, 5.0])
  hessian[0, 1] = hessian[1, 0] = 0.3

  def quadratic(w, batch):
    del batch
    return w @ hessian @ w / 2

  def of(beta):
    return byzjax.entropy_gradient(
      quadratic,
      num_steps=900,
      gamma=1.5,
      noise=0.0,
      momentum=beta,
      step_size=0.02,
    )(X, jnp.zeros(900), KEY)[1]

  momenta = np.array([0.0, 0.9])
  for beta, moved in zip(momenta, jax.vmap(of)(momenta)):
    proximal = np.linalg.solve(hessian / (1 - beta) + 1.5 * np.eye(D), 1.5 * X)
    close(X - moved, proximal, 1e-9)


def test_a_stiff_spring_leaves_the_gradient_over_gamma():
  slope = np.array([1.0, -2.0, 3.0])
  moved = byzjax.entropy_gradient(
    lambda w, b: slope @ w, num_steps=300, gamma=15.0, noise=0.0, momentum=0.0
  )(X, jnp.zeros(300), KEY)[1]
  close(moved, slope / 15.0, 1e-9)


def test_mu_is_a_convex_combination_of_the_walk():
  batch = batches(3)

  def of(a):
    return estimator(num_steps=3, gamma=0.7, averaging=a)(X, batch, KEY)[1]

  shares = np.array([0.0, 0.3, 1.0])
  _, path = walk(X, batch, gamma=0.7)
  for a, moved in zip(shares, jax.vmap(of)(shares)):
    weights = np.array([(1 - a) ** 3, a * (1 - a) ** 2, a * (1 - a), a])
    close(weights.sum(), 1)
    close(X - moved, weights @ np.stack(path))


def test_scoping_follows_the_round():
  many = [batches(smooth_problem.N, 2, seed=s) for s in range(3)]
  rounds = byzjax.robust_round(
    loss_fn,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.8),
    num_workers=smooth_problem.N,
    value_and_grad=estimator(
      num_steps=2, gamma=optax.exponential_decay(2.0, 1, 1 + 0.5)
    ),
  )
  states = smooth_problem.run(rounds, X, many)
  x, gammas = X, [2.0, 3.0, 4.5]
  for gamma, batch, (state, info) in zip(gammas, many, states):
    means = [walk(x, one(batch, i), gamma=gamma)[0] for i in range(4)]
    x = x - 0.8 * (x - np.mean(means, axis=0))
    close(state.params, x)
    assert int(info.num_gradients) == 2


def test_a_key_matters_only_to_the_noise():
  @jax.jit
  def of(noise, seed):
    found = byzjax.entropy_gradient(
      loss_fn, num_steps=3, gamma=1.0, noise=noise
    )
    return found(X, batches(3), jax.random.key(seed))[1]

  np.testing.assert_array_equal(of(0.0, 1), of(0.0, 2))
  np.testing.assert_array_equal(of(0.1, 1), of(0.1, 1))
  assert np.abs(of(0.1, 1) - of(0.1, 2)).max() > 1e-3


@pytest.mark.parametrize('num_steps', [1, 4])
def test_noise_has_the_temperature_it_says(num_steps):
  size, noise, rate = 20_000, 0.3, 0.05
  moved = byzjax.entropy_gradient(
    lambda w, b: 0.0 * w.sum(),
    num_steps=num_steps,
    gamma=0.0,
    step_size=rate,
    noise=noise,
    averaging=1.0,
  )(jnp.zeros(size), jnp.zeros(num_steps), KEY)[1]
  # Steps are independent: their variances add up.
  std = noise * np.sqrt(2 * rate * num_steps)
  assert abs(np.std(moved) / std - 1) < 5 / np.sqrt(2 * size)
  assert abs(np.mean(moved)) < 5 * std / np.sqrt(size)


def test_weight_decay_is_on_the_walk_and_not_on_the_spring():
  moved = byzjax.entropy_gradient(
    lambda w, b: 0.0 * w.sum(),
    num_steps=400,
    gamma=1.5,
    noise=0.0,
    weight_decay=0.5,
  )(X, jnp.zeros(400), KEY)[1]
  # It stops where decay and spring hold each other, up to Nesterov's factor.
  factor = 0.5 / (1 - 0.9)
  close(X - moved, 1.5 * X / (1.5 + factor), 1e-9)


def test_an_objective_knows_the_anchor_and_the_gradients_before():
  def loss(w, batch, context):
    pull = jnp.sum((w - context.anchor) ** 2) / 2
    return context.step * jnp.sum(w) + pull + 0.0 * batch

  found = byzjax.entropy_gradient(
    byzjax.Objective(loss),
    num_steps=2,
    gamma=0.0,
    noise=0.0,
    momentum=0.0,
    averaging=1.0,
  )
  context = byzjax.LocalContext(jnp.zeros(2), KEY, jnp.array(3))
  _, moved = found.estimate(jnp.ones(2), jnp.zeros(2), context)
  # Its third estimate: gradients 6 and 7.
  first = 1 - 0.1 * (6 + 1)
  close(moved, 1 - np.full(2, first - 0.1 * (7 + first)))


def test_half_precision_keeps_its_type_and_walks_in_full():
  tree = {
    'a': jnp.asarray(X[:2], jnp.bfloat16),
    'b': jnp.asarray(X[2:], jnp.float32),
  }

  def loss(tree, batch):
    w = jnp.concatenate([x.astype(jnp.float32) for x in (tree['a'], tree['b'])])
    return loss_fn(w, batch)

  batch = jax.tree.map(jnp.float32, batches(3))
  found = byzjax.entropy_gradient(loss, num_steps=3, gamma=1.0, noise=0.0)
  moved = found(tree, batch, KEY)[1]
  assert moved['a'].dtype == jnp.bfloat16
  assert moved['b'].dtype == jnp.float32
  start = np.concatenate([np.asarray(x, np.float64) for x in tree.values()])
  mu, _ = walk(start, batch, gamma=1.0)
  actual = np.concatenate([np.asarray(x, np.float64) for x in moved.values()])
  close(actual, start - mu, 1e-2)


def entropy_round(n, **kwargs):
  return byzjax.robust_round(
    loss_fn,
    value_and_grad=byzjax.entropy_gradient(loss_fn, num_steps=3, gamma=0.1),
    optimizer=optax.sgd(1.0),
    num_workers=n,
    **kwargs,
  )


@pytest.mark.parametrize('rule', ['median', 'mean'])
def test_a_robust_rule_holds_and_the_mean_does_not(rule):
  rules = {'mean': byzjax.mean(), 'median': byzjax.coordinate_median()}
  rounds = entropy_round(
    5, aggregator=rules[rule], attack=byzjax.alie(z=20.0), byzantine=1
  )
  batch = batches(5, 3)
  states = smooth_problem.run(rounds, X, [batch] * 20)
  learns = states[-1][1].loss < 0.6 * states[0][1].loss
  assert learns == (rule == 'median')


def test_one_device_and_two_agree():
  # Noise included: it is drawn by the worker.
  found = [
    smooth_problem.run(
      entropy_round(4, aggregator=byzjax.mean(), mesh=mesh),
      X,
      [batches(4, 3)],
    )[-1][0].params
    for mesh in (None, problem.mesh(2))
  ]
  close(*found)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'num_steps': -1}, 'num_steps'),
    ({'gamma': -1.0}, 'gamma >= 0'),
    ({'step_size': -1.0}, 'step_size >= 0'),
    ({'noise': -1.0}, 'noise >= 0'),
    ({'momentum': 2.0}, 'momentum <= 1'),
    ({'averaging': 1.5}, 'averaging <= 1'),
    ({'weight_decay': -1.0}, 'weight_decay >= 0'),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(ValueError, match=message):
    byzjax.entropy_gradient(
      loss_fn, **({'num_steps': 2, 'gamma': 1.0} | arguments)
    )


def test_refuses_another_number_of_slices():
  with pytest.raises(ValueError, match=r'num_steps=2 steps, got 3'):
    estimator(num_steps=2, gamma=1.0)(X, batches(3), KEY)
