"""Coordinate-wise clipping, alone, inside of Adam and in a round."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.claims import SIZE, to_matrix, to_tree

FRACTIONS = (0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0)


def _draw(seed=0, size=101):
  return np.random.default_rng(seed).standard_t(2, size=size)


def _clip(updates, **kwargs):
  tx = byzjax.clip_coordinates(**kwargs)
  return tx.update(updates, tx.init(updates))[0]


@jax.jit
def _clip_by(updates, fraction):
  return _clip(updates, fraction=fraction)


def _threshold(x, fraction):
  """The entry at index floor(p D) of the sorted sizes; zero at p = 1."""
  sizes = sorted(map(abs, x.tolist()), reverse=True)
  index = math.floor(fraction * len(sizes))
  return sizes[index] if index < len(sizes) else 0.0


def _reference(x, fraction):
  tau = _threshold(x, fraction)
  return np.array([math.copysign(min(abs(u), tau), u) for u in x.tolist()])


def _updates(tx, gradients):
  def body(state, gradient):
    update, state = tx.update(gradient, state)
    return state, update

  return jax.jit(functools.partial(jax.lax.scan, body))(
    tx.init(gradients[0]), gradients
  )[1]


# The definition.


@pytest.mark.parametrize('fraction', FRACTIONS)
def test_is_the_definition(fraction):
  x = _draw()
  with jax.enable_x64(True):
    result = np.asarray(_clip_by(jnp.asarray(x), fraction))
  assert result.dtype == np.float64
  np.testing.assert_array_equal(result, _reference(x, fraction))
  tau = _threshold(x, fraction)
  assert (np.abs(x) > tau).sum() == math.floor(fraction * x.size)
  assert np.abs(result).max() == tau
  assert (result @ x > 0) == (fraction < 1)


def test_descent_directions_stay_and_twice_is_once():
  with jax.enable_x64(True):
    x = jnp.asarray(_draw(1))
    for fraction in (0.1, 0.5):
      once = _clip_by(x, fraction)
      np.testing.assert_array_equal(_clip_by(once, fraction), once)
      np.testing.assert_array_equal(_clip_by(-x, fraction), -once)
      np.testing.assert_array_equal(_clip_by(4 * x, fraction), 4 * once)
      permuted = np.random.default_rng(0).permutation(x.size)
      np.testing.assert_array_equal(
        _clip_by(x[permuted], fraction), once[permuted]
      )


def test_all_but_one_clipped_is_the_sign():
  with jax.enable_x64(True):
    x = jnp.asarray(_draw(2))
    clipped = _clip_by(x, 1 - 1 / (2 * x.size))
    np.testing.assert_array_equal(clipped / jnp.max(clipped), jnp.sign(x))


def test_ties_and_zeros():
  x = jnp.array([3.0, -3.0, 3.0, 1.0, 0.0])
  np.testing.assert_array_equal(_clip_by(x, 0.2), x)
  np.testing.assert_array_equal(_clip_by(x, 0.6), [1, -1, 1, 1, 0])
  np.testing.assert_array_equal(_clip_by(jnp.zeros(5), 0.4), np.zeros(5))


def test_one_threshold_for_all_leaves():
  x = _draw(3, SIZE)
  tree = to_tree(x)
  result = to_matrix(_clip_by(tree, 0.1))
  flat = _reference(np.float32(x), 0.1)
  np.testing.assert_array_equal(result, flat)
  # Not the same as a threshold for each.
  each = jax.tree.map(
    lambda leaf: jnp.asarray(_reference(leaf.ravel(), 0.1)).reshape(leaf.shape),
    tree,
  )
  assert np.abs(to_matrix(each) - flat).max() > 0.1


def test_a_fixed_threshold_is_the_clip_of_optax():
  tree = to_tree(_draw(4, SIZE))
  expected, _ = optax.clip(0.7).update(tree, optax.EmptyState())
  np.testing.assert_array_equal(
    to_matrix(_clip(tree, threshold=0.7)), to_matrix(expected)
  )
  swept = jax.vmap(lambda tau: _clip(jnp.array([3.0, -1.0]), threshold=tau))
  np.testing.assert_array_equal(
    swept(jnp.array([0.5, 2.0])), [[0.5, -0.5], [2, -1]]
  )


def test_a_sweep_of_fractions_is_one_program():
  x = np.float32(_draw(5))
  swept = jax.vmap(_clip_by, (None, 0))(jnp.asarray(x), jnp.array(FRACTIONS))
  for fraction, row in zip(FRACTIONS, swept):
    np.testing.assert_array_equal(row, _reference(x, fraction))


def test_half_precision_keeps_its_dtype_and_extremes_their_order():
  x = jnp.asarray(_draw(6), jnp.bfloat16)
  result = _clip_by(x, 0.1)
  assert result.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    np.float64(result), _reference(np.float64(x), 0.1)
  )
  sizes = jnp.array([1e38, -1e-37, 1e30, 1.0, -1e-30])
  np.testing.assert_array_equal(
    _clip_by(sizes, 0.4), _reference(np.asarray(sizes), 0.4)
  )


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32, jnp.float64])
def test_with_x64_every_dtype_is_clipped(dtype):
  with jax.enable_x64(True):
    updates = jnp.array([-9.0, 2.0, 0.5, -3.0], dtype)
    clipped = _clip(updates, fraction=0.25)
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(clipped, [-3, 2, 0.5, -3])


def test_bad_coordinates_are_the_largest_and_harm_no_other():
  x = jnp.array([jnp.inf, -5.0, 4.0, jnp.nan, -jnp.inf, 3.0, 2.0, 1.0])
  # Three are clipped, and the fourth largest is 5.
  expected = np.array([5.0, -5.0, 4.0, np.nan, -5.0, 3.0, 2.0, 1.0])
  np.testing.assert_array_equal(_clip_by(x, 3 / 8), expected)
  # One is clipped: all that is finite stays as it is.
  np.testing.assert_array_equal(_clip_by(x, 1 / 8), x)


def test_before_momentum_it_is_the_sgd_of_the_paper():
  gradients = _draw(13, size=(5, 20))
  momentum, expected = None, []
  for g in gradients:
    clipped = _reference(g, 0.1)
    old = clipped if momentum is None else momentum
    momentum = 0.9 * old + 0.1 * clipped
    expected.append(-0.3 * momentum)
  tx = optax.chain(
    byzjax.clip_coordinates(fraction=0.1),
    byzjax.worker_momentum(0.9),
    optax.sgd(0.3),
  )
  with jax.enable_x64(True):
    result = _updates(tx, jnp.asarray(gradients))
  np.testing.assert_allclose(result, expected, 1e-10)


def test_per_worker_every_worker_has_its_own_threshold():
  rows = np.float32(np.stack([_draw(7), 100 * _draw(8), _draw(9)]))
  tx = byzjax.per_worker(byzjax.clip_coordinates(fraction=0.1), 3)
  result, _ = jax.jit(tx.update)(jnp.asarray(rows), tx.init(rows[0]))
  for row, clipped in zip(rows, result):
    np.testing.assert_array_equal(clipped, _reference(row, 0.1))


# Adam.


def test_adam_without_clipping_is_the_adam_of_optax():
  with jax.enable_x64(True):
    gradients = jnp.asarray(_draw(10, size=(5, 40)))
    result = _updates(byzjax.scale_by_clipped_adam(fraction=0.0), gradients)
    expected = _updates(optax.scale_by_adam(), gradients)
  assert result.dtype == np.float64
  np.testing.assert_allclose(result, expected, 1e-13)


def test_adam_averages_the_clipped_and_divides_by_the_unclipped():
  gradients = _draw(11, size=(6, 40))
  m, v, expected = np.zeros(40), np.zeros(40), []
  for t, g in enumerate(gradients, 1):
    m = 0.8 * m + 0.2 * _reference(g, 0.3)
    v = 0.95 * v + 0.05 * g**2
    root = np.sqrt(v / (1 - 0.95**t))
    expected.append(m / (1 - 0.8**t) / (root + 1e-3))
  with jax.enable_x64(True):
    gradients = jnp.asarray(gradients)
    result = jax.vmap(
      lambda p: _updates(
        byzjax.scale_by_clipped_adam(fraction=p, b1=0.8, b2=0.95, eps=1e-3),
        gradients,
      )
    )(jnp.array([0.3, 1.0]))
  np.testing.assert_allclose(result[0], expected, 1e-10)
  np.testing.assert_array_equal(result[1], np.zeros((6, 40)))


def test_adam_of_half_precision_keeps_dtypes_and_compiles_once():
  tx = byzjax.scale_by_clipped_adam()
  params = {'a': jnp.ones(300, jnp.bfloat16), 'b': jnp.ones(3)}
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(3):
    types = jax.tree.map(jax.typeof, state)
    result, state = update(params, state)
    assert jax.tree.map(jax.typeof, state) == types
  assert result['a'].dtype == jnp.bfloat16
  assert state.nu['a'].dtype == jnp.float32
  assert update._cache_size() == 1
  # 0.999 is 1 in bfloat16: moments of half precision would not move.
  np.testing.assert_allclose(state.nu['a'], 1 - 0.999**3, 1e-4)


# In a round, under attack.


def _last_distances(worker, rule, *, mesh=None, rate=1.0, num_rounds=30):
  """To the optimum, of a quadratic with one steep coordinate in eight."""
  curvature = jnp.where(jnp.arange(16) % 8 == 0, 50.0, 1.0)

  def loss_fn(x, batch):
    return jnp.sum(curvature * (x - batch) ** 2) / 2

  training = byzjax.robust_round(
    loss_fn,
    num_workers=8,
    worker=worker,
    aggregator=rule,
    optimizer=optax.sgd(optax.exponential_decay(rate, 1, 0.8)),
    attack=byzjax.sign_flip(scale=3.0),
    byzantine=3,
    mesh=mesh,
  )
  noise = np.random.default_rng(0).normal(size=(num_rounds, 8, 16))
  batches = jnp.asarray(1 + 0.01 * noise, jnp.float32)

  @jax.jit
  def run(state):
    def step(state, batch):
      state, _ = training.step(state, batch, jax.random.key(0))
      return state, jnp.max(jnp.abs(state.params - 1))

    return jax.lax.scan(step, state, batches)

  return np.asarray(run(training.init(jnp.zeros(16)))[1])


def _worker():
  return optax.chain(
    byzjax.clip_coordinates(fraction=0.125), byzjax.worker_momentum(0.5)
  )


def test_clipped_momenta_in_a_round_under_attack():
  median = byzjax.coordinate_median()
  distances = _last_distances(_worker(), median)
  assert distances[-1] < 0.1
  # At this rate steps of gradients themselves diverge, whatever the rule.
  assert not _last_distances(byzjax.worker_momentum(0.5), median)[-1] < 1e3
  # And without a rule the clipped ones go where the attackers want.
  assert _last_distances(_worker(), byzjax.mean())[-1] > 0.5


def test_a_round_on_several_devices_has_the_same_numbers():
  median = byzjax.coordinate_median()
  mesh = jax.make_mesh(
    (4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  np.testing.assert_allclose(
    _last_distances(_worker(), median, mesh=mesh, num_rounds=5),
    _last_distances(_worker(), median, num_rounds=5),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({}, 'either fraction or threshold, got fraction=None'),
    (dict(fraction=0.1, threshold=1.0), 'either.*fraction=0.1 and threshold=1'),
    (dict(fraction=1.5), 'fraction >= 0 and fraction <= 1, got 1.5'),
    (dict(fraction=float('nan')), 'fraction >= 0.*got nan'),
    (dict(threshold=-1.0), 'threshold >= 0, got -1.0'),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(ValueError, match=f'clip_coordinates needs {message}'):
    byzjax.clip_coordinates(**arguments)


def test_adam_refuses_arguments_out_of_range():
  for name, bad in (('fraction', -0.1), ('b1', 1.1), ('b2', -1.0), ('eps', -1)):
    with pytest.raises(ValueError, match=f'scale_by_clipped_adam.*{name} >= 0'):
      byzjax.scale_by_clipped_adam(**{name: bad})
  for name in ('b1', 'b2'):  # The corrected moment would be 0 / 0.
    with pytest.raises(ValueError, match=f'scale_by_clipped_adam.*{name} < 1'):
      byzjax.scale_by_clipped_adam(**{name: 1.0})
