"""What centered clipping promises beyond what all rules do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import tables

N, SIZE = tables.NUM_WORKERS, tables.SIZE
X = np.float32(tables.random_messages(0))
V0 = np.linspace(-2, 2, SIZE, dtype=np.float32)


def _clip(x, v0, radius, num_iterations=1):
  rule = byzjax.centered_clipping(radius=radius, num_iterations=num_iterations)
  state = byzjax.CenteredClippingState(jnp.asarray(v0))
  return np.asarray(rule.update(jnp.asarray(x), state)[0], np.float64)


@pytest.mark.parametrize('num_iterations', [1, 2, 5])
def test_infinite_radius_is_the_mean(num_iterations):
  result = _clip(X, V0, jnp.inf, num_iterations)
  np.testing.assert_allclose(result, X.mean(axis=0), 1e-5, 1e-6)


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_zero_radius_stays(num_iterations):
  np.testing.assert_array_equal(_clip(X, V0, 0.0, num_iterations), V0)


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_a_step_is_at_most_the_radius(num_iterations):
  far = X + 1e3
  moved = np.linalg.norm(_clip(far, V0, 0.5, num_iterations) - V0)
  assert moved <= 0.5 * num_iterations * (1 + 1e-6)
  assert moved > 0.45 * num_iterations  # all pull in one direction


@pytest.mark.parametrize('num_byzantine', [1, 3])
@pytest.mark.parametrize('evil', [-1e6, 5.0, 1e15])
def test_replacing_f_messages_moves_it_by_2_f_tau_over_n(num_byzantine, evil):
  attacked = X.copy()
  attacked[:num_byzantine] = evil
  difference = _clip(attacked, V0, 0.5) - _clip(X, V0, 0.5)
  bound = 2 * num_byzantine * 0.5 / N
  assert np.linalg.norm(difference) <= bound * (1 + 1e-5)


def test_equal_messages_far_away_attract_by_the_radius_per_step():
  row = V0 + np.float32(10 / np.sqrt(SIZE))  # at distance 10
  same = np.tile(row, (N, 1))
  for steps, expected in [(1, 3.0), (2, 6.0), (4, 10.0)]:
    moved = np.linalg.norm(_clip(same, V0, 3.0, steps) - V0)
    np.testing.assert_allclose(moved, expected, 1e-5)


@pytest.mark.parametrize('v0', [-1.0, 0.0, 0.3, 1.0])
def test_of_votes_of_one_it_is_the_mean_and_others_are_the_majority(v0):
  # core.md 1.7: n = 11, six votes of +1 against five of -1.
  votes = np.float32([1, -1] * 5 + [1])[:, None]
  result = _clip(votes, np.float32([v0]), 2.0)
  np.testing.assert_allclose(result, [1 / 11], 1e-5, 1e-7)
  for rule in (
    byzjax.coordinate_median(),
    byzjax.krum(num_byzantine=3),
    byzjax.geometric_median(),
  ):
    np.testing.assert_allclose(rule(jnp.asarray(votes)), [1.0], 1e-6)


def test_it_remembers():
  rule, x = byzjax.centered_clipping(radius=0.5), jnp.asarray(X)
  first, state = rule.update(x, rule.init(x[0]))
  second, _ = rule.update(x, state)
  np.testing.assert_array_equal(state.center, first)
  assert np.linalg.norm(second - first) > 0.1
  np.testing.assert_array_equal(rule(x), first)  # a fresh state, each time


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_a_message_at_the_centre_counts_as_one_that_is_not_clipped(
  num_iterations,
):
  x = np.concatenate([V0[None], np.full((1, SIZE), np.inf, np.float32)])
  np.testing.assert_array_equal(_clip(x, V0, 1.0, num_iterations), V0)


def test_a_gradient_flows_to_the_radius():
  def length(radius):
    rule = byzjax.centered_clipping(radius=radius)
    return jnp.linalg.norm(rule(jnp.full((4, 3), 5.0)))

  np.testing.assert_allclose(jax.grad(length)(2.0), 1.0, 1e-5)


@pytest.mark.parametrize('num_iterations', [1, 3])
def test_a_quantile_follows_the_spread(num_iterations):
  # What a fixed radius cannot: the same at every scale of the messages.
  def clip(scale):
    rule = byzjax.centered_clipping(
      radius=1.0, quantile=0.5, num_iterations=num_iterations
    )
    state = byzjax.CenteredClippingState(jnp.asarray(scale * V0))
    return np.asarray(rule.update(jnp.asarray(scale * X), state)[0])

  np.testing.assert_allclose(clip(1e-6) * 1e6, clip(1.0), 1e-4, 1e-5)
  np.testing.assert_allclose(clip(1e6) / 1e6, clip(1.0), 1e-4, 1e-5)


@pytest.mark.parametrize('num_iterations', [1, 3])
@pytest.mark.parametrize('evil', [np.nan, np.inf, 1e30])
def test_messages_that_are_no_numbers_do_not_set_the_quantile(
  evil, num_iterations
):
  rule = byzjax.centered_clipping(
    radius=1.0, quantile=0.5, num_iterations=num_iterations
  )
  state = byzjax.CenteredClippingState(jnp.asarray(V0))
  x = X.copy()
  x[:5] = evil
  result = np.asarray(rule.update(jnp.asarray(x), state)[0])
  honest = X[5:]
  far = np.linalg.norm(honest - V0, axis=1).max()
  assert np.linalg.norm(result - V0) <= num_iterations * far


def test_the_whole_quantile_is_the_mean_and_none_is_the_nearest():
  def clip(quantile):
    rule = byzjax.centered_clipping(radius=1.0, quantile=quantile)
    return np.asarray(rule(jnp.asarray(X)), np.float64)

  np.testing.assert_allclose(clip(1.0), X.mean(axis=0), 1e-5, 1e-6)
  nearest = np.linalg.norm(X, axis=1).min()
  expected = _clip(X, np.zeros(SIZE, np.float32), nearest)
  np.testing.assert_allclose(clip(0.0), expected, 1e-5, 1e-6)
  # A sweep is one program.
  swept = jax.vmap(
    lambda q: byzjax.centered_clipping(radius=1.0, quantile=q)(jnp.asarray(X))
  )(jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(swept[1], clip(1.0), 1e-5, 1e-6)


@pytest.mark.parametrize('num_iterations', [1, 2])
def test_an_infinite_radius_of_a_distance_of_zero_clips_to_zero(num_iterations):
  rule = byzjax.centered_clipping(
    radius=jnp.inf, quantile=0.5, num_iterations=num_iterations
  )
  np.testing.assert_array_equal(rule(jnp.zeros((5, 3))), 0)


@pytest.mark.parametrize('shape', [(3, 2), (), (1,)])
def test_a_centre_of_another_size_is_refused(shape):
  x, key = jnp.ones((3, 2)), jax.random.key(0)
  for rule in (
    byzjax.centered_clipping(radius=1.0),
    byzjax.centered_clipping(radius=1.0, num_iterations=2),
    byzjax.sequential_centered_clipping(radius=1.0),
  ):
    with pytest.raises(ValueError, match='clipping needs.*for 2 coordinates'):
      rule.update(x, rule.init(jnp.zeros(shape)), key=key)
