import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import convex
from byzjax.convex import _robust
from tests.convex import programs

EPSILON = 0.05
# A good penalty and weight for each loss.
SETTINGS = {
  'squared': (0.3, 0.05),
  'hinge': (0.003, 0.01),
  'logistic': (0.01, 0.05),
}


def sizes(epsilon=EPSILON):
  return jnp.array([epsilon, epsilon, 0.0])  # The last column is of ones.


def fit(x, y, patterns, *, epsilon, loss):
  rho, beta = SETTINGS[loss]
  return convex.robust_admm(
    x, y, patterns, epsilon=epsilon, beta=beta, rho=rho, loss=loss,
    num_iterations=3000, record_every=1000, dual_ratio=1.6,
  )  # fmt: skip


@pytest.mark.parametrize('loss', SETTINGS)
def test_it_finds_the_robust_optimum_and_bounds_every_attack(loss):
  beta = SETTINGS[loss][1]
  with jax.enable_x64(True):
    x, y = programs.corners()
    y = programs.labels(loss, y, x)
    patterns = programs.patterns_of(x, 10, epsilon=sizes(), num_perturbations=2)
    state, history = fit(x, y, patterns, epsilon=sizes(), loss=loss)
    expected = programs.solve(
      x, y, patterns, beta=beta, loss=loss, epsilon=sizes()
    )
    np.testing.assert_allclose(history.objective[-1], expected, 1e-4)
    assert history.violation[-1] < 1e-4
    network = convex.recover_network(state.blocks)

    # The certificate: no inputs in the box have a larger loss.
    def of(loss_fn_inputs):
      return convex.network_objective(
        network, loss_fn_inputs, y, beta=0.0, loss=loss
      )

    certified = convex.objective(
      state.blocks, x, y, patterns, beta=0.0, loss=loss, epsilon=sizes()
    )
    movable = jnp.array([[1.0, 1.0, 0.0]])

    def mean_loss(network, batch):
      inputs = x + movable * (batch[0] - x)
      return convex.network_objective(
        network, inputs, batch[1], beta=0.0, loss=loss
      ) / len(x)

    moved = byzjax.objectives.pgd_inputs(
      mean_loss, network, (x, y), epsilon=EPSILON, step_size=0.03, num_steps=20
    )
    moved = x + movable * (moved - x)
    assert of(x) <= of(moved) <= certified + 1e-3
    # Nothing is given away: the box has a point almost as bad as the bound.
    assert of(moved) > 0.9 * certified - 1e-3

    # With a box of no size it is the standard program, by the same compiled
    # program.
    _, plain = fit(x, y, patterns, epsilon=jnp.zeros(3), loss=loss)
    standard = programs.solve(x, y, patterns, beta=beta, loss=loss)
    np.testing.assert_allclose(plain.objective[-1], standard, 1e-3)
    assert standard < expected


def test_boxes_that_touch_every_pattern_leave_nothing():
  # The only feasible blocks are zero where each line crosses a box.
  with jax.enable_x64(True):
    x, y = programs.corners()
    patterns = programs.patterns_of(x, 10, epsilon=sizes(), num_perturbations=2)
    state, history = fit(x, y, patterns, epsilon=jnp.full(3, 5.0), loss='hinge')
    np.testing.assert_allclose(history.objective[-1], 1.0, 1e-6)
    assert not state.blocks.any()


def test_the_step_of_blocks_and_slacks_is_the_nearest_point():
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    epsilon = jnp.array([0.5, 0.2, 0.0])
    for _ in range(3):
      a, b = random.normal(size=3), random.normal(size=5) - 0.3
      v, s = cp.Variable(3), cp.Variable(5)
      cp.Problem(
        cp.Minimize(
          0.3 * cp.norm(v, 2)
          + (cp.sum_squares(v - a) + cp.sum_squares(s - b)) / 2
        ),
        [s >= cp.abs(v) @ np.asarray(epsilon)],
      ).solve(solver=cp.CLARABEL)
      found = _robust.feasible_proximal(
        jnp.asarray(a), jnp.asarray(b), epsilon, 0.3
      )
      np.testing.assert_allclose(found[0], v.value, atol=1e-4)
      np.testing.assert_allclose(found[1], s.value, atol=1e-4)


@pytest.mark.parametrize('loss', SETTINGS)
def test_the_step_of_outputs_and_slopes_is_the_nearest_point(loss):
  random = np.random.default_rng(1)
  with jax.enable_x64(True):
    epsilon = np.array([0.5, 0.2, 0.0])
    a, b = random.normal(size=4), random.normal(size=(4, 3))
    y = np.array([1.0, -1.0, 1.0, -1.0])
    f, r = cp.Variable(4), cp.Variable((4, 3))
    scale = len(y) if loss == 'hinge' else 1
    price = scale * programs.loss_of(loss, f, y, cp.abs(r) @ epsilon)
    cp.Problem(
      cp.Minimize(
        0.7 * price + (cp.sum_squares(f - a) + cp.sum_squares(r - b)) / 2
      )
    ).solve(solver=cp.CLARABEL)
    found = _robust.loss_proximal(
      loss, *map(jnp.asarray, (a, b, y, epsilon)), 0.7
    )
    np.testing.assert_allclose(found[0], f.value, atol=1e-4)
    np.testing.assert_allclose(found[1], r.value, atol=1e-4)


def test_it_refuses_a_negative_box():
  with pytest.raises(ValueError, match='robust_admm needs epsilon >= 0'):
    convex.robust_admm(
      jnp.eye(2), jnp.ones(2), jnp.ones((1, 2), bool), epsilon=-0.1,
      beta=0.1, rho=0.1, num_iterations=1,
    )  # fmt: skip
