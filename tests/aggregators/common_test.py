"""Every rule x every property that rules share."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from tests import tables
from tests.aggregators import running

# Agreement with the oracle.


@running.all_rules
def test_agrees_with_the_oracle(rule):
  for seed in range(3):
    x = np.float32(tables.random_messages(seed))
    expected = rule.oracle(
      np.float64(x),
      np.float64(np.float32(running.V0)),
      rule.num_byzantine,
      running.KEY,
    )
    np.testing.assert_allclose(
      running.aggregated(rule, x), expected, 1e-5, 1e-7
    )


DTYPES = {
  # relative tolerance: of the output's rounding, and of the arithmetic
  'bfloat16': (jnp.bfloat16, 2**-8),
  'float64': (jnp.float64, 1e-10),
}


@running.one_of_each_kind
@pytest.mark.parametrize('dtype_name', DTYPES)
def test_agrees_with_the_oracle_in_another_dtype(rule, dtype_name):
  dtype, tolerance = DTYPES[dtype_name]
  with jax.enable_x64(dtype == jnp.float64):
    aggregator, v0 = running.make(rule), tables.to_tree(running.V0, dtype)

    @jax.jit
    def aggregate(messages):
      state = rule.start(aggregator.init(v0), v0)
      return aggregator.update(messages, state, key=running.KEY)[0]

    for seed in range(3):
      messages = tables.to_tree(tables.random_messages(seed), dtype)
      result = aggregate(messages)
      expected = rule.oracle(
        tables.to_matrix(messages, (running.N,)),
        tables.to_matrix(v0),
        rule.num_byzantine,
        running.KEY,
      )
      np.testing.assert_allclose(
        tables.to_matrix(result), expected, tolerance, 1e-2 * tolerance
      )
      assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))


@running.all_rules
def test_leaves_keep_their_own_dtype(rule):
  params = {'half': jnp.zeros(3, jnp.bfloat16), 'single': jnp.zeros((2, 2))}
  messages = jax.tree.map(
    lambda p: jnp.ones((running.N, *p.shape), p.dtype), params
  )
  aggregator = running.make(rule)
  state = aggregator.init(params)
  out, new_state = jax.eval_shape(
    lambda m, s: aggregator.update(m, s, key=running.KEY), messages, state
  )
  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert describe(out) == describe(params)
  assert describe(new_state) == describe(state)


# Pure functions.


@running.all_rules
def test_every_call_gives_the_same_answer(rule):
  x = tables.random_messages(4)
  np.testing.assert_array_equal(
    running.aggregated(rule, x), running.aggregated(rule, x)
  )


@running.all_rules
def test_arrays_of_the_caller_stay_as_they_are(rule):
  x, v0 = np.float32(tables.random_messages(7)), np.float32(running.V0)
  x[2] *= 1e3
  copies = x.copy(), v0.copy()
  running.aggregated(rule, x, v0)
  np.testing.assert_array_equal(x, copies[0])
  np.testing.assert_array_equal(v0, copies[1])


# Invariances.


@running.all_rules
def test_order_of_messages_does_not_matter(rule):
  if not rule.permutation:
    return
  x = tables.random_messages(1)
  permuted = x[np.random.default_rng(0).permutation(running.N)]
  np.testing.assert_allclose(
    running.aggregated(rule, permuted), running.aggregated(rule, x), 1e-5, 1e-6
  )


@running.all_rules
def test_translation(rule):
  x, errors = tables.random_messages(2), []
  for end in (3, -3):
    shift = np.linspace(end, -end, running.SIZE)
    moved = running.aggregated(rule, x + shift, running.V0 + shift)
    error = moved - shift - running.aggregated(rule, x)
    errors.append(np.abs(error).max())
  # Both ways: a rule that claims too little is caught as well.
  assert (max(errors) < 1e-5) == rule.translation


@running.all_rules
def test_rotation(rule):
  x = tables.random_messages(3)
  q, _ = np.linalg.qr(
    np.random.default_rng(3).normal(size=(running.SIZE, running.SIZE))
  )
  error = (
    running.aggregated(rule, x @ q, running.V0 @ q)
    - running.aggregated(rule, x) @ q
  )
  assert (np.abs(error).max() < 1e-5) == rule.rotation


@running.all_rules
def test_positive_scale(rule):
  x = tables.random_messages(4)
  expected, errors = running.aggregated(rule, x), []
  for scale in (1e-3, 3.0, 1e4):
    scaled = running.aggregated(rule, scale * x, scale * running.V0, scale)
    errors.append(np.abs(scaled / scale - expected).max())
  assert (max(errors) < 1e-5) == rule.scale


@running.all_rules
def test_equal_messages_give_that_message(rule):
  row = tables.random_messages(5)[0]
  result = running.aggregated(rule, np.tile(row, (running.N, 1)), v0=row)
  np.testing.assert_allclose(result, row, 1e-6)


# Breakdown.


def _bad_rows(kind, count):
  rows = np.zeros((count, running.SIZE))
  if kind == 'one NaN cell':
    rows[:, 3] = np.nan
  elif kind == 'mixed':
    values = [np.nan, np.inf, -np.inf, 3e38, -1e6]
    rows[:] = np.resize(values, running.SIZE)[None]
  else:
    rows[:] = kind
  return rows


BAD = [1e6, -1e12, 1e15, 1e17, 1e30, 3e38, np.inf, -np.inf, np.nan]
BAD += ['one NaN cell', 'mixed']


def _assert_in_ball(rule, result, honest):
  assert np.isfinite(result).all()
  if rule.ball is not None:
    center, radius = rule.ball(honest, running.V0, rule.num_byzantine)
    distance = np.linalg.norm(result - center)
    # Rounding: the centre and the radius are those of float32 numbers.
    assert distance <= radius * (1 + 1e-5)


@running.all_rules
@pytest.mark.parametrize('bad', BAD, ids=str)
def test_f_bad_messages_move_it_no_farther_than_the_bound(rule, bad):
  x = tables.random_messages(6)
  f = rule.num_byzantine
  for places in (slice(0, f), slice(running.N - f, running.N)):
    attacked = x.copy()
    attacked[places] = _bad_rows(bad, f)
    _assert_in_ball(
      rule, running.aggregated(rule, attacked), np.delete(x, places, axis=0)
    )


@running.all_rules
@pytest.mark.parametrize('bad', BAD, ids=str)
def test_any_number_of_bad_messages_leaves_it_finite(rule, bad):
  x, n = tables.random_messages(7), running.N
  first = [slice(0, k) for k in (1, rule.num_byzantine + 1, n - 1, n)]
  for places in [*first, slice(n - 1, n)]:
    attacked = x.copy()
    attacked[places] = _bad_rows(bad, len(x[places]))
    assert np.isfinite(running.aggregated(rule, attacked)).all(), places


@running.all_rules
@pytest.mark.parametrize('bad', [np.nan, np.inf, 'one NaN cell'], ids=str)
def test_no_usable_message_gives_the_previous_aggregate(rule, bad):
  result = running.aggregated(rule, _bad_rows(bad, running.N))
  if bad == 'one NaN cell' and not rule.weighs and rule.name[:3] != 'nnm':
    # A coordinate rule leaves out entries and not messages.
    assert result[3] == 0
    return
  expected = running.V0 if rule.remembers else np.zeros(running.SIZE)
  np.testing.assert_array_equal(result, np.float32(expected))


def test_one_message_moves_the_mean_without_bound():
  x = tables.random_messages(6)
  x[0] = 1e6
  assert np.linalg.norm(running.aggregated(tables.RULE['mean'], x)) > 1e5


@pytest.mark.parametrize(
  'name', ['coordinate_median', 'trimmed_mean', 'geometric_median']
)
def test_a_majority_moves_a_median_without_bound(name):
  x = tables.random_messages(6)
  x[:6] = 1e6
  assert np.linalg.norm(running.aggregated(tables.RULE[name], x)) > 1e5


HOSTILE = [0.0, 1e-45, -1.0, 1e4, -1e8, 1e15, -1e17, 1e20, 3.4e38, -3.4e38]
HOSTILE += [np.nan, np.inf, -np.inf]
hostile_rows = hypothesis_numpy.arrays(
  np.float64,
  (running.N, running.SIZE),
  elements=st.sampled_from(HOSTILE),
  fill=st.sampled_from(HOSTILE),
)


@running.all_rules
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
  rows=hostile_rows,
  places=st.permutations(range(running.N)),
  scale=st.sampled_from([1e-4, 1.0, 1e3]),
)
def test_hostile_messages(rule, rows, places, scale):
  bad = np.array(places[: rule.num_byzantine], int)
  x = scale * tables.random_messages(8)
  honest = np.delete(x, bad, axis=0)
  x[bad] = rows[bad]
  _assert_in_ball(rule, running.aggregated(rule, x), honest)
  # And with a hostile majority, at least a number comes out.
  x[np.array(places[:8])] = rows[:8]
  assert np.isfinite(running.aggregated(rule, x)).all()


# Diagnostics.


@running.all_rules
def test_weights_reproduce_the_aggregate_and_the_mask_is_right(rule):
  x = tables.random_messages(9)
  if rule.num_byzantine:
    x[1, 4] = np.nan
  aggregate, info = running.inspect(rule, x)
  if not rule.weighs:
    assert info.weights is None
    return
  usable = np.isfinite(x).all(axis=1)
  np.testing.assert_array_equal(info.mask, usable)
  weights = np.asarray(info.weights, np.float64)
  assert (weights[~usable] == 0).all()
  if rule.translation and not rule.remembers:
    np.testing.assert_allclose(weights.sum(), 1, 1e-6)
  assert weights.sum() <= 1 + 1e-6
  origin = running.V0 if rule.remembers else np.zeros(running.SIZE)
  combined = origin + weights[usable] @ (x[usable] - origin)
  np.testing.assert_allclose(aggregate, combined, 1e-5, 1e-6)
