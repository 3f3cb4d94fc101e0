"""Every rule x every property that rules share."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

import byzjax
from tests import tables

N, SIZE = tables.NUM_WORKERS, tables.SIZE
KEY = jax.random.key(7)
V0 = np.linspace(-0.5, 0.5, SIZE)

all_rules = pytest.mark.parametrize(
  'rule', tables.RULES, ids=[rule.name for rule in tables.RULES]
)


@functools.cache
def _compiled(name):
  """One program per rule for all tests on messages [N, SIZE]."""
  rule = tables.RULE[name]

  @jax.jit
  def aggregate(x, v0, unit):
    aggregator = rule.make(rule.num_byzantine, unit)
    state = rule.start(aggregator.init(x[0]), v0)
    return aggregator.inspect(x, state, key=KEY)

  return aggregate


def _inspect(rule, x, v0=V0, unit=1.0):
  x, v0 = jnp.asarray(x, jnp.float32), jnp.asarray(v0, jnp.float32)
  return _compiled(rule.name)(x, v0, unit)


def _aggregate(rule, x, v0=V0, unit=1.0):
  return np.asarray(_inspect(rule, x, v0, unit)[0], np.float64)


def _make(rule):
  return rule.make(rule.num_byzantine, 1.0)


# Agreement with the oracle.

DTYPES = {
  # relative tolerance: of the output's rounding, and of the arithmetic
  'float32': (jnp.float32, 1e-5),
  'bfloat16': (jnp.bfloat16, 2**-8),
  'float64': (jnp.float64, 1e-10),
}


@all_rules
@pytest.mark.parametrize('dtype_name', DTYPES)
def test_agrees_with_the_oracle_on_trees(rule, dtype_name):
  dtype, tolerance = DTYPES[dtype_name]
  with jax.enable_x64(dtype == jnp.float64):
    aggregator, v0 = _make(rule), tables.to_tree(V0, dtype)

    @jax.jit
    def aggregate(messages):
      state = rule.start(aggregator.init(v0), v0)
      return aggregator.update(messages, state, key=KEY)[0]

    for seed in range(3):
      messages = tables.to_tree(tables.random_messages(seed), dtype)
      result = aggregate(messages)
      expected = rule.oracle(
        tables.to_matrix(messages, (N,)),
        tables.to_matrix(v0),
        rule.num_byzantine,
        KEY,
      )
      np.testing.assert_allclose(
        tables.to_matrix(result), expected, tolerance, 1e-2 * tolerance
      )
      assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))


@all_rules
def test_leaves_keep_their_own_dtype(rule):
  params = {'half': jnp.zeros(3, jnp.bfloat16), 'single': jnp.zeros((2, 2))}
  messages = jax.tree.map(lambda p: jnp.ones((N, *p.shape), p.dtype), params)
  aggregator = _make(rule)
  state = aggregator.init(params)
  out, new_state = jax.eval_shape(
    lambda m, s: aggregator.update(m, s, key=KEY), messages, state
  )
  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert describe(out) == describe(params)
  assert describe(new_state) == describe(state)


# Invariances.


@all_rules
def test_order_of_messages_does_not_matter(rule):
  if not rule.permutation:
    return
  x = tables.random_messages(1)
  permuted = x[np.random.default_rng(0).permutation(N)]
  np.testing.assert_allclose(
    _aggregate(rule, permuted), _aggregate(rule, x), 1e-5, 1e-6
  )


@all_rules
def test_translation(rule):
  assert rule.translation, 'say why, and test what holds instead'
  x, shift = tables.random_messages(2), np.linspace(3, -3, SIZE)
  moved = _aggregate(rule, x + shift, V0 + shift)
  np.testing.assert_allclose(moved - shift, _aggregate(rule, x), 1e-5, 3e-6)


@all_rules
def test_rotation(rule):
  x = tables.random_messages(3)
  q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, SIZE)))
  error = _aggregate(rule, x @ q, V0 @ q) - _aggregate(rule, x) @ q
  # Both ways: a rule that claims too little is caught as well.
  assert (np.abs(error).max() < 1e-5) == rule.rotation


@all_rules
def test_positive_scale(rule):
  assert rule.scale, 'say why, and test what holds instead'
  x = tables.random_messages(4)
  for scale in (1e-3, 3.0, 1e4):
    scaled = _aggregate(rule, scale * x, scale * V0, scale)
    np.testing.assert_allclose(scaled / scale, _aggregate(rule, x), 1e-5, 1e-6)


@all_rules
def test_equal_messages_give_that_message(rule):
  row = tables.random_messages(5)[0]
  result = _aggregate(rule, np.tile(row, (N, 1)), v0=row)
  np.testing.assert_allclose(result, row, 1e-6)


# Breakdown.


def _bad_rows(kind, count):
  rows = np.zeros((count, SIZE))
  if kind == 'one NaN cell':
    rows[:, 3] = np.nan
  elif kind == 'mixed':
    values = [np.nan, np.inf, -np.inf, 3e38, -1e6]
    rows[:] = np.resize(values, SIZE)[None]
  else:
    rows[:] = kind
  return rows


BAD = [1e6, -1e12, 1e15, 1e17, 1e30, 3e38, np.inf, -np.inf, np.nan]
BAD += ['one NaN cell', 'mixed']


def _assert_in_ball(rule, result, honest):
  assert np.isfinite(result).all()
  if rule.ball is not None:
    center, radius = rule.ball(honest, V0, rule.num_byzantine)
    distance = np.linalg.norm(result - center)
    # Rounding: the centre and the radius are those of float32 numbers.
    assert distance <= radius * (1 + 1e-5)


@all_rules
@pytest.mark.parametrize('bad', BAD, ids=str)
def test_f_bad_messages_move_it_no_farther_than_the_bound(rule, bad):
  x = tables.random_messages(6)
  f = rule.num_byzantine
  for places in (slice(0, f), slice(N - f, N)):
    attacked = x.copy()
    attacked[places] = _bad_rows(bad, f)
    _assert_in_ball(
      rule, _aggregate(rule, attacked), np.delete(x, places, axis=0)
    )


@all_rules
@pytest.mark.parametrize('bad', BAD, ids=str)
def test_any_number_of_bad_messages_leaves_it_finite(rule, bad):
  x = tables.random_messages(7)
  for count in (1, rule.num_byzantine + 1, N - 1, N):
    attacked = x.copy()
    attacked[:count] = _bad_rows(bad, count)
    assert np.isfinite(_aggregate(rule, attacked)).all(), count


@all_rules
@pytest.mark.parametrize('bad', [np.nan, np.inf, 'one NaN cell'], ids=str)
def test_no_usable_message_gives_the_previous_aggregate(rule, bad):
  result = _aggregate(rule, _bad_rows(bad, N))
  if bad == 'one NaN cell' and not rule.weighs and rule.name[:3] != 'nnm':
    # A coordinate rule leaves out entries and not messages.
    assert result[3] == 0
    return
  expected = V0 if rule.remembers else np.zeros(SIZE)
  np.testing.assert_array_equal(result, np.float32(expected))


def test_one_message_moves_the_mean_without_bound():
  x = tables.random_messages(6)
  x[0] = 1e6
  assert np.linalg.norm(_aggregate(tables.RULE['mean'], x)) > 1e5


@pytest.mark.parametrize(
  'name', ['coordinate_median', 'trimmed_mean', 'geometric_median']
)
def test_a_majority_moves_a_median_without_bound(name):
  x = tables.random_messages(6)
  x[:6] = 1e6
  assert np.linalg.norm(_aggregate(tables.RULE[name], x)) > 1e5


HOSTILE = [0.0, 1e-45, -1.0, 1e4, -1e8, 1e15, -1e17, 1e20, 3.4e38, -3.4e38]
HOSTILE += [np.nan, np.inf, -np.inf]
hostile_rows = hypothesis_numpy.arrays(
  np.float64,
  (N, SIZE),
  elements=st.sampled_from(HOSTILE),
  fill=st.sampled_from(HOSTILE),
)


@all_rules
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
  rows=hostile_rows,
  places=st.permutations(range(N)),
  scale=st.sampled_from([1e-4, 1.0, 1e3]),
)
def test_hostile_messages(rule, rows, places, scale):
  bad = np.array(places[: rule.num_byzantine], int)
  x = scale * tables.random_messages(8)
  honest = np.delete(x, bad, axis=0)
  x[bad] = rows[bad]
  _assert_in_ball(rule, _aggregate(rule, x), honest)
  # And with a hostile majority, at least a number comes out.
  x[np.array(places[:8])] = rows[:8]
  assert np.isfinite(_aggregate(rule, x)).all()


# Where an optax transform can go.


def _loop(rule, batches):
  """The aggregates of several calls, each from the state of the last."""
  aggregator = _make(rule)
  state = aggregator.init(batches[0, 0])
  update = jax.jit(functools.partial(aggregator.update, key=KEY))
  aggregates = []
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


@all_rules
def test_scan_equals_a_loop_which_compiles_once(rule):
  aggregator, batches = _make(rule), _batches()
  expected, expected_state = _loop(rule, batches)

  @jax.jit
  def scan(batches):
    def body(state, messages):
      aggregate, state = aggregator.update(messages, state, key=KEY)
      return state, aggregate

    return jax.lax.scan(body, aggregator.init(batches[0, 0]), batches)

  state, aggregates = scan(batches)
  np.testing.assert_allclose(aggregates, expected, 1e-5, 1e-6)
  assert jax.tree.structure(state) == jax.tree.structure(expected_state)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state)):
    assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@all_rules
def test_vmap_over_batches_of_messages(rule):
  aggregator, batches = _make(rule), _batches()

  def aggregate(messages):
    return aggregator.update(messages, aggregator.init(messages[0]), key=KEY)[0]

  one = jax.jit(aggregate)
  expected = np.stack([one(messages) for messages in batches])
  result = jax.jit(jax.vmap(aggregate))(batches)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@all_rules
def test_chain_with_sgd_is_an_optimizer_of_stacked_gradients(rule):
  aggregator = _make(rule)
  optimizer = optax.chain(aggregator, optax.sgd(0.5, momentum=0.9))
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  updates, _ = jax.jit(optimizer.update)(x, optimizer.init(x[0]), key=KEY)
  expected = _aggregate(rule, x, v0=np.zeros(SIZE))
  np.testing.assert_allclose(updates, -0.5 * expected, 1e-5, 1e-6)


@all_rules
def test_call_is_one_update_from_a_fresh_state(rule):
  messages = tables.to_tree(tables.random_messages(9))
  aggregator = _make(rule)
  result = jax.jit(lambda m: aggregator(m, key=KEY))(messages)
  expected = _aggregate(
    rule, tables.to_matrix(messages, (N,)), v0=np.zeros(SIZE)
  )
  np.testing.assert_allclose(tables.to_matrix(result), expected, 1e-5, 1e-6)


def test_a_rule_goes_into_jit():
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  rule = byzjax.coordinate_median()
  np.testing.assert_array_equal(jax.jit(lambda x: rule(x))(x), rule(x))
  updated, _ = jax.jit(rule.update)(x, rule.init(x[0]))
  np.testing.assert_array_equal(updated, rule(x))


@all_rules
def test_can_be_built_inside_jit(rule):
  x = jnp.asarray(tables.random_messages(9), jnp.float32)
  result = jax.jit(lambda x: _make(rule)(x, key=KEY))(x)
  expected = _aggregate(rule, x, v0=np.zeros(SIZE))
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@all_rules
def test_does_not_recompile_for_weakly_typed_parameters(rule):
  aggregator = _make(rule)
  update = jax.jit(functools.partial(aggregator.update, key=KEY))
  messages = jnp.asarray(tables.random_messages(9), jnp.float32)
  state = aggregator.init(jnp.full(SIZE, 0.5))  # weakly typed, says JAX
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


# Diagnostics.


@all_rules
def test_weights_reproduce_the_aggregate_and_the_mask_is_right(rule):
  x = tables.random_messages(9)
  if rule.num_byzantine:
    x[1, 4] = np.nan
  aggregate, _, info = _inspect(rule, x)
  if not rule.weighs:
    assert info.weights is None
    return
  usable = np.isfinite(x).all(axis=1)
  np.testing.assert_array_equal(info.mask, usable)
  weights = np.asarray(info.weights, np.float64)
  assert (weights[~usable] == 0).all()
  if not rule.remembers:
    np.testing.assert_allclose(weights.sum(), 1, 1e-6)
  combined = V0 + weights[usable] @ (x[usable] - V0)
  np.testing.assert_allclose(aggregate, combined, 1e-5, 1e-6)
