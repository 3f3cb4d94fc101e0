"""STORM on workers, against a loop in NumPy and what is known of its error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N, D = 6, 4
RNG = np.random.default_rng(0)
CURVATURE = RNG.uniform(0.2, 1.0, size=D)
NOISE = RNG.normal(size=(20, N, D))
START = np.linspace(1, 2, D)


def loss_fn(w, noise):
  """Its gradient is `curvature w + noise`."""
  return jnp.sum(w * w * CURVATURE) / 2 + jnp.sum(w * noise)


def make_round(decay, loss_fn=loss_fn, **options):
  arguments = {
    'num_workers': N,
    'aggregator': byzjax.mean(),
    'optimizer': optax.sgd(0.2),
    **options,
  }
  return byzjax.robust_round(
    loss_fn, value_and_grad=byzjax.storm(loss_fn, decay=decay), **arguments
  )


def run(round, num_rounds=20):
  state, step = round.init(jnp.asarray(START, jnp.float32)), jax.jit(round.step)
  path = [state.params]
  for t in range(num_rounds):
    state, info = step(state, jnp.float32(NOISE[t]), jax.random.key(0))
    path.append(state.params)
  return np.stack(path), state, info


def expected(decay, num_rounds=20, present=None):
  """`[T + 1, D]`; a worker that is away keeps what it has."""
  if present is None:
    present = np.ones((num_rounds, N), bool)
  w, m = START.copy(), np.zeros((N, D))
  previous, seen = np.tile(w, (N, 1)), np.zeros(N, bool)
  path = [w]
  for t in range(num_rounds):
    for i in np.flatnonzero(present[t]):
      new = CURVATURE * w + NOISE[t, i]
      old = CURVATURE * previous[i] + NOISE[t, i]
      m[i] = new + decay * (m[i] - old) if seen[i] else new
      previous[i], seen[i] = w, True
    w = w - 0.2 * m[present[t]].mean(axis=0)
    path.append(w)
  return np.stack(path)


@pytest.mark.parametrize('worker_map', ['vmap', 'map'])
def test_equals_a_loop(worker_map):
  path, _, info = run(make_round(0.8, worker_map=worker_map))
  np.testing.assert_allclose(path, expected(0.8), 1e-4, 1e-5)
  assert int(info.num_gradients) == 2


def test_without_memory_it_is_the_gradient():
  plain = byzjax.robust_round(
    loss_fn, num_workers=N, aggregator=byzjax.mean(), optimizer=optax.sgd(0.2)
  )
  np.testing.assert_allclose(run(make_round(0.0))[0], run(plain)[0], 1e-5, 1e-6)


@pytest.mark.parametrize('decay', [0.5, 0.99, 1.0])
def test_without_noise_it_is_the_exact_gradient(decay):
  round = make_round(decay, lambda w, noise: loss_fn(w, 0 * noise))
  exact = [START * (1 - 0.2 * CURVATURE) ** t for t in range(21)]
  np.testing.assert_allclose(run(round)[0], exact, 1e-5, 1e-6)


def test_at_rest_it_is_worker_momentum():
  still = {'optimizer': optax.set_to_zero()}
  storm = run(make_round(0.9, **still))[1].workers.estimator.momentum
  heavy = byzjax.robust_round(
    loss_fn,
    num_workers=N,
    aggregator=byzjax.mean(),
    worker=byzjax.worker_momentum(0.9),
    **still,
  )
  momentum = run(heavy)[1].workers.momentum
  np.testing.assert_allclose(storm, momentum, 1e-5, 1e-6)


def test_its_error_does_not_know_how_fast_the_parameters_move():
  # A straight line at any speed: momentum lags behind by beta / (1 - beta)
  # steps, and the error of STORM is that of the noise alone.
  def errors(speed, worker):
    moving = optax.stateless(lambda g, params: g * 0 + speed)
    round = (
      make_round(0.9, optimizer=moving)
      if worker is None
      else byzjax.robust_round(
        loss_fn,
        num_workers=N,
        aggregator=byzjax.mean(),
        worker=worker,
        optimizer=moving,
      )
    )
    path, state, _ = run(round)
    rows = state.workers
    m = rows.estimator.momentum if worker is None else rows.momentum
    return np.asarray(m) - CURVATURE * path[-2]

  storm = [errors(speed, None) for speed in (0.0, 1.0)]
  np.testing.assert_allclose(storm[0], storm[1], 1e-3, 1e-4)
  heavy = [errors(s, byzjax.worker_momentum(0.9)) for s in (0.0, 1.0)]
  assert np.abs(heavy[1] - heavy[0]).max() > 1


def test_who_was_away_starts_from_its_own_last_parameters():
  present = np.random.default_rng(3).random((20, N)) < 0.6
  present[:, 0] = True
  round = make_round(
    0.8,
    worker_weights=lambda step: jnp.asarray(present, jnp.float32)[step],
  )
  path = run(round)[0]
  np.testing.assert_allclose(path, expected(0.8, present=present), 1e-4, 1e-5)


def test_under_attack_on_a_mesh_as_on_one_device():
  options = {
    'num_workers': 8,
    'aggregator': byzjax.krum(num_byzantine=2),
    'attack': byzjax.sign_flip(own=True),
    'byzantine': 2,
  }
  noise = np.random.default_rng(1).normal(size=(5, 8, D))

  def path(mesh):
    round = make_round(0.8, mesh=mesh, **options)
    state, step = round.init(jnp.float32(START)), jax.jit(round.step)
    for t in range(5):
      state, _ = step(state, jnp.float32(noise[t]), jax.random.key(0))
    return np.asarray(state.params)

  mesh = jax.make_mesh((8,), ('workers',))
  np.testing.assert_allclose(path(mesh), path(None), 1e-5, 1e-6)


def test_both_gradients_have_the_same_key_and_aux_is_of_the_new_parameters():
  def noisy(w, batch, key):
    value = jnp.sum(w * jax.random.normal(key, w.shape)) + 0 * jnp.sum(batch)
    return value, {'first': w[0]}

  round = byzjax.robust_round(
    noisy,
    num_workers=N,
    aggregator=byzjax.mean(),
    optimizer=optax.sgd(0.2),
    value_and_grad=byzjax.storm(noisy, decay=1.0, needs_key=True, has_aux=True),
  )
  path, state, info = run(round, 3)
  # The noise cancels, so m stays what it was in the first round.
  np.testing.assert_allclose(path[3] - path[2], path[1] - path[0], 1e-4, 1e-6)
  np.testing.assert_allclose(info.aux['first'], np.full(N, path[2][0]), 1e-6)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: byzjax.storm(loss_fn, decay=1.5), 'decay'),
    (lambda: make_round(0.5, needs_key=True), 'needs_key to be False'),
    (
      lambda: make_round(0.5, has_aux=True),
      'StatefulEstimator without auxiliary output, got storm',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_other_rounds_say_that_they_do_not_take_it():
  with pytest.raises(TypeError, match='local_round needs value_and_grad'):
    byzjax.local_round(
      loss_fn,
      num_workers=N,
      num_local_steps=1,
      local_optimizer=optax.sgd(0.1),
      aggregator=byzjax.mean(),
      optimizer=optax.sgd(1.0),
      value_and_grad=byzjax.storm(loss_fn, decay=0.5),
    )
