"""Preconditioners: the rules, their bounds, and when they move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

RULES = ['adam', 'rmsprop', 'adagrad', 'adahessian', 'oasis']
HESSIAN_RULES = ['adahessian', 'oasis']
make = byzjax.scale_by_preconditioner


def _run(tx, statistics, refresh=None, updates=None):
  """Updates and states of all steps of a scan; statistics are [T, ...]."""
  num_steps = jax.tree.leaves(statistics)[0].shape[0]
  refresh = jnp.ones(num_steps, bool) if refresh is None else refresh
  updates = statistics if updates is None else updates

  def step(state, inputs):
    update, statistic, refresh = inputs
    update, state = tx.update(
      update, state, statistic=statistic, refresh=refresh
    )
    return state, (update, state)

  start = tx.init(jax.tree.map(lambda x: x[0], statistics))
  inputs = (updates, statistics, refresh)
  return jax.jit(functools.partial(jax.lax.scan, step))(start, inputs)[1]


def _reference(rule, statistics, refresh, decay):
  """D after every step, by the equations of the paper."""
  d, t, result = np.ones(statistics.shape[1:]), 0, []
  for h, move in zip(np.float64(statistics), refresh):
    if move:
      beta = decay
      if rule in ('adam', 'adahessian'):
        beta = (decay - decay ** (t + 1)) / (1 - decay ** (t + 1))
      if rule == 'oasis':
        d = beta * d + (1 - beta) * h
      elif rule == 'adagrad':
        d = np.sqrt(d**2 + h**2)
      else:
        d = np.sqrt(beta * d**2 + (1 - beta) * h**2)
      t += 1
    result.append(d)
  return np.array(result)


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# The rules.


@pytest.mark.parametrize('decay', [0.0, 0.7, 0.999])
@pytest.mark.parametrize('rule', RULES)
def test_rules_are_the_equations(rule, decay):
  statistics, updates = _normal(12, 2, 3), _normal(12, 2, 3, seed=1)
  refresh = np.arange(12) % 3 != 1
  with jax.enable_x64(True):
    result, states = _run(
      make(rule, decay=decay, lower_bound=0.3),
      {'w': jnp.asarray(statistics)},
      jnp.asarray(refresh),
      {'w': jnp.asarray(updates)},
    )
  expected = _reference(rule, statistics, refresh, decay)
  np.testing.assert_allclose(states.scale['w'], expected, 1e-9, 1e-12)
  np.testing.assert_allclose(
    result['w'], updates / np.maximum(0.3, np.abs(expected)), 1e-9, 1e-12
  )
  np.testing.assert_array_equal(states.num_refreshes, np.cumsum(refresh))
  assert states.scale['w'].dtype == result['w'].dtype == np.float64


@pytest.mark.parametrize(
  ('tx', 'ours'),
  [
    (
      optax.scale_by_adam(b1=0.0, b2=0.99, eps=0.0),
      make('adam', decay=0.99, lower_bound=1e-20),
    ),
    (
      optax.scale_by_adam(b1=0.0, b2=0.9999, eps=0.0),
      make('adam', decay=0.9999, lower_bound=1e-20),
    ),
    (
      optax.scale_by_rms(decay=0.9, eps=0.0, initial_scale=1.0),
      make('rmsprop', decay=0.9, lower_bound=1e-20),
    ),
    (
      optax.scale_by_rss(initial_accumulator_value=1.0, eps=0.0),
      make('adagrad', lower_bound=1e-20),
    ),
  ],
  ids=['adam', 'slow_adam', 'rmsprop', 'adagrad'],
)
def test_refreshed_in_every_step_they_are_those_of_optax(tx, ours):
  gradients = jnp.asarray(_normal(30, 5), jnp.float32)
  state, expected = tx.init(gradients[0]), []
  for gradient in gradients:
    update, state = tx.update(gradient, state)
    expected.append(update)
  result, _ = _run(ours, gradients)
  # optax rounds 1 - decay**t to float32, which decides its digits.
  np.testing.assert_allclose(result, np.array(expected), rtol=1e-3)


def test_the_first_refresh_of_adam_forgets_the_start():
  for rule in ('adam', 'adahessian'):
    for decay in (0.0, 0.9, 1.0):
      tx = make(rule, decay=decay, lower_bound=1e-9)
      h = jnp.array([3.0, -0.25])
      _, state = tx.update(h, tx.init(h), statistic=h)
      np.testing.assert_array_equal(state.scale, jnp.abs(h))


def test_adam_with_decay_one_averages_all():
  h = _normal(20, 4)
  _, states = _run(
    make('adam', decay=1.0, lower_bound=1e-9), jnp.asarray(h, jnp.float32)
  )
  expected = np.sqrt(np.cumsum(h**2, axis=0) / np.arange(1, 21)[:, None])
  np.testing.assert_allclose(states.scale, expected, 1e-5)


@pytest.mark.parametrize('rule', ['rmsprop', 'oasis'])
def test_decay_one_is_no_preconditioner(rule):
  updates = jnp.asarray(_normal(10, 4), jnp.float32)
  result, _ = _run(make(rule, decay=1.0, lower_bound=1.0), updates)
  np.testing.assert_array_equal(result, updates)


# Bounds.


@pytest.mark.parametrize('rule', RULES)
def test_a_lower_bound_above_the_scale_divides_by_it(rule):
  updates = jnp.asarray(_normal(10, 4), jnp.float32)
  result, _ = _run(make(rule, decay=0.9, lower_bound=64.0), updates)
  np.testing.assert_array_equal(result, updates / 64)


@pytest.mark.parametrize('rule', RULES)
def test_updates_grow_at_most_by_the_inverse_of_the_lower_bound(rule):
  statistics = jnp.asarray(1e-3 * _normal(50, 4), jnp.float32)
  updates = jnp.asarray(_normal(50, 4, seed=1), jnp.float32)
  tx = make(rule, decay=0.5, lower_bound=0.01)
  result, _ = _run(tx, statistics, updates=updates)
  assert (np.abs(result) <= np.abs(updates) / 0.01 * (1 + 1e-6)).all()
  if rule != 'adagrad':
    np.testing.assert_allclose(result[-1], updates[-1] / 0.01, 1e-6)


@pytest.mark.parametrize('rule', ['rmsprop', 'adam', 'adahessian', 'oasis'])
@pytest.mark.parametrize('seed', range(5))
def test_the_norm_changes_little_in_a_refresh(rule, seed):
  random = np.random.default_rng(seed)
  upper, alpha = 1 + 3 * random.random(), 10 ** random.uniform(-2, 0)
  decay, num_steps = random.uniform(0.5, 1), 40
  statistics = random.uniform(-upper, upper, (num_steps, 50))
  statistics *= random.random((num_steps, 1)) < 0.5
  _, states = _run(
    make(rule, decay=decay, lower_bound=alpha),
    jnp.asarray(statistics, jnp.float32),
  )
  d = np.concatenate([np.ones((1, 50)), states.scale])
  hat = np.maximum(np.abs(d), alpha)
  t = np.arange(num_steps)[:, None]
  beta = decay
  if rule in ('adam', 'adahessian'):
    beta = (decay - decay ** (t + 1)) / (1 - decay ** (t + 1))
  relative = (1 - beta) * upper / alpha
  bound = 2 * relative if rule == 'oasis' else relative * upper / alpha / 2
  assert (hat[1:] <= (1 + bound) * hat[:-1] * (1 + 1e-5)).all()
  assert (hat >= alpha).all() and (hat <= upper * (1 + 1e-5)).all()
  assert hat[1:].std() > 0


# When it moves.


@pytest.mark.parametrize('rule', RULES)
def test_without_a_refresh_nothing_moves(rule):
  tx = make(rule, decay=0.5, lower_bound=0.1)
  h = jnp.array([2.0, 0.5])
  _, state = tx.update(h, tx.init(h), statistic=h)
  static, after_static = tx.update(h, state, refresh=False)
  traced, after_traced = jax.jit(tx.update)(
    h, state, statistic=9 * h, refresh=jnp.array(False)
  )
  for after in (after_static, after_traced):
    jax.tree.map(np.testing.assert_array_equal, after, state)
  np.testing.assert_allclose(static, h / np.abs(state.scale), 1e-6)
  np.testing.assert_array_equal(static, traced)


def test_updates_of_zero_move_the_state_alone():
  tx = make('adam', lower_bound=0.1)
  h = jnp.array([2.0, 0.5])
  nothing, state = tx.update(jnp.zeros(2), tx.init(h), statistic=h)
  _, expected = tx.update(h, tx.init(h))
  np.testing.assert_array_equal(nothing, np.zeros(2))
  jax.tree.map(np.testing.assert_array_equal, state, expected)


# On quadratics.


def _quadratic(w, curvature):
  return jnp.sum(curvature * w**2) / 2


def test_oasis_without_memory_is_newton_on_a_diagonal_quadratic():
  curvature = jnp.array([1e-3, 0.5, 20.0, 4000.0])
  w = jnp.array([1.0, -2.0, 3.0, 0.1])
  diagonal = byzjax.hutchinson_diagonal(_quadratic)
  tx = make('oasis', decay=0.0, lower_bound=1e-4)
  update, _ = tx.update(
    jax.grad(_quadratic)(w, curvature),
    tx.init(w),
    statistic=diagonal(w, curvature, jax.random.key(0)),
  )
  np.testing.assert_allclose(w - update, np.zeros(4), atol=1e-6)


@pytest.mark.parametrize('num_local_steps', [1, 7])
def test_local_steps_converge_to_the_optimum(num_local_steps):
  curvature = jnp.array([0.5, 1.0, 4.0])
  alpha = 0.5
  tx = make('adam', decay=0.99, lower_bound=alpha)

  def step(carry, t):
    w, state = carry
    refresh = t % num_local_steps == 0
    gradient = jax.grad(_quadratic)(w, curvature)
    update, state = tx.update(gradient, state, refresh=refresh)
    w = w - alpha / (4 * 4.0) * update
    return (w, state), _quadratic(w, curvature)

  w = jnp.array([1.0, -2.0, 3.0])
  (_, _), losses = jax.lax.scan(step, (w, tx.init(w)), jnp.arange(700))
  assert (np.diff(losses) <= 0).all()
  # From here on every hundred steps gain the same factor at least.
  assert losses[-1] < 1e-6 * losses[350] < 1e-9


# Numbers at the edge.


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_statistics_that_are_not_finite_change_nothing(rule, bad):
  tx = make(rule, decay=0.5, lower_bound=0.1)
  h = jnp.array([2.0, 0.5, 3.0])
  _, state = tx.update(h, tx.init(h), statistic=h)
  _, after = tx.update(h, state, statistic=h.at[1].set(bad))
  _, expected = tx.update(h, state, statistic=h)
  keep = jnp.array([False, True, False])
  np.testing.assert_array_equal(
    after.scale, jnp.where(keep, state.scale, expected.scale)
  )


@pytest.mark.parametrize('rule', RULES)
def test_huge_and_tiny_statistics_neither_overflow_nor_vanish(rule):
  tx = make(rule, decay=0.5, lower_bound=1e-35)
  h = jnp.array([1e30, 1e-30, 3e38, 0.0])
  state = tx.init(h)
  for _ in range(300):
    _, state = tx.update(h, state, statistic=h)
  assert np.isfinite(state.scale).all()
  if rule != 'adagrad':
    np.testing.assert_allclose(state.scale[:3], h[:3], 1e-3)
  # What was huge is forgotten at the usual pace.
  if rule in ('rmsprop', 'oasis'):
    _, after = tx.update(h, state, statistic=jnp.zeros(4))
    expected = 0.5 if rule == 'oasis' else np.sqrt(0.5)
    np.testing.assert_allclose(after.scale[0] / state.scale[0], expected, 1e-5)


@pytest.mark.parametrize('rule', RULES)
def test_derivatives_are_finite(rule):
  def loss(h, decay):
    tx = make(rule, decay=decay, lower_bound=0.1)
    state = tx.init(h)
    for _ in range(2):
      update, state = tx.update(h, state, statistic=h)
    return jnp.sum(update)

  h = jnp.array([0.0, 2.0, -0.01])
  gradients = jax.grad(loss, argnums=(0, 1))(h, 0.9)
  assert all(np.isfinite(g).all() for g in gradients)


# As an optax transform.


@pytest.mark.parametrize('rule', RULES)
def test_half_precision_no_recompilation_and_stable_types(rule):
  tx = make(rule, lower_bound=0.1)
  updates = {'a': jnp.full(3, 2.0, jnp.bfloat16), 'b': jnp.full((2, 2), 1.0)}
  assert updates['b'].weak_type
  state = tx.init(updates)
  assert state.scale['a'].dtype == np.float32
  update = jax.jit(tx.update)
  for t in range(3):
    types = jax.tree.map(jax.typeof, state)
    result, state = update(
      updates, state, statistic=updates, refresh=jnp.array(t != 1)
    )
    assert jax.tree.map(jax.typeof, state) == types
    assert jax.tree.map(jnp.dtype, result) == jax.tree.map(jnp.dtype, updates)
  assert update._cache_size() == 1


@pytest.mark.parametrize('rule', RULES)
def test_a_sweep_in_one_program(rule):
  statistics = jnp.asarray(_normal(5, 3), jnp.float32)

  def run(decay, lower_bound):
    return _run(make(rule, decay=decay, lower_bound=lower_bound), statistics)[0]

  decays, bounds = jnp.array([0.0, 0.9, 1.0]), jnp.array([0.5, 0.1, 1.0])
  swept = jax.vmap(run)(decays, bounds)
  for i in range(3):
    alone = run(float(decays[i]), float(bounds[i]))
    np.testing.assert_allclose(swept[i], alone, 1e-5)


def test_in_a_chain_with_momentum():
  tx = optax.chain(
    byzjax.worker_momentum(0.5), make('oasis', lower_bound=0.1), optax.sgd(1.0)
  )
  x = jnp.array([1.0, 2.0])
  state = tx.init(x)
  update, state = tx.update(x, state, statistic=4 * x, refresh=True, other=0)
  np.testing.assert_array_equal(state[1].num_refreshes, 1)
  update, state = tx.update(3 * x, state, refresh=False)
  np.testing.assert_array_equal(state[1].num_refreshes, 1)
  np.testing.assert_allclose(update, -2 * x / state[1].scale, 1e-5)


@pytest.mark.parametrize('rule', RULES)
def test_is_an_optax_transform_that_says_what_it_needs(rule):
  tx = make(rule, lower_bound=0.1)
  assert isinstance(tx, byzjax.Preconditioner)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  assert tx.uses_hessian is (rule in HESSIAN_RULES)


@pytest.mark.parametrize('rule', HESSIAN_RULES)
def test_hessian_rules_refuse_a_gradient(rule):
  tx = make(rule, lower_bound=0.1)
  x = jnp.ones(2)
  for refresh in (True, jnp.array(True)):
    with pytest.raises(ValueError, match=f'{rule}.*statistic.*got None'):
      tx.update(x, tx.init(x), refresh=refresh)


def test_refusals():
  with pytest.raises(ValueError, match="rule to be one of.*got 'sgd'"):
    make('sgd', lower_bound=0.1)
  for bad in (0.0, -1.0, float('nan')):
    with pytest.raises(ValueError, match=f'lower_bound > 0, got {bad}'):
      make(lower_bound=bad)
  for bad in (-0.1, 1.1, float('nan')):
    with pytest.raises(ValueError, match=f'decay >= 0.*decay <= 1, got {bad}'):
      make(decay=bad, lower_bound=0.1)
  tx = make(lower_bound=0.1)
  x = {'a': jnp.ones(2)}
  for bad in ({'a': jnp.ones(1)}, {'b': jnp.ones(2)}):
    with pytest.raises(ValueError, match='statistic shaped like.*got'):
      tx.update(x, tx.init(x), statistic=bad)
