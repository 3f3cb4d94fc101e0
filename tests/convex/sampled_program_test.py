import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import convex
from tests.convex import programs

RHO = {'squared': 0.3, 'hinge': 0.01, 'logistic': 0.03}


@pytest.mark.parametrize(  # less and more than n = 24 units
  'loss, count', [('squared', 40), ('hinge', 10), ('logistic', 10)]
)
def test_it_finds_the_optimum(loss, count):
  beta = 0.005 if loss == 'hinge' else 0.1
  with jax.enable_x64(True):
    x, y = programs.corners()
    y = programs.labels(loss, y, x)
    vectors = jax.random.normal(jax.random.key(2), (count, 3))
    state, history = convex.sampled_program(
      x, y, vectors, beta=beta, rho=RHO[loss], loss=loss, num_iterations=4000,
      record_every=1000,
    )  # fmt: skip
    expected = programs.solve_sampled(x, y, vectors, beta=beta, loss=loss)
    np.testing.assert_allclose(history[-1], expected, 1e-5)
    assert (state.weights == 0).any()
    # A network of balanced weights has this very objective.
    network = convex.sampled_network(state.weights, vectors)
    np.testing.assert_allclose(
      convex.network_objective(network, x, y, beta=beta, loss=loss),
      history[-1],
      1e-9,
    )


@pytest.mark.slow
def test_another_sample_seldom_helps_after_the_bound():
  # n = 3, psi = 0.5, xi = 0.5: 15 samples; the dual tells what would help.
  count = byzjax.theory.sampled_program_size(3, improvement=0.5, failure=0.5)
  assert count == 15
  with jax.enable_x64(True):
    x = jnp.array([[1.0, 0.2], [-0.5, 1.0], [0.3, -1.0]])
    y = jnp.array([1.0, -2.0, 0.5])
    fresh = jax.random.normal(jax.random.key(9), (500, 2))
    fresh /= jnp.linalg.norm(fresh, axis=1, keepdims=True)

    def share_that_helps(key):
      vectors = jax.random.normal(key, (count, 2))
      state, _ = convex.sampled_program(
        x, y, vectors, beta=0.1, rho=0.3, num_iterations=2000,
        record_every=2000,
      )  # fmt: skip
      network = convex.sampled_network(state.weights, vectors)
      residual = y - convex.network_outputs(network, x)
      found = jnp.abs(jax.nn.relu(x @ fresh.T).T @ residual)
      return jnp.mean(found > 0.1 + 1e-6)

    shares = jax.vmap(share_that_helps)(jax.random.split(jax.random.key(0), 40))
    assert jnp.mean(shares > 0.5) <= 0.5
    assert (shares > 0).any()


def test_the_bound_is_the_smaller_of_the_two():
  size = byzjax.theory.sampled_program_size
  # (n + 1) / (psi xi) - 1 and (2 / psi) (n + 1 - log xi), by hand.
  assert size(9, improvement=0.5, failure=1.0) == 19
  assert size(9, improvement=0.1, failure=np.exp(-5.0)) == 300
  with pytest.raises(ValueError, match='needs failure > 0 and failure <= 1'):
    size(9, improvement=0.1, failure=0.0)


def test_a_zero_vector_is_a_unit_that_does_nothing():
  x, y = jnp.array([[1.0, 2.0], [-1.0, 1.0], [3.0, 0.5]]), jnp.ones(3)
  vectors = jnp.array([[1.0, 1.0], [0.0, 0.0], [-1.0, 2.0]])
  with_it, without = (
    convex.sampled_program(x, y, h, beta=0.1, rho=1.0, num_iterations=20)[0]
    for h in (vectors, vectors[::2])
  )
  assert with_it.weights[1] == 0
  np.testing.assert_allclose(with_it.weights[::2], without.weights, rtol=1e-5)
  network = convex.sampled_network(with_it.weights, vectors)
  np.testing.assert_array_equal(network.hidden[:, 1], 0)


def test_it_refuses_vectors_of_another_length():
  with pytest.raises(ValueError, match=r'sampled_program needs x \[n, d\]'):
    convex.sampled_program(
      jnp.eye(2), jnp.ones(2), jnp.ones((4, 3)), beta=0.1, rho=0.1,
      num_iterations=1,
    )  # fmt: skip
