"""Every rule x every place where an optax transform can go."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import tables
from tests.aggregators import running


@functools.cache
def _compiled(name):
  """One update per rule for all tests of this file."""
  aggregator = running.make(tables.RULE[name])
  return jax.jit(functools.partial(aggregator.update, key=running.KEY))


def _one_update(rule, x):
  """The aggregate of `[N, SIZE]` from a fresh state."""
  state = running.make(rule).init(x[0])
  return np.asarray(_compiled(rule.name)(x, state)[0])


def _loop(rule, batches):
  """The aggregates of several calls, each from the state of the last."""
  update, aggregates = _compiled(rule.name), []
  state = running.make(rule).init(batches[0, 0])
  for messages in batches:
    aggregate, state = update(messages, state)
    aggregates.append(aggregate)
  assert update._cache_size() == 1
  return np.stack(aggregates), state


def _batches(count=3):
  return jnp.asarray(
    np.stack([tables.random_messages(10 + i) for i in range(count)]),
    jnp.float32,
  )


@running.one_of_each_kind
def test_scan_equals_a_loop_which_compiles_once(rule):
  aggregator, batches = running.make(rule), _batches()
  expected, expected_state = _loop(rule, batches)

  @jax.jit
  def scan(batches):
    def body(state, messages):
      aggregate, state = aggregator.update(messages, state, key=running.KEY)
      return state, aggregate

    return jax.lax.scan(body, aggregator.init(batches[0, 0]), batches)

  state, aggregates = scan(batches)
  np.testing.assert_allclose(aggregates, expected, 1e-5, 1e-6)
  assert jax.tree.structure(state) == jax.tree.structure(expected_state)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state)):
    assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@running.all_rules
def test_vmap_over_batches_of_messages(rule):
  aggregator, batches = running.make(rule), _batches()

  def aggregate(messages):
    return aggregator.update(
      messages, aggregator.init(messages[0]), key=running.KEY
    )[0]

  expected = np.stack([_one_update(rule, messages) for messages in batches])
  result = jax.jit(jax.vmap(aggregate))(batches)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@running.all_rules
def test_chain_with_sgd_is_an_optimizer_of_stacked_gradients(rule):
  aggregator = running.make(rule)
  optimizer = optax.chain(aggregator, optax.sgd(0.5, momentum=0.9))
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  updates, _ = jax.jit(optimizer.update)(
    x, optimizer.init(x[0]), key=running.KEY
  )
  np.testing.assert_allclose(updates, -0.5 * _one_update(rule, x), 1e-5, 1e-6)


@running.all_rules
def test_call_of_a_rule_built_inside_jit_is_one_update(rule):
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  call = jax.jit(lambda m: running.make(rule)(m, key=running.KEY))
  result = tables.to_matrix(call(tables.to_tree(x)))
  np.testing.assert_allclose(result, _one_update(rule, x), 1e-5, 1e-6)


def test_a_rule_goes_into_jit():
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  rule = byzjax.coordinate_median()
  np.testing.assert_array_equal(jax.jit(lambda x: rule(x))(x), rule(x))
  updated, _ = jax.jit(rule.update)(x, rule.init(x[0]))
  np.testing.assert_array_equal(updated, rule(x))


@running.all_rules
def test_does_not_recompile_for_weakly_typed_parameters(rule):
  update = _compiled(rule.name)
  messages = jnp.asarray(tables.random_messages(9), jnp.float32)
  weakly_typed = jnp.full(running.SIZE, 0.5)
  assert weakly_typed.weak_type
  state = running.make(rule).init(weakly_typed)
  for _ in range(3):
    _, state = update(messages, state)
  assert update._cache_size() == 1


FACTORIES = [
  (byzjax.krum, {'num_byzantine': 2, 'distance_power': 2}, {}),
  (byzjax.multi_krum, {'num_byzantine': 2, 'distance_power': 2}, {}),
  (byzjax.trimmed_mean, {'num_byzantine': 2}, {}),
  (byzjax.geometric_median, {'num_iterations': 32}, {'smoothing': 1e-6}),
  (byzjax.centered_clipping, {'num_iterations': 1}, {'radius': 2.0}),
  (byzjax.centered_clipping, {'num_iterations': 3}, {'radius': 2.0}),
  (
    byzjax.centered_clipping,
    {'num_iterations': 1},
    {'radius': 1.0, 'quantile': 0.5},
  ),
]


@pytest.mark.parametrize('factory, counts, reals', FACTORIES)
def test_inject_hyperparams(factory, counts, reals):
  inject = optax.inject_hyperparams(factory, static_args=tuple(counts))
  optimizer = optax.chain(inject(**counts, **reals), optax.sgd(1.0))
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  state = optimizer.init(x[0])
  assert set(state[0].hyperparams) == set(reals)
  update = jax.jit(optimizer.update)
  updates, state = update(x, state)
  expected = factory(**counts, **reals)(x)
  np.testing.assert_allclose(updates, -expected, 1e-5, 1e-6)
  for name in reals:  # a hyper-parameter that changes while training
    hyperparams = state[0].hyperparams
    hyperparams[name] = jnp.full_like(hyperparams[name], 10.0)
  changed, _ = update(x, state)
  assert update._cache_size() == 1
  assert not reals or np.abs(changed - updates).max() > 1e-3


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_radii_in_one_vmap_equal_separate_calls(num_iterations):
  x = jnp.asarray(tables.random_messages(9), jnp.float32)

  def aggregate(radius):
    rule = byzjax.centered_clipping(
      radius=radius, num_iterations=num_iterations
    )
    return rule(x)

  radii = [0.0, 0.3, 2.0, 1e6, math.inf]
  swept = jax.jit(jax.vmap(aggregate))(jnp.array(radii))
  separate = np.stack([aggregate(radius) for radius in radii])
  np.testing.assert_allclose(swept, separate, 1e-5, 1e-6)
