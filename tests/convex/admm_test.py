import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byzjax import convex
from byzjax.convex import _admm, _linear, _losses
from tests.convex import programs

# A good penalty and weight for each loss on `programs.corners`.
SETTINGS = {
  'squared': (0.01, 0.05),
  'hinge': (0.001, 0.01),
  'logistic': (0.001, 0.05),
}


def fit(x, y, patterns, *, num_iterations=4000, **options):
  options = {'record_every': 100, 'dual_ratio': 1.6, **options}
  return convex.admm(x, y, patterns, num_iterations=num_iterations, **options)


@pytest.mark.parametrize('loss', SETTINGS)
def test_it_finds_the_optimum_and_the_network_has_the_same_value(loss):
  rho, beta = SETTINGS[loss]
  with jax.enable_x64(True):
    x, y = programs.corners()
    y = programs.labels(loss, y, x)
    patterns = programs.patterns_of(x)
    state, history = fit(x, y, patterns, beta=beta, rho=rho, loss=loss)
    expected = programs.solve(x, y, patterns, beta=beta, loss=loss)
    np.testing.assert_allclose(history.objective[-1], expected, 1e-4)
    assert history.violation[-1] < 2e-4
    assert history.primal_residual[-1] < 1e-2 * history.primal_residual[0]
    assert history.dual_residual[-1] < 1e-5
    assert history.primal_residual[-1] < 1e-3
    network = convex.recover_network(state.blocks)
    np.testing.assert_allclose(
      convex.network_objective(network, x, y, beta=beta, loss=loss),
      convex.objective(state.blocks, x, y, patterns, beta=beta, loss=loss),
      1e-4,
    )

    def difference(blocks):
      network = convex.recover_network(blocks)
      outputs = convex.network_outputs(network, x)
      return jnp.abs(outputs - convex.predict(x, patterns, blocks)).max()

    assert difference(state.blocks) < 3e-4
    # Of an infeasible point the network is another model.
    moved = state.blocks + 1.0
    assert convex.violation(moved, x, patterns) > 0.1
    assert difference(moved) > 0.1


def test_all_weights_and_penalties_in_one_program():
  # Thresholds: from this weight on, and not just below it, nothing is left.
  with jax.enable_x64(True):
    x, y = programs.corners()
    patterns = programs.patterns_of(x)
    threshold = convex.zero_threshold(x, y, patterns)
    g = np.asarray(patterns * y[None], np.float64) @ np.asarray(x)
    expected = max(
      programs.projected_norm(x, pattern, sign * row)
      for pattern, row in zip(patterns, g)
      for sign in (1, -1)
    )
    np.testing.assert_allclose(threshold, expected, 1e-5)
    # It is that of the gradient at zero, which for these losses is shorter.
    for loss, factor in (('hinge', 1 / len(y)), ('logistic', 0.5)):
      np.testing.assert_allclose(
        convex.zero_threshold(x, y, patterns, loss=loss), factor * threshold
      )
    betas = threshold * jnp.array([1.1, 0.97, 0.1, 0.0])
    rhos = jnp.array([10.0, 10.0, 1.0, 0.03])
    state, history = jax.vmap(
      lambda beta, rho: fit(x, y, patterns, beta=beta, rho=rho)
    )(betas, rhos)
    assert not state.blocks[0].any()
    assert jnp.abs(state.blocks[1]).max() > 5e-3
    # Fits better as the weight falls.
    outputs = jax.vmap(lambda b: convex.predict(x, patterns, b))(state.blocks)
    losses = jnp.sum(jnp.square(outputs - y[None]), axis=1) / 2
    assert (jnp.diff(losses) < 0).all()
    np.testing.assert_allclose(history.objective[0, -1], len(y) / 2, 1e-12)


def test_without_a_weight_it_interpolates_distinct_points():
  with jax.enable_x64(True):
    x = jnp.array([[-2.0, 1], [-1.0, 1], [0.3, 1], [1.0, 1], [2.0, 1]])
    y = jnp.array([1.0, -1.0, 2.0, 0.0, 1.0])
    patterns = programs.patterns_of(x, 200)
    assert len(patterns) == 10  # all of them
    state, history = fit(x, y, patterns, beta=0.0, rho=0.01)
    assert history.objective[-1] < 1e-8
    network = convex.recover_network(state.blocks)
    np.testing.assert_allclose(convex.network_outputs(network, x), y, atol=1e-4)


def test_more_arrangements_are_never_worse_and_copies_change_nothing():
  with jax.enable_x64(True):
    x, y = programs.corners()
    patterns = programs.patterns_of(x, 12)[:8]
    found = []
    for count in (2, 4, 8):
      # Repeated to one shape: one program.
      repeated = np.tile(patterns[:count], (8 // count, 1))
      _, history = fit(x, y, repeated, beta=0.05, rho=0.1)
      found.append(float(history.objective[-1]))
    assert found[0] > found[1] > found[2]
    few = programs.solve(x, y, patterns[:2], beta=0.05, loss='squared')
    np.testing.assert_allclose(found[0], few, 1e-4)


@pytest.mark.slow
def test_gradient_descent_on_the_network_does_not_beat_it():
  with jax.enable_x64(True):
    x = jnp.linspace(-1, 1, 9)[:, None] * jnp.array([[1.0, 0.0]])
    x += jnp.array([[0.0, 1.0]])
    y = jnp.abs(x[:, 0]) + jnp.array([0.3, 0, 0, -0.3, 0, 0.3, 0, 0, 0.3])
    beta = 0.02
    patterns = programs.patterns_of(x, 1000)
    assert len(patterns) == 18  # all of them
    state, history = fit(x, y, patterns, beta=beta, rho=0.03)
    assert history.violation[-1] < 1e-5
    optimizer = optax.adam(optax.linear_schedule(0.03, 0.0, 4000))

    def train(key):
      keys = jax.random.split(key)
      network = convex.Network(
        jax.random.normal(keys[0], (2, 30)), jax.random.normal(keys[1], (30,))
      )

      def step(_, carry):
        network, state = carry
        gradient = jax.grad(
          lambda n: convex.network_objective(n, x, y, beta=beta)
        )(network)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(network, updates), state

      network, _ = jax.lax.fori_loop(
        0, 4000, step, (network, optimizer.init(network))
      )
      return convex.network_objective(network, x, y, beta=beta)

    by_adam = jax.vmap(train)(jax.random.split(jax.random.key(0), 3))
    optimum = history.objective[-1]
    assert (by_adam > optimum - 1e-6).all()
    assert by_adam.min() < 1.1 * optimum


@pytest.mark.parametrize('shape', [(6, 5, 3), (40, 5, 3)])
@pytest.mark.parametrize('slope_terms', [False, True])
def test_the_linear_system_is_the_one_of_the_paper(shape, slope_terms):
  # Fewer examples than dimensions, and more.
  n, p, d = shape
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, rhs = random.normal(size=(n, d)), random.normal(size=(2, p, d))
    masks = (random.normal(size=(p, n)) > 0).astype(float)
    half = np.concatenate([m[:, None] * x for m in masks], axis=1)
    f = np.concatenate([half, -half], axis=1)
    g = np.zeros((2 * p * n, 2 * p * d))
    for i in range(2 * p):
      block = (2 * masks[i % p] - 1)[:, None] * x
      g[i * n : (i + 1) * n, i * d : (i + 1) * d] = block
    matrix = np.eye(2 * p * d) + 7 * f.T @ f + g.T @ g
    if slope_terms:
      m = np.kron(masks.T, np.eye(d))
      m = np.concatenate([m, -m], axis=1)
      matrix += m.T @ m
    expected = np.linalg.solve(matrix, rhs.reshape(-1)).reshape(rhs.shape)
    x, masks = jnp.asarray(x), jnp.asarray(masks)
    factors = _linear.factorize(x, masks, 7.0, slope_terms=slope_terms)
    assert (factors.examples is None) == (slope_terms or n > p * d)
    found = _linear.solve(factors, x, masks, jnp.asarray(rhs))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('loss', SETTINGS)
@pytest.mark.parametrize('weight', [0.01, 1.0, 300.0, 1e8])
def test_proximal_maps_are_least_among_their_neighbours(loss, weight):
  with jax.enable_x64(True):
    a = jnp.concatenate([jnp.linspace(-500, 500, 41), jnp.linspace(-3, 3, 41)])
    y = jnp.where(jnp.arange(82) % 2 == 0, 1.0, -1.0)

    def value(z):
      # Of each example alone: hinge is a mean, so it counts n times.
      of_one = jax.vmap(lambda z, y: _losses.total(loss, z[None], y[None]))
      return weight * of_one(z, y) + jnp.square(z - a) / 2

    z = _losses.proximal(loss, a, y, weight)
    for step in (1e-3, -1e-3):
      assert (value(z) <= value(z + step) + 1e-9).all()


def test_going_on_is_as_one_run_and_compiles_once():
  x, y = programs.corners()
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  patterns = jnp.asarray(programs.patterns_of(x))
  options = {'beta': 0.05, 'rho': 0.1}
  whole, history = convex.admm(x, y, patterns, num_iterations=40, **options)
  state = jax.tree.map(jnp.zeros_like, whole)._replace(fits=y)
  found = []
  for _ in range(2):
    state, half = convex.admm(
      x, y, patterns, num_iterations=20, state=state, **options
    )
    found.append(half.objective)
    found_count = _admm._run._cache_size()
  convex.admm(x, y, patterns, num_iterations=20, state=state, **options)
  assert _admm._run._cache_size() == found_count
  assert state.blocks.dtype == jnp.float32
  np.testing.assert_allclose(state.blocks, whole.blocks, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    jnp.concatenate(found), history.objective, rtol=1e-4
  )


def test_samples_are_distinct_nested_and_contain_perturbed_ones():
  x, _ = programs.corners()
  few, many = programs.patterns_of(x, 4), programs.patterns_of(x, 12)
  np.testing.assert_array_equal(many[: len(few)], few)
  assert len(np.unique(many, axis=0)) == len(many)
  perturbed = programs.patterns_of(x, 4, epsilon=0.5, num_perturbations=3)
  rows = {row.tobytes() for row in perturbed}
  assert rows > {row.tobytes() for row in few}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'loss': 'absolute'}, 'needs loss to be one of'),
    ({'loss': 'hinge', 'y': jnp.array([0.0, 1.0])}, 'needs y to be -1 or 1'),
    ({'beta': -1.0}, 'needs beta >= 0'),
    ({'rho': 0.0}, 'needs rho > 0'),
    ({'dual_ratio': 2.0}, 'dual_ratio <= 1.618'),
    ({'num_iterations': 1.5}, 'needs num_iterations to be a Python int'),
    ({'record_every': 3}, 'needs record_every to divide num_iterations'),
    ({'y': jnp.ones(3)}, r'needs x \[n, d\], y \[n\]'),
    ({'arrangements': jnp.ones((4, 3), bool)}, r'arrangements \[P, n\]'),
  ],
)
def test_it_refuses(change, message):
  arguments = {
    'x': jnp.eye(2),
    'y': jnp.ones(2),
    'arrangements': jnp.ones((4, 2), bool),
    'beta': 0.1,
    'rho': 0.1,
    'num_iterations': 10,
  }
  with pytest.raises(ValueError, match=f'admm.*{message}'):
    convex.admm(**(arguments | change))
