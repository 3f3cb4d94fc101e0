"""Rules whose workers count differently."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import reference_weighted as weighted
from tests import tables
from tests.aggregators import running
from tests.rounds import problem

N, SIZE, F, V0 = running.N, running.SIZE, 3, running.V0
KEY = running.KEY

# name: (rule, oracle of messages and weights)
RULES = {
  'mean': (byzjax.mean(), weighted.weighted_mean),
  'coordinate_median': (byzjax.coordinate_median(), weighted.weighted_median),
  'trimmed_mean': (
    byzjax.trimmed_mean(num_byzantine=F),
    lambda x, w: weighted.weighted_trimmed_mean(x, w, F),
  ),
  'geometric_median': (
    byzjax.geometric_median(num_iterations=64),
    weighted.weighted_geometric_median,
  ),
  'centered_clipping': (
    byzjax.centered_clipping(radius=2.0),
    lambda x, w: weighted.weighted_centered_clipping(x, w, V0, 2.0, 1),
  ),
  'centered_clipping_3_steps': (
    byzjax.centered_clipping(radius=2.0, num_iterations=3),
    lambda x, w: weighted.weighted_centered_clipping(x, w, V0, 2.0, 3),
  ),
  'centered_clipping_quantile': (
    byzjax.centered_clipping(radius=1.5, quantile=0.6, num_iterations=2),
    lambda x, w: weighted.weighted_quantile_clipping(x, w, V0, 1.5, 0.6, 2),
  ),
  'nnm_mean': (
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=F), byzjax.mean()
    ),
    lambda x, w: weighted.weighted_mean(
      weighted.weighted_nearest_neighbor_mixing(x, w, F), w
    ),
  ),
  'nnm_coordinate_median': (
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=F),
      byzjax.coordinate_median(),
    ),
    lambda x, w: weighted.weighted_median(
      weighted.weighted_nearest_neighbor_mixing(x, w, F), w
    ),
  ),
}
every_rule = pytest.mark.parametrize('name', RULES)
WEIGHTS = np.array([2, 1, 2, 0.5, 1, 2.5, 2, 1, 0.25, 2, 1.5])


@functools.cache
def _compiled(name):
  rule = RULES[name][0]

  @jax.jit
  def update(x, w):
    state = rule.init(x[0])
    if 'clipping' in name:
      state = byzjax.CenteredClippingState(jnp.asarray(V0, x.dtype))
    return rule.update(x, state, worker_weights=w)[0]

  return update


def _update(name, x, w):
  x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
  return np.asarray(_compiled(name)(x, w), np.float64)


@every_rule
def test_agrees_with_the_oracle(name):
  for seed in range(3):
    x = np.float32(tables.random_messages(seed))
    weights = np.roll(WEIGHTS, seed)
    expected = RULES[name][1](np.float64(x), weights)
    np.testing.assert_allclose(_update(name, x, weights), expected, 1e-4, 1e-5)


@every_rule
def test_equal_weights_change_nothing(name):
  x = jnp.asarray(tables.random_messages(4), jnp.float32)
  rule = RULES[name][0]
  state = rule.init(x[0])
  if 'clipping' in name:
    state = byzjax.CenteredClippingState(jnp.asarray(V0, x.dtype))
  expected, _ = jax.jit(rule.update)(x, state)
  for scale in (1.0, 40.0):
    result = _update(name, x, np.full(N, scale))
    np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@every_rule
def test_only_ratios_of_weights_matter(name):
  x = tables.random_messages(5)
  np.testing.assert_allclose(
    _update(name, x, 1e3 * WEIGHTS), _update(name, x, WEIGHTS), 1e-5, 1e-6
  )


@every_rule
@pytest.mark.parametrize('bad', [1e6, np.nan, np.inf, 1e30])
def test_a_worker_that_counts_nothing_does_nothing(name, bad):
  x = tables.random_messages(6)
  weights = WEIGHTS.copy()
  weights[4] = 0
  expected = _update(name, x, weights)
  x[4] = bad
  result = _update(name, x, weights)
  np.testing.assert_allclose(result, expected, 1e-4, 1e-5)


@every_rule
def test_a_bad_message_of_little_weight_moves_it_little(name):
  if name in ('mean', 'nnm_mean'):
    return
  x = tables.random_messages(7)
  usual = np.linalg.norm(x - x.mean(axis=0), axis=1).max()
  for bad in (1e6, np.nan, -np.inf, 3e38):
    attacked = x.copy()
    attacked[8] = bad
    moved = np.linalg.norm(_update(name, attacked, WEIGHTS) - x.mean(axis=0))
    assert moved < 2 * usual


@pytest.mark.parametrize(
  'name', ['coordinate_median', 'trimmed_mean', 'geometric_median']
)
def test_one_worker_with_most_of_the_weight_decides_unless_it_is_capped(name):
  x = tables.random_messages(8)
  x[0], weights = 1e3, np.ones(N)
  weights[0] = 100
  assert np.abs(_update(name, x, weights) - 1e3).max() < 1e-2 * 1e3
  capped = byzjax.cap_weights(jnp.asarray(weights), max_share=0.15)
  honest = x[1:].mean(axis=0)
  assert np.abs(_update(name, x, capped) - honest).max() < 3


def test_rules_without_a_weighted_version_refuse_weights():
  x = jnp.ones((N, 3))
  mixing = byzjax.pre_aggregate(
    byzjax.bucketing(bucket_size=2), byzjax.coordinate_median()
  )
  with pytest.raises(ValueError, match='krum does not support worker_w'):
    byzjax.krum(num_byzantine=2)(x, worker_weights=jnp.ones(N))
  with pytest.raises(ValueError, match='bucketing does not support worker'):
    mixing(x, key=KEY, worker_weights=jnp.ones(N))


@pytest.mark.parametrize(
  'weights, message',
  [
    (np.ones(N - 1), r'worker_weights to be float\[11\].*the shape \[10\]'),
    (np.full(N, -1.0), 'worker_weights to be finite, >= 0'),
    (np.full(N, np.nan), 'worker_weights to be finite, >= 0'),
  ],
)
def test_bad_weights_are_refused_by_name(weights, message):
  rule, x = byzjax.mean(), jnp.ones((N, 3))
  with pytest.raises(ValueError, match=message):
    rule.update(x, rule.init(x[0]), worker_weights=weights)


def test_weights_go_through_an_optax_chain():
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  optimizer = optax.chain(byzjax.coordinate_median(), optax.sgd(0.5))
  weights = jnp.asarray(WEIGHTS)
  updates, _ = optimizer.update(x, optimizer.init(x[0]), worker_weights=weights)
  expected = _update('coordinate_median', x, WEIGHTS)
  np.testing.assert_allclose(updates, -0.5 * expected, 1e-5, 1e-6)


@pytest.mark.parametrize('devices', [None, 8])
def test_a_round_weighs_its_workers(devices):
  n = problem.N
  weights = np.linspace(0, 1, n)
  rounds = problem.training(
    worker_weights=weights, mesh=devices and problem.mesh(devices)
  )
  batch, params = problem.batch(), problem.params()
  state, info = jax.jit(rounds.step)(rounds.init(params), batch, problem.KEY)
  np.testing.assert_allclose(info.weights, weights / weights.sum(), 1e-5, 1e-7)
  gradients = jax.vmap(jax.grad(problem.loss_fn), (None, 0))(params, batch)
  leaves = [np.reshape(g, (n, -1)) for g in jax.tree.leaves(gradients)]
  flat = np.concatenate(leaves, axis=1)
  step = problem.flat(params) - problem.flat(state.params)
  np.testing.assert_allclose(
    step, 0.1 * weights @ flat / weights.sum(), 1e-4, 1e-6
  )


# Caps.


@pytest.mark.parametrize('max_share', [1 / N, 0.1, 0.15, 0.3, 1.0])
def test_cap_weights(max_share):
  for seed in range(5):
    weights = np.random.default_rng(seed).exponential(size=N) ** 3
    shares = np.asarray(
      byzjax.cap_weights(jnp.asarray(weights), max_share=max_share)
    )
    expected = weighted.cap_weights(weights, max_share)
    np.testing.assert_allclose(shares, expected, 1e-4, 1e-6)
    np.testing.assert_allclose(shares.sum(), 1, 1e-5)
    assert shares.max() <= max_share * (1 + 1e-5)


def test_cap_weights_of_few_workers_are_equal_shares():
  weights = jnp.array([0.0, 5.0, 0.0, 1.0, 0.0])
  shares = byzjax.cap_weights(weights, max_share=0.3)
  np.testing.assert_allclose(shares, [0, 0.5, 0, 0.5, 0], 1e-6)
  nothing = byzjax.cap_weights(jnp.zeros(5), max_share=0.3)
  np.testing.assert_array_equal(nothing, np.zeros(5))


@pytest.mark.parametrize('unit', [1e-37, 1.0, 3.3e38])
def test_cap_weights_of_any_unit(unit):
  weights = unit * np.array([1.0, 0.5, 0.25, 0.25])
  shares = byzjax.cap_weights(jnp.asarray(weights, 'float32'), max_share=0.4)
  np.testing.assert_allclose(shares, [0.4, 0.3, 0.15, 0.15], 1e-5)


def test_cap_weights_caps_a_count_that_nobody_can_have():
  for claimed in (1e30, 3.3e38):
    weights = jnp.array([1.0, claimed, 1.0, 1.0])
    shares = byzjax.cap_weights(weights, max_share=0.4)
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.2, 0.2], 1e-5)


def test_cap_weights_of_traced_counts_that_are_no_numbers():
  weights = jnp.array([1.0, jnp.nan, jnp.inf, -5.0, 1.0])
  shares = jax.jit(lambda w: byzjax.cap_weights(w, max_share=0.5))(weights)
  np.testing.assert_allclose(shares, [0.5, 0, 0, 0, 0.5], 1e-6)


def test_cap_weights_traces_the_cap():
  caps = jnp.array([0.2, 0.5, 1.0])
  weights = jnp.asarray(WEIGHTS)
  swept = jax.vmap(lambda c: byzjax.cap_weights(weights, max_share=c))(caps)
  for row, cap in zip(swept, caps):
    expected = weighted.cap_weights(WEIGHTS, float(cap))
    np.testing.assert_allclose(row, expected, 1e-4, 1e-6)


def test_cap_weights_refuses_a_cap_that_cannot_be():
  with pytest.raises(ValueError, match='cap_weights needs max_share >= 0.24'):
    byzjax.cap_weights(jnp.ones(4), max_share=0.2)
  with pytest.raises(ValueError, match='worker_weights to be finite, >= 0'):
    byzjax.cap_weights(jnp.array([1.0, -1.0]), max_share=0.5)


@pytest.mark.parametrize(
  'rule',
  [
    byzjax.geometric_median(),
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=1), byzjax.mean()
    ),
    byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=1), byzjax.trimmed_mean(
        num_byzantine=1
      )
    ),
  ],
  ids=['geometric_median', 'nnm_mean', 'nnm_trimmed_mean'],
)  # fmt: skip
def test_workers_without_weight_do_not_choose_the_centre(rule):
  x = 1 + 0.1 * np.float32(tables.random_messages(3))[:8]
  x[3:] *= 1e12
  weights = jnp.array([1.0, 1, 1, 0, 0, 0, 0, 0])
  result = np.asarray(rule(jnp.asarray(x), worker_weights=weights))
  assert (x[:3].min(0) - 1e-5 <= result).all()
  assert (result <= x[:3].max(0) + 1e-5).all()


def test_nobody_who_counts_means_zero():
  x = jnp.asarray(np.float32(tables.random_messages(3))[:4]).at[0].set(jnp.nan)
  weights = jnp.array([1.0, 0, 0, 0])
  result = byzjax.geometric_median()(x, worker_weights=weights)
  np.testing.assert_array_equal(result, 0)
