"""Delta-SGD: the step sizes of the paper on problems of known curvature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax


def _descend(gradient_fn, start, batches, tx=None):
  """A round of local steps: the parameters, and the states after each step.

  `gradient_fn: (params, batch) -> gradient`, batches have leaves [steps, ...].
  """
  tx = byzjax.scale_by_delta_sgd() if tx is None else tx

  def step(carry, batch):
    params, state = carry
    on_batch = functools.partial(gradient_fn, batch=batch)
    updates, state = tx.update(
      on_batch(params), state, params, gradient_fn=on_batch
    )
    return (optax.apply_updates(params, updates), state), state

  run = jax.jit(functools.partial(jax.lax.scan, step))
  (params, _), states = run((start, tx.init(start)), batches)
  return params, states


def _step_sizes(curvature, num_steps, **kwargs):
  """Of the loss `sum(curvature * x**2) / 2`."""
  curvature = jnp.asarray(curvature, jnp.float32)
  return np.asarray(
    _descend(
      lambda x, batch: curvature * x,
      jnp.ones_like(curvature),
      jnp.zeros(num_steps),
      byzjax.scale_by_delta_sgd(**kwargs),
    )[1].step_size
  )


# Known step sizes.


def test_known_step_sizes_on_isotropic_quadratics():
  flat = _step_sizes([1.0, 1.0], 5)
  np.testing.assert_allclose(
    flat, [0.2, 0.2098, 0.2205, 0.2318, 0.2437], atol=5e-5
  )
  # Two steps lead to the minimum, in powers of two and so without rounding; two
  # steps later, when the iterate has not moved, growth sets in again.
  steep = _step_sizes([8.0, 8.0], 5, initial_step_size=0.25)
  np.testing.assert_allclose(
    steep, [0.25, 0.125, 0.125, 0.1311, 0.1378], atol=5e-5
  )


@pytest.mark.parametrize(
  ('damping', 'rate'), [(0.1, 1.0512), (0.02, 1.0100), (1.0, 1.6180)]
)
def test_growth_without_curvature(damping, rate):
  eta = _step_sizes([0.0], 60, damping=damping)
  np.testing.assert_allclose(eta[-1] / eta[-2], rate, atol=5e-5)
  assert eta[0] == np.float32(0.2)


def test_eight_local_steps_reach_the_known_largest_step_size():
  np.testing.assert_allclose(_step_sizes([0.0], 8)[-1], 0.283, atol=5e-4)
  # The authors' code takes the first step by the growth rule.
  s = np.sqrt(1.1)
  code = _step_sizes([0.0], 8, initial_step_size=0.2 * s, initial_ratio=s)
  np.testing.assert_allclose(code[:2], [0.2098, 0.2205], atol=5e-5)
  np.testing.assert_allclose(code[-1], 0.298, atol=5e-4)


def test_the_first_step_does_not_look_at_the_curvature():
  x, states = _descend(lambda x, batch: 1e4 * x, jnp.ones(2), jnp.zeros(1))
  np.testing.assert_allclose(x, np.full(2, 1 - 0.2 * 1e4), 1e-6)
  assert states.ratio[0] == 1


@pytest.mark.parametrize('gamma', [0.5, 1.5])
def test_the_cap_on_quadratics(gamma):
  large = dict(gamma=gamma, initial_step_size=0.5, damping=1e6)
  capped = _step_sizes([4.0, 4.0], 2, **large)[1:]
  np.testing.assert_allclose(capped, gamma / (2 * 4), 1e-5)
  eta = _step_sizes([0.5, 2.0, 8.0], 9, **large)[1:]
  assert (eta >= gamma / (2 * 8) * (1 - 1e-4)).all()
  assert (eta <= gamma / (2 * 0.5) * (1 + 1e-4)).all()
  assert eta.max() > 1.02 * eta.min()


# A problem with noise: linear regression, another batch in every step.


def _regression(seed=0, num_steps=12):
  random = np.random.default_rng(seed)
  scales = np.array([1.0, 0.3, 3.0, 1.0, 2.0])
  features = random.normal(size=(num_steps, 3, 5)) * scales
  targets = features @ random.normal(size=5) + random.normal(
    size=[num_steps, 3]
  )
  return features, targets


def _regression_gradient(x, batch):
  features, targets = batch
  return (features @ x - targets) @ features / 3


def _reference(gradient_fn, x, batches, eta, gamma, damping, ratio):
  """The loop of the paper."""
  sizes, previous = [], None
  for batch in zip(*batches):
    g = gradient_fn(x, batch)
    if previous is not None:
      dx = np.linalg.norm(x - previous)
      dg = np.linalg.norm(g - gradient_fn(previous, batch))
      new = min(gamma * dx / (2 * dg), np.sqrt(1 + damping * ratio) * eta)
      eta, ratio = new, new / eta
    previous, x = x, x - eta * g
    sizes.append(eta)
  return x, sizes


@pytest.mark.parametrize(
  'arguments',
  [
    {},
    dict(initial_step_size=1.0),
    dict(gamma=0.8, damping=0.5, initial_ratio=3.0),
    dict(damping=0.0),
  ],
)
def test_is_the_loop_of_the_paper(arguments):
  batches = _regression()
  with jax.enable_x64(True):
    x, states = _descend(
      _regression_gradient,
      jnp.zeros(5),
      jax.tree.map(jnp.asarray, batches),
      byzjax.scale_by_delta_sgd(**arguments),
    )
  full = dict(initial_step_size=0.2, gamma=2.0, damping=0.1, initial_ratio=1.0)
  expected, sizes = _reference(
    _regression_gradient, np.zeros(5), batches, *(full | arguments).values()
  )
  assert np.asarray(x).dtype == states.step_size.dtype == np.float64
  np.testing.assert_allclose(states.step_size, sizes, 1e-10)
  np.testing.assert_allclose(x, expected, 1e-8)
  assert len(set(np.round(sizes, 9))) >= 3


def test_laws_of_the_step_size():
  batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _regression(1))
  _, states = _descend(_regression_gradient, jnp.zeros(5), batches)
  eta, theta = np.float64(states.step_size), np.float64(states.ratio)
  np.testing.assert_allclose(theta[1:], eta[1:] / eta[:-1], 1e-5)
  assert (
    eta[1:] <= np.sqrt(1 + 0.1 * theta[:-1]) * eta[:-1] * (1 + 1e-6)
  ).all()
  assert (np.diff(eta) > 0).any() and (np.diff(eta) < 0).any()
  never = byzjax.scale_by_delta_sgd(damping=0.0)
  _, states = _descend(_regression_gradient, jnp.zeros(5), batches, never)
  assert (np.diff(states.step_size) <= 0).all()


def test_infinite_gamma_without_growth_is_sgd():
  batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _regression(2))
  tx = byzjax.scale_by_delta_sgd(
    initial_step_size=0.01, gamma=float('inf'), damping=0.0
  )
  x, states = _descend(_regression_gradient, jnp.zeros(5), batches, tx)
  sgd = optax.with_extra_args_support(optax.sgd(0.01))
  expected, _ = _descend(_regression_gradient, jnp.zeros(5), batches, sgd)
  np.testing.assert_array_equal(x, expected)
  assert (states.step_size == np.float32(0.01)).all()


def test_scaling_the_loss_scales_the_steps_inversely():
  batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _regression(3))
  x, states = _descend(_regression_gradient, jnp.zeros(5), batches)
  # A power of two: the same trajectory, to the bit.
  scaled, scaled_states = _descend(
    lambda x, batch: 8 * _regression_gradient(x, batch),
    jnp.zeros(5),
    batches,
    byzjax.scale_by_delta_sgd(initial_step_size=0.2 / 8),
  )
  np.testing.assert_allclose(
    8 * scaled_states.step_size, states.step_size, 1e-6
  )
  np.testing.assert_allclose(scaled, x, 1e-5)


def test_rotations_rotate_the_trajectory():
  features, targets = _regression(4)
  q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
  with jax.enable_x64(True):
    x, states = _descend(
      _regression_gradient, jnp.zeros(5), (features, targets)
    )
    rotated, rotated_states = _descend(
      _regression_gradient, jnp.zeros(5), (features @ q.T, targets)
    )
  np.testing.assert_allclose(rotated_states.step_size, states.step_size, 1e-9)
  np.testing.assert_allclose(rotated, q @ np.asarray(x), 1e-7, 1e-9)


def test_norms_are_over_all_leaves():
  batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _regression(5))
  x, states = _descend(_regression_gradient, jnp.zeros(5), batches)

  def tree_gradient(params, batch):
    joined = jnp.concatenate([params['a'].ravel(), params['b']])
    g = _regression_gradient(joined, batch)
    return {'a': g[:4].reshape(2, 2), 'b': g[4:]}

  start = {'a': jnp.zeros((2, 2)), 'b': jnp.zeros(1)}
  tree, tree_states = _descend(tree_gradient, start, batches)
  np.testing.assert_allclose(tree_states.step_size, states.step_size, 1e-5)
  np.testing.assert_allclose(tree['a'].ravel(), x[:4], 1e-4, 1e-6)


def test_a_new_state_begins_again():
  batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _regression(6))
  x, first = _descend(_regression_gradient, jnp.zeros(5), batches)
  _, second = _descend(_regression_gradient, x, batches)
  for states in (first, second):
    assert states.step_size[0] == np.float32(0.2) and states.ratio[0] == 1
  assert first.step_size[-1] != np.float32(0.2)


def test_one_gradient_more_per_step():
  calls = []

  def gradient_fn(x):
    calls.append(x)
    return 3 * x

  tx = byzjax.scale_by_delta_sgd()
  x = jnp.ones(2)
  state = tx.init(x)
  for _ in range(4):
    previous = state.previous_params
    update, state = tx.update(3 * x, state, x, gradient_fn=gradient_fn)
    np.testing.assert_array_equal(calls[-1], previous)
    x = x + update
  assert len(calls) == 4


# Numbers at the edge.


def test_no_gradient_for_ever_stays_finite():
  eta = _step_sizes([0.0, 0.0], 3000)
  assert np.isfinite(eta).all() and eta[-1] > 1e30


@pytest.mark.parametrize('curvature', [1e18, 1e25, 1e36])
def test_enormous_curvature_stays_finite(curvature):
  eta = _step_sizes([curvature], 6)
  assert (eta > 0).all() and np.isfinite(eta).all()


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf, 1e30])
def test_one_bad_gradient_leaves_the_step_size_finite(bad):
  def gradient_fn(x, batch):
    return jnp.where(batch == 2, bad, x)

  tx = byzjax.scale_by_delta_sgd()
  x, state = jnp.ones(2), tx.init(jnp.ones(2))
  for k in range(5):
    on_batch = functools.partial(gradient_fn, batch=k)
    update, state = tx.update(on_batch(x), state, x, gradient_fn=on_batch)
    x = jnp.where(jnp.isfinite(update), x + update, x)
    assert np.isfinite(state.step_size) and state.step_size > 0


def test_half_precision_keeps_its_dtype():
  tx = byzjax.scale_by_delta_sgd()
  x = jnp.ones(300, jnp.bfloat16)
  state = tx.init(x)
  for _ in range(2):
    update, state = tx.update(x, state, x, gradient_fn=lambda x: x)
    assert update.dtype == state.previous_params.dtype == jnp.bfloat16
    x = x + update
  assert state.step_size.dtype == np.float32
  np.testing.assert_allclose(state.step_size, 0.2098, atol=5e-5)


# As an optax transform.


def test_no_recompilation_and_stable_types():
  tx = byzjax.scale_by_delta_sgd()

  @jax.jit
  def update(x, state):
    return tx.update(2 * x, state, x, gradient_fn=lambda x: 2 * x)

  x = jnp.full(3, 1.0)
  assert x.weak_type
  state = tx.init(x)
  for _ in range(3):
    types = jax.tree.map(jax.typeof, state)
    _, state = update(x, state)
    assert jax.tree.map(jax.typeof, state) == types
    x = x / 2
  assert update._cache_size() == 1


def test_a_sweep_in_one_program():
  def run(eta, gamma, damping, ratio):
    return _descend(
      lambda x, batch: jnp.array([1.0, 4.0]) * x,
      jnp.ones(2),
      jnp.zeros(6),
      byzjax.scale_by_delta_sgd(
        initial_step_size=eta,
        gamma=gamma,
        damping=damping,
        initial_ratio=ratio,
      ),
    )[1].step_size

  arguments = jnp.array(
    [[0.1, 0.5], [2.0, jnp.inf], [0.1, 0.3], [1.0, 2.0]], jnp.float32
  )
  swept = jax.vmap(run)(*arguments)
  for i in range(2):
    alone = run(*[float(a[i]) for a in arguments])
    np.testing.assert_allclose(swept[i], alone, 1e-5)


def test_in_a_chain_with_other_arguments():
  tx = optax.chain(byzjax.scale_by_delta_sgd(), optax.clip(0.1))
  x = jnp.ones(2)
  update, _ = tx.update(
    x, tx.init(x), x, gradient_fn=lambda x: x, statistic=None
  )
  np.testing.assert_allclose(update, [-0.1, -0.1], 1e-6)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (dict(initial_step_size=0.0), 'initial_step_size > 0, got 0.0'),
    (dict(gamma=0.0), 'gamma > 0, got 0.0'),
    (dict(damping=-0.1), 'damping >= 0, got -0.1'),
    (dict(initial_ratio=-1.0), 'initial_ratio >= 0, got -1.0'),
    (dict(gamma=float('nan')), 'gamma > 0, got nan'),
  ],
)
def test_refusals(arguments, message):
  with pytest.raises(ValueError, match=f'scale_by_delta_sgd needs {message}'):
    byzjax.scale_by_delta_sgd(**arguments)


def test_refuses_updates_without_what_it_needs():
  tx = byzjax.scale_by_delta_sgd()
  x = jnp.ones(2)
  with pytest.raises(ValueError, match='gradient_fn.*got None'):
    tx.update(x, tx.init(x), x)
  with pytest.raises(ValueError, match='params.*got None'):
    tx.update(x, tx.init(x), gradient_fn=lambda x: x)
