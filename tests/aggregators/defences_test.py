"""FoolsGold, FLAME and SignGuard: what is particular to each."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import byzjax
from byzjax.aggregators import _fools_gold
from tests import reference_defences, tables
from tests.aggregators import calls

KEY = jax.random.key(3)
PLANE = np.array(
  [[1.0, 0], [0, 1], [1, 1], [2, 1], [1, 2], [10, -10], [10, -10]]
)
N = len(PLANE)


# FoolsGold.


def test_golden_weights_of_fools_gold():
  y, state, info = calls.inspect(byzjax.fools_gold, PLANE, num_workers=N)
  np.testing.assert_allclose(info.weights, [0.5, 0.5, 0, 0, 0, 0, 0], 1e-5)
  np.testing.assert_allclose(y, [0.5, 0.5], 1e-5)
  assert info.kept.tolist() == [True] * 2 + [False] * 5
  np.testing.assert_array_equal(state.history, PLANE)


@pytest.mark.parametrize('reduce', ['mean', 'mean_of_all'])
def test_the_history_is_compared_and_this_round_is_averaged(reduce):
  options, past, state = {'num_workers': 11, 'reduce': reduce}, 0, None
  for step in range(3):
    x = np.float32(tables.random_messages(step))
    y, state, _ = calls.inspect(byzjax.fools_gold, x, state, **options)
    expected = reference_defences.fools_gold(x, past, reduce)
    np.testing.assert_allclose(y, expected, 1e-4, 1e-5)
    past = past + np.float64(x)
  np.testing.assert_allclose(state.history, past, 1e-5, 1e-5)
  assert isinstance(state, byzjax.FoolsGoldState)


def test_masked_messages_and_absent_workers_do_not_enter_the_history():
  rule = byzjax.fools_gold(num_workers=N)
  x = PLANE.copy()
  x[2] = np.nan
  weights = jnp.array([1.0, 2, 1, 1, 0, 1, 1])
  x = jnp.float32(x)
  y, state, info = jax.jit(
    lambda x: rule.inspect(x, rule.init(x[0]), worker_weights=weights)
  )(x)
  np.testing.assert_array_equal(state.history[jnp.array([2, 4])], 0)
  np.testing.assert_array_equal(state.history[3], PLANE[3])
  assert not info.weights[2] and not info.weights[4]
  # Of 0 and 1 the second counts twice; 3 is the sybil of none of those left.
  trusted = reference_defences.fools_gold_weights(PLANE[[0, 1, 3, 5, 6]])
  expected = np.array(trusted) * [1, 2, 1, 1, 1]
  expected /= expected.sum()
  np.testing.assert_allclose(
    info.weights[jnp.array([0, 1, 3, 5, 6])], expected, 1e-4, 1e-5
  )
  np.testing.assert_allclose(y, expected @ PLANE[[0, 1, 3, 5, 6]], 1e-4, 1e-5)


def test_a_history_that_would_overflow_does_not_grow():
  x = np.eye(3)
  _, state, _ = calls.inspect(byzjax.fools_gold, x, num_workers=3)
  # Usable by itself, but not so twice.
  x[0] = 3e15
  for _ in range(3):
    y, state, _ = calls.inspect(byzjax.fools_gold, x, state, num_workers=3)
    assert np.isfinite(y).all() and np.isfinite(state.history).all()
  np.testing.assert_allclose(state.history[1], [0, 4, 0])


@jax.jit
def _trust(cosines):
  return _fools_gold.trust(cosines, jnp.ones(len(cosines), bool))


@pytest.mark.parametrize('trusted, gate', [(0.3775, 0), (0.6225, 1)])
def test_the_gate(trusted, gate):
  # Three workers with all trust, and two with so much.
  cosines = np.eye(5)
  cosines[[0, 1], [1, 0]] = 1 - trusted
  np.testing.assert_allclose(_trust(cosines), [gate, gate, 1, 1, 1], atol=1e-3)


def test_perfect_sybils_get_nothing_and_twins_everywhere_all():
  # FL-Byzantine-Library gives perfect sybils all weight.
  cosines = np.eye(5)
  cosines[:2, :2] = 1
  np.testing.assert_array_equal(_trust(cosines), [0, 0, 1, 1, 1])
  cosines[2:, 2:] = 1
  np.testing.assert_array_equal(_trust(cosines), 1)


def test_another_number_of_messages_is_refused():
  rule = byzjax.fools_gold(num_workers=3)
  with pytest.raises(ValueError, match='num_workers=3 messages, got 7'):
    rule(jnp.ones((7, 2)))


@pytest.mark.parametrize('shape', [(3, 2), (), (1,)])
def test_a_history_of_another_shape_is_refused(shape):
  x = jnp.ones((3, 2))
  rule = byzjax.fools_gold(num_workers=3)
  with pytest.raises(
    ValueError, match=r'for messages \[3, 2\], got one for \['
  ):
    rule.update(x, rule.init(jnp.zeros(shape)))
  for feature in ('cosine', 'distance'):
    rule = byzjax.sign_guard(feature=feature, fraction=1.0)
    with pytest.raises(ValueError, match='sign_guard needs.*for 2 coordinates'):
      rule.update(x, rule.init(jnp.zeros(shape)))


# FLAME.


# On the plane itself rounding decides: 0 and 3 are as close as 1 and 4.
TURNED = PLANE + np.array([0, -0.1, 0, 0, 0, 0, 0])[:, None] * [1, 0]


def test_golden_flame():
  y, _, info = calls.inspect(byzjax.flame, TURNED, noise=0)
  np.testing.assert_allclose(y, [1.25, 1], 1e-5)
  assert np.flatnonzero(info.kept).tolist() == [0, 2, 3, 4]


def test_the_noise_follows_the_median_norm():
  x = np.float32(np.tile(np.linspace(1, 3, 5)[:, None], (1, 2000)))
  length = np.sqrt(2000) * 2
  noise = [
    calls.inspect(byzjax.flame, x, key=jax.random.key(seed), noise=0.5)[0]
    - np.minimum(x[:, 0], 2).mean()
    for seed in (0, 1)
  ]
  for drawn in noise:
    assert np.std(drawn) == pytest.approx(0.5 * length, rel=0.05)
    assert abs(np.mean(drawn)) < 4 * 0.5 * length / np.sqrt(2000)
  assert not np.allclose(*noise)


def test_noise_needs_a_key():
  with pytest.raises(ValueError, match='flame needs a key'):
    byzjax.flame()(jnp.ones((3, 2)))


# SignGuard.


def test_golden_sign_guard():
  y, _, info = calls.inspect(
    byzjax.sign_guard, PLANE, fraction=1.0, method='dbscan'
  )
  np.testing.assert_allclose(y, [4 / 3, 4 / 3], 1e-5)
  assert np.flatnonzero(info.kept).tolist() == [2, 3, 4]


def test_the_first_rounds_compare_with_each_other():
  for feature, rounds in [('cosine', 3), ('distance', 1)]:
    previous, state = None, None
    for step in range(rounds + 1):
      x = np.float32(tables.random_messages(30 + step)) - 0.5
      options = {'feature': feature, 'method': 'dbscan', 'radius': 0.15}
      y, state, _ = calls.inspect(
        byzjax.sign_guard, x, state, fraction=1.0, **options
      )
      given = previous if step >= rounds else None
      expected = reference_defences.sign_guard(
        x, 'dbscan', feature, given, radius=0.15
      )
      np.testing.assert_allclose(y, expected, 1e-5, 1e-6, err_msg=feature)
      previous = np.float64(y)
    assert state.step == rounds + 1


def test_a_window_needs_a_key():
  with pytest.raises(ValueError, match='sign_guard needs a key to draw 1 of 2'):
    byzjax.sign_guard()(jnp.ones((3, 2)))


def test_nobody_in_both_sets_means_all():
  # Each has signs of its own, so that all are noise.
  x = np.array([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [-1, 0, 0, 0]])
  y, _, info = calls.inspect(
    byzjax.sign_guard, x, fraction=1.0, method='dbscan'
  )
  assert info.kept.all()
  np.testing.assert_allclose(y, x.mean(axis=0), 1e-6)


# On several devices.


def _drawn(rule, mesh=None):
  x = np.float32(np.random.default_rng(0).normal(size=(8, 300)) + 0.3)
  if mesh is None:
    return jax.jit(
      lambda x: rule.update(x, rule.init(x[0]), key=jax.random.split(KEY)[1])
    )(x)[0]
  sharded = byzjax.worker_sharded(rule, 'workers')

  @jax.jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P('workers'), out_specs=P()
  )
  def aggregate(x):
    return sharded.update(x, sharded.init(x[0]), key=KEY)[0]

  return aggregate(x)


@pytest.mark.parametrize(
  'rule',
  [
    pytest.param(byzjax.flame(noise=0.1), marks=pytest.mark.slow),
    byzjax.fools_gold(num_workers=8),
    byzjax.sign_guard(method='dbscan', feature='cosine', radius=0.2),
  ],
  ids=lambda rule: rule.name,
)
def test_what_is_drawn_or_remembered_does_not_depend_on_devices(rule):
  mesh = jax.make_mesh(
    (4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  np.testing.assert_allclose(_drawn(rule, mesh), _drawn(rule), 1e-4, 1e-5)


def test_the_oracle_on_the_plane():
  assert reference_defences.flame_cluster(TURNED) == [0, 2, 3, 4]
  np.testing.assert_allclose(reference_defences.flame(TURNED), [1.25, 1])
  np.testing.assert_allclose(
    reference_defences.flame(TURNED, statistics.median_low), [1.25, 1]
  )
  np.testing.assert_allclose(
    reference_defences.sign_guard(PLANE, 'dbscan'), [4 / 3, 4 / 3]
  )
  np.testing.assert_allclose(
    reference_defences.fools_gold(PLANE, reduce='sum'), [1, 1]
  )
