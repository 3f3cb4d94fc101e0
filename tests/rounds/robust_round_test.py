"""What a round computes, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import reference
from tests.rounds import problem

N, KEY = problem.N, problem.KEY


def _step(rounds, batch=None, state=None, params=None):
  batch = problem.batch() if batch is None else batch
  params = problem.params() if params is None else params
  state = rounds.init(params) if state is None else state
  return jax.jit(rounds.step)(state, batch, KEY)


def _gradients(params, batch):
  grads = jax.vmap(jax.grad(problem.loss_fn), (None, 0))(params, batch)
  return np.stack(
    [problem.flat(jax.tree.map(lambda g, i=i: g[i], grads)) for i in range(N)]
  )


def _moved(state, params=None):
  params = problem.params() if params is None else params
  return problem.flat(state.params) - problem.flat(params)


# The formula.


def test_rounds_are_momentum_attack_rule_and_step():
  rounds = problem.training(
    aggregator=byzjax.trimmed_mean(num_byzantine=3),
    worker=byzjax.worker_momentum(0.9),
    attack=byzjax.alie(),
    byzantine=3,
  )
  params, momenta = problem.params(), None
  state, step = rounds.init(params), jax.jit(rounds.step)
  for t in range(4):
    batch = problem.batch(seed=t)
    gradients = _gradients(state.params, batch)
    momenta = gradients if t == 0 else 0.9 * momenta + 0.1 * gradients
    sent = momenta.copy()
    sent[:3] = reference.alie(momenta[3:], reference.alie_factor(N, 3))
    aggregate = reference.trimmed_mean(sent, 3)
    expected = problem.flat(state.params) - 0.1 * aggregate
    state, info = step(state, batch, KEY)
    np.testing.assert_allclose(problem.flat(state.params), expected, 1e-5, 1e-6)
    error = np.linalg.norm(aggregate - momenta[3:].mean(axis=0))
    np.testing.assert_allclose(info.aggregation_error, error, 1e-4, 1e-6)
  assert step._cache_size() == 1
  assert int(state.step) == 4


def test_info():
  rounds = problem.training(
    aggregator=byzjax.centered_clipping(radius=1.0),
    attack=byzjax.constant(value=jnp.nan),
    byzantine=jnp.arange(N) % 5 == 2,
  )
  _, info = _step(rounds)
  bad = np.arange(N) % 5 == 2
  losses = jax.vmap(problem.loss_fn, (None, 0))(
    problem.params(), problem.batch()
  )
  np.testing.assert_allclose(info.loss, np.asarray(losses)[~bad].mean(), 1e-5)
  np.testing.assert_array_equal(info.is_byzantine, bad)
  np.testing.assert_array_equal(info.masked, bad)
  assert int(info.num_nonfinite) == 3
  assert (np.asarray(info.weights)[bad] == 0).all()
  assert (np.asarray(info.weights)[~bad] > 0).all()
  size = len(problem.flat(problem.params()))
  assert float(info.bits_up) == float(info.bits_down) == 32 * size * N


def test_mean_without_attack_has_no_error_and_no_mask():
  _, info = _step(problem.training())
  np.testing.assert_allclose(info.aggregation_error, 0, atol=1e-6)
  assert int(info.num_nonfinite) == 0 and not info.masked.any()
  assert not info.is_byzantine.any()


def test_coordinate_rules_report_the_mask_too():
  rounds = problem.training(
    aggregator=byzjax.coordinate_median(),
    attack=byzjax.constant(value=jnp.inf),
    byzantine=2,
  )
  _, info = _step(rounds)
  assert info.weights is None
  np.testing.assert_array_equal(info.masked, np.arange(N) < 2)


@pytest.mark.parametrize(
  'aggregator',
  [
    byzjax.coordinate_median(),
    byzjax.krum(num_byzantine=3),
    byzjax.centered_clipping(radius=1.0),
  ],
  ids=['median', 'krum', 'centered_clipping'],
)
@pytest.mark.parametrize('devices', [None, 8])
def test_an_honest_worker_with_a_nan_gradient_is_survived(aggregator, devices):
  images, labels = problem.batch()
  images = images.at[9].set(jnp.nan)
  mesh = devices and problem.mesh(devices)
  rounds = problem.training(aggregator=aggregator, mesh=mesh)
  state, info = _step(rounds, (images, labels))
  assert np.isfinite(problem.flat(state.params)).all()
  assert np.linalg.norm(_moved(state)) > 1e-3
  np.testing.assert_array_equal(info.masked, np.arange(N) == 9)


def test_all_messages_bad_keeps_the_parameters():
  images, labels = problem.batch()
  rounds = problem.training(aggregator=byzjax.krum(num_byzantine=3))
  state, info = _step(rounds, (images * jnp.nan, labels))
  np.testing.assert_array_equal(_moved(state), 0)
  assert int(info.num_nonfinite) == N


# Who attacks, and with what.


@pytest.mark.parametrize(
  'byzantine',
  [
    3,
    np.arange(N) < 3,
    jnp.arange(N) < 3,
    lambda step: jnp.arange(N) < 3 + 0 * step,
  ],
  ids=['int', 'numpy mask', 'mask', 'schedule'],
)
def test_byzantine_in_all_its_forms(byzantine):
  rounds = problem.training(
    attack=byzjax.constant(value=7.0),
    optimizer=optax.sgd(1.0),
    byzantine=byzantine,
  )
  state, info = _step(rounds)
  np.testing.assert_array_equal(info.is_byzantine, np.arange(N) < 3)
  gradients = _gradients(problem.params(), problem.batch())
  gradients[:3] = 7
  np.testing.assert_allclose(_moved(state), -gradients.mean(axis=0), 1e-5, 1e-6)


def test_random_byzantine_redraws_f_attackers_in_every_step():
  schedule = byzjax.random_byzantine(N, 5, jax.random.key(0))
  masks = np.asarray(jax.vmap(schedule)(jnp.arange(200)))
  assert (masks.sum(axis=1) == 5).all()
  assert len({tuple(mask) for mask in masks}) > 150
  # 200 draws with probability 5/16: five standard deviations.
  assert np.abs(masks.sum(axis=0) - 62.5).max() < 5 * np.sqrt(200 * 0.215)
  rounds = problem.training(
    attack=byzjax.sign_flip(scale=1.0), byzantine=schedule
  )
  _, infos = problem.scan(rounds, problem.batches(5))
  np.testing.assert_array_equal(infos.is_byzantine, masks[:5])


@pytest.mark.parametrize('devices', [None, 8])
def test_random_byzantine_is_the_same_on_a_mesh(devices):
  schedule = byzjax.random_byzantine(N, 5, jax.random.key(0))
  mesh = devices and problem.mesh(devices)
  rounds = problem.training(attack=byzjax.alie(), byzantine=schedule, mesh=mesh)
  _, info = _step(rounds)
  np.testing.assert_array_equal(info.is_byzantine, schedule(0))


@pytest.mark.parametrize('byzantine_chain', [True, False])
def test_attackers_keep_a_momentum_of_their_own_or_not(byzantine_chain):
  rounds = problem.training(
    aggregator=problem.select(0),
    worker=byzjax.worker_momentum(0.9),
    attack=byzjax.sign_flip(scale=2.0, own=True),
    byzantine=1,
    byzantine_chain=byzantine_chain,
    optimizer=optax.sgd(1.0),
  )
  state, _ = _step(rounds)
  first = _gradients(problem.params(), problem.batch())[0]
  before, batch = state.params, problem.batch(seed=1)
  second = _gradients(before, batch)[0]
  state, _ = _step(rounds, batch, state)
  sent = 0.9 * first + 0.1 * second if byzantine_chain else second
  np.testing.assert_allclose(_moved(state, before), 2 * sent, 1e-4, 1e-5)


@pytest.mark.parametrize('devices', [None, 8])
@pytest.mark.parametrize('worker, flips', [(1, True), (14, False)])
def test_label_flip_as_an_attack(worker, flips, devices):
  rounds = problem.training(
    aggregator=problem.select(worker),
    attack=byzjax.label_flip(3),
    byzantine=3,
    optimizer=optax.sgd(1.0),
    mesh=devices and problem.mesh(devices),
  )
  state, info = _step(rounds)
  images, labels = jax.tree.map(lambda x: x[worker], problem.batch())
  labels = reference.label_flip(labels, 3) if flips else labels
  gradient = jax.grad(problem.loss_fn)(problem.params(), (images, labels))
  np.testing.assert_allclose(_moved(state), -problem.flat(gradient), 1e-5, 1e-6)
  losses = jax.vmap(problem.loss_fn, (None, 0))(
    problem.params(), problem.batch()
  )
  np.testing.assert_allclose(info.loss, np.mean(losses[3:]), 1e-5)


# Randomness.


def test_the_key_is_folded_with_the_step():
  rounds = problem.training(
    attack=byzjax.gaussian(std=1.0),
    byzantine=3,
    optimizer=optax.set_to_zero(),
  )
  state = rounds.init(problem.params())
  step = jax.jit(rounds.step)
  state, first = step(state, problem.batch(), KEY)
  _, second = step(state, problem.batch(), KEY)
  _, again = step(state, problem.batch(), KEY)
  _, other = step(state, problem.batch(), jax.random.key(99))
  errors = [float(i.aggregation_error) for i in (first, second, again, other)]
  assert errors[1] == errors[2]
  assert len(set(errors)) == 3


# Transformations.

ROBUST = dict(
  aggregator=byzjax.centered_clipping(radius=1.0),
  worker=byzjax.worker_momentum(0.9),
  attack=byzjax.gaussian(std=0.5),
  byzantine=3,
  optimizer=optax.adam(0.01),
)


def test_scan_equals_a_python_loop():
  rounds, batches = problem.training(**ROBUST), problem.batches(5)
  state, infos = problem.scan(rounds, batches)
  looped, step = rounds.init(problem.params()), jax.jit(rounds.step)
  for t in range(5):
    batch = jax.tree.map(lambda x, t=t: x[t], batches)
    looped, info = step(looped, batch, KEY)
    np.testing.assert_allclose(infos.loss[t], info.loss, 1e-5)
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(looped.params), 1e-5, 1e-6
  )
  assert step._cache_size() == 1


def test_seeds_in_one_vmap_equal_separate_runs():
  rounds, batches = problem.training(**ROBUST), problem.batches(3)
  keys = jax.random.split(jax.random.key(5), 3)
  seeds = [problem.params(seed) for seed in range(3)]

  def run(params, key):
    step = functools.partial(rounds.step, key=key)
    return jax.lax.scan(step, rounds.init(params), batches)[0].params

  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
  together = jax.jit(jax.vmap(run))(stacked, keys)
  one = jax.jit(run)
  for i in range(3):
    np.testing.assert_allclose(
      problem.flat(jax.tree.map(lambda x, i=i: x[i], together)),
      problem.flat(one(seeds[i], keys[i])),
      1e-5,
      1e-6,
    )


def test_worker_map_is_a_choice_of_speed_only():
  results = []
  # Chunks of 5 do not divide 16 workers.
  for worker_map in ('vmap', 'map', 5):
    rounds = problem.training(aggregator=byzjax.mean(), worker_map=worker_map)
    results.append(problem.scan(rounds, problem.batches(3))[0].params)
  for result in results[1:]:
    np.testing.assert_allclose(
      problem.flat(result), problem.flat(results[0]), 1e-6, 1e-6
    )


def test_worker_map_on_a_mesh():
  results = []
  for mesh in (None, problem.mesh(8)):
    rounds = problem.training(**ROBUST, worker_map='map', mesh=mesh)
    results.append(problem.scan(rounds, problem.batches(3))[0].params)
  np.testing.assert_allclose(*map(problem.flat, results), 1e-5, 1e-6)


def test_a_round_can_be_built_inside_jit():
  mask = jnp.arange(N) < 3

  @jax.jit
  def run(params):
    rounds = problem.training(attack=byzjax.alie(z=1.0), byzantine=mask)
    return rounds.step(rounds.init(params), problem.batch(), KEY)[0].params

  rounds = problem.training(attack=byzjax.alie(z=1.0), byzantine=mask)
  expected, _ = _step(rounds)
  np.testing.assert_allclose(
    problem.flat(run(problem.params())),
    problem.flat(expected.params),
    1e-5,
    1e-6,
  )


def test_weakly_typed_parameters_compile_once():
  def loss_fn(params, batch):
    return jnp.mean((params[None] - batch) ** 2)

  rounds = byzjax.robust_round(
    loss_fn,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.1),
    num_workers=2,
  )
  state, step = rounds.init(jnp.full(3, 0.5)), jax.jit(rounds.step)
  for _ in range(3):
    state, _ = step(state, jnp.ones((2, 4, 3)), KEY)
  assert step._cache_size() == 1


@pytest.mark.parametrize(
  ('dtype_name', 'devices'),
  [
    ('bfloat16', None),
    ('float64', 8),
    pytest.param('bfloat16', 8, marks=pytest.mark.slow),
    pytest.param('float64', None, marks=pytest.mark.slow),
  ],
)
def test_parameters_keep_their_dtype(dtype_name, devices):
  with jax.enable_x64(dtype_name == 'float64'):
    dtype = jnp.dtype(dtype_name)
    params = problem.params(dtype=dtype)
    rounds = problem.training(**ROBUST, mesh=devices and problem.mesh(devices))
    before = rounds.init(params)
    state, info = _step(rounds, state=before)
    describe = functools.partial(
      jax.tree.map, lambda x: (x.shape, x.dtype, x.weak_type)
    )
    assert describe(state) == describe(before)
    assert all(x.dtype == dtype for x in jax.tree.leaves(state.params))
    assert state.workers.momentum.dtype == (
      jnp.float64 if dtype_name == 'float64' else jnp.float32
    )
    moved = np.abs(_moved(state, params))
    assert 0 < moved.max() < 0.02 and np.isfinite(info.loss)


def test_float64_rounds_are_accurate_in_float64():
  with jax.enable_x64(True):
    params = problem.params(dtype=jnp.float64)
    rounds = problem.training(
      aggregator=byzjax.geometric_median(), optimizer=optax.sgd(1.0)
    )
    state, _ = _step(rounds, params=params)
    images, labels = problem.batch()
    gradients = _gradients(params, (images, labels))
    expected = -reference.geometric_median(gradients)
    np.testing.assert_allclose(_moved(state, params), expected, 1e-9, 1e-10)
