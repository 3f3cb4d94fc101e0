"""Rounds with compressed messages: what arrives, what it costs, who sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.rounds import problem

N, KEY = problem.N, problem.KEY
F = 3
SIZE = len(problem.flat(problem.params()))

# Both codecs of each run, and rules that take weights.
RUNS = {
  'signum': dict(
    worker=optax.ema(0.9, debias=False),
    codec=byzjax.sign_codec(),
    aggregator=byzjax.majority_vote(),
    server_codec=byzjax.sign_codec(),
    optimizer=optax.sgd(0.01),
  ),
  'ef_sparsign': dict(
    codec=byzjax.sparsign_codec(budget=3.0),
    aggregator=byzjax.mean(),
    server_codec=byzjax.error_feedback(byzjax.scaled_sign_codec()),
    optimizer=optax.sgd(0.1),
  ),
  'top_k_median': dict(
    codec=byzjax.error_feedback(byzjax.top_k_codec(num_kept=20)),
    aggregator=byzjax.coordinate_median(),
    server_codec=byzjax.top_k_codec(num_kept=50),
    optimizer=optax.sgd(0.1),
  ),
  'qsgd_krum': dict(
    codec=byzjax.qsgd_codec(norm='linf'),
    aggregator=byzjax.multi_krum(num_byzantine=F),
    server_codec=byzjax.qsgd_codec(norm='l2'),
    optimizer=optax.sgd(0.1),
  ),
}


@functools.cache
def _train(name, devices=None, num_rounds=4):
  rounds = problem.training(
    **RUNS[name],
    attack=byzjax.gaussian(std=0.5),
    byzantine=F,
    mesh=devices and problem.mesh(devices),
  )
  return problem.scan(rounds, problem.batches(num_rounds))


def _step(batch=None, params=None, **kwargs):
  rounds = problem.training(**kwargs)
  state = rounds.init(problem.params() if params is None else params)
  batch = problem.batch() if batch is None else batch
  return state, *jax.jit(rounds.step)(state, batch, KEY)


def _gradients():
  grads = jax.vmap(jax.grad(problem.loss_fn), (None, 0))(
    problem.params(), problem.batch()
  )
  return np.stack(
    [problem.flat(jax.tree.map(lambda g, i=i: g[i], grads)) for i in range(N)]
  )


def _moved(state):
  return problem.flat(state.params) - problem.flat(problem.params())


# What arrives.


def test_signs_both_ways_are_sign_sgd_with_majority_vote():
  _, state, info = _step(
    codec=byzjax.sign_codec(),
    aggregator=byzjax.majority_vote(),
    server_codec=byzjax.sign_codec(),
    optimizer=optax.sgd(0.125),
    attack=byzjax.sign_flip(scale=1.0, own=True),
    byzantine=F,
  )
  signs = np.where(_gradients() < 0, -1, 1)
  signs[:F] *= -1
  vote = np.where(signs.sum(axis=0) < 0, -1, 1)
  np.testing.assert_allclose(_moved(state), -0.125 * vote, 1e-6, 1e-6)
  assert float(info.bits_up) == float(info.bits_down) == SIZE * N


@pytest.mark.parametrize('devices', [None, 8])
@pytest.mark.parametrize('n', [16, 8])
def test_the_vote_on_packed_words_is_the_vote_on_signs(devices, n):
  # An attack that changes nothing makes the server unpack.
  nothing = byzjax.Attack(
    lambda params: (), lambda messages, state, **knowledge: (messages, state)
  )
  results = []
  for attack in (None, nothing):
    rounds = problem.training(
      **RUNS['signum'] | dict(server_codec=None),
      num_workers=n,
      attack=attack,
      byzantine=3,
      mesh=devices and problem.mesh(devices),
    )
    state = rounds.init(problem.params())
    step = jax.jit(rounds.step)
    results.append(step(state, problem.batch(n), KEY))
  (state, info), (expected, expected_info) = results
  np.testing.assert_array_equal(
    problem.flat(state.params), problem.flat(expected.params)
  )
  error = float(expected_info.aggregation_error)
  assert error > 1
  np.testing.assert_allclose(info.aggregation_error, error, 1e-5)
  np.testing.assert_array_equal(info.masked, expected_info.masked)


@pytest.mark.parametrize('value', [1e30, -np.inf, np.nan])
def test_an_attacker_can_only_send_what_the_wire_carries(value):
  _, state, info = _step(
    codec=byzjax.sign_codec(),
    optimizer=optax.sgd(1.0),
    attack=byzjax.constant(value=value),
    byzantine=F,
  )
  signs = np.where(_gradients() < 0, -1.0, 1.0)
  signs[:F] = -1 if value < 0 else 1
  assert int(info.num_nonfinite) == 0
  np.testing.assert_allclose(_moved(state), -signs.mean(axis=0), 1e-5, 1e-6)
  error = np.linalg.norm(signs.mean(axis=0) - signs[F:].mean(axis=0))
  np.testing.assert_allclose(info.aggregation_error, error, 1e-4)


def test_the_attack_sees_decoded_messages():
  seen = []

  def apply(messages, state, *, is_byzantine, num_coordinates, **knowledge):
    assert num_coordinates == SIZE
    seen.append(jnp.all(jnp.abs(messages[:, :SIZE]) == 1))
    return jnp.where(is_byzantine[:, None], -3.0, messages), seen[-1]

  spy = byzjax.Attack(lambda params: jnp.zeros([], bool), apply)
  _, state, _ = _step(
    codec=byzjax.sign_codec(),
    aggregator=byzjax.coordinate_median(),
    attack=spy,
    byzantine=F,
  )
  assert bool(state.attack)
  assert set(np.unique(np.round(_moved(state), 5))) <= {
    np.float64(x) for x in np.round([-0.1, 0.0, 0.1], 5)
  }


def test_without_server_codec_the_rule_is_heard_as_it_is():
  _, state, info = _step(
    codec=byzjax.scaled_sign_codec(), optimizer=optax.sgd(1.0)
  )
  gradients = _gradients()
  sent = np.where(gradients < 0, -1, 1) * np.abs(gradients).mean(
    axis=1, keepdims=True
  )
  np.testing.assert_allclose(_moved(state), -sent.mean(axis=0), 1e-4, 1e-6)
  assert float(info.bits_up) == (SIZE + 32) * N
  assert float(info.bits_down) == 32 * SIZE * N


def test_the_server_keeps_what_it_could_not_say():
  rounds = problem.training(
    server_codec=byzjax.error_feedback(byzjax.scaled_sign_codec()),
    optimizer=optax.sgd(0.0),
  )
  state, step = rounds.init(problem.params()), jax.jit(rounds.step)
  residual, mean = np.zeros(SIZE), _gradients().mean(axis=0)
  for _ in range(3):
    state, info = step(state, problem.batch(), KEY)
    total = residual + mean
    residual = total - np.where(total < 0, -1, 1) * np.abs(total).mean()
    np.testing.assert_allclose(
      state.server_codec.residual[:SIZE], residual, 1e-4, 1e-5
    )
    assert not np.asarray(state.server_codec.residual[SIZE:]).any()
  assert step._cache_size() == 1
  assert float(info.bits_down) == (SIZE + 32) * N


def test_every_worker_draws_on_its_own():
  # All workers have the same gradient; with one key they would send the same.
  same = jax.tree.map(lambda x: jnp.stack([x[0]] * N), problem.batch())
  _, state, _ = _step(
    same, codec=byzjax.sparsign_codec(budget=0.5), optimizer=optax.sgd(float(N))
  )
  counts = np.abs(np.round(_moved(state)))
  assert len(np.unique(counts)) > 2  # not only 0 and N


# On devices.


@pytest.mark.parametrize('name, devices', [
  ('signum', 8), ('ef_sparsign', 8), ('qsgd_krum', 8),
  pytest.param('top_k_median', 8, marks=pytest.mark.slow),
  pytest.param('ef_sparsign', 2, marks=pytest.mark.slow),
  pytest.param('signum', 1, marks=pytest.mark.slow),
])  # fmt: skip
def test_devices_do_not_matter(name, devices):
  (state, infos), (expected, expected_infos) = (
    _train(name, devices),
    _train(name),
  )
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(expected.params), 1e-5, 1e-5
  )
  assert np.linalg.norm(_moved(state)) > 0.01
  for field in ('bits_up', 'bits_down', 'aggregation_error', 'loss'):
    np.testing.assert_allclose(
      getattr(infos, field), getattr(expected_infos, field), 1e-4, 1e-5
    )
  for part in ('codec', 'server_codec'):
    for a, b in zip(
      jax.tree.leaves(getattr(state, part)),
      jax.tree.leaves(getattr(expected, part)),
    ):
      np.testing.assert_allclose(a, b, 1e-4, 1e-5)


@pytest.mark.parametrize('devices', [None, 8])
@pytest.mark.parametrize('name', ['top_k_median', 'ef_sparsign'])
def test_the_state_keeps_its_types(name, devices):
  rounds = problem.training(
    **RUNS[name], mesh=devices and problem.mesh(devices)
  )
  state = rounds.init(problem.params())
  step = jax.jit(rounds.step)
  first, _ = step(state, problem.batch(), KEY)
  step(first, problem.batch(), KEY)
  assert step._cache_size() == 1
  kinds = [(x.dtype, x.shape, x.weak_type) for x in jax.tree.leaves(state)]
  assert kinds == [
    (x.dtype, x.shape, x.weak_type) for x in jax.tree.leaves(first)
  ]


def test_padding_does_not_vote():
  # 118 of the 256 coordinates that 8 devices hold are padding.
  errors = [
    _step(
      aggregator=byzjax.majority_vote(), mesh=devices and problem.mesh(devices)
    )[2].aggregation_error
    for devices in (None, 8)
  ]
  np.testing.assert_allclose(errors[1], errors[0], 1e-5)


# Who takes part.


@pytest.mark.parametrize('devices', [None, 8])
def test_only_participants_send_and_move(devices):
  schedule = byzjax.random_participation(N, 5, jax.random.key(3))
  rounds = problem.training(
    aggregator=byzjax.mean(),
    worker=byzjax.worker_momentum(0.9),
    codec=byzjax.error_feedback(byzjax.top_k_codec(num_kept=20)),
    worker_weights=schedule,
    optimizer=optax.sgd(1.0),
    mesh=devices and problem.mesh(devices),
  )
  state, step = rounds.init(problem.params()), jax.jit(rounds.step)
  for t in range(2):
    before = state
    state, info = step(state, problem.batch(), KEY)
    takes_part = np.asarray(schedule(t)) > 0
    assert takes_part.sum() == 5
    for old, new in (
      (before.workers.momentum, state.workers.momentum),
      (before.codec.residual, state.codec.residual),
    ):
      changed = (np.asarray(old) != np.asarray(new)).any(axis=1)
      np.testing.assert_array_equal(changed, takes_part)
    assert float(info.bits_up) == 5 * 20 * (32 + 8)
    assert float(info.bits_down) == 5 * 32 * SIZE
    if t == 0:
      sent = _gradients()
      order = np.argsort(-np.abs(sent), axis=1)[:, 20:]
      np.put_along_axis(sent, order, 0, axis=1)
      expected = -sent[takes_part].mean(axis=0)
      np.testing.assert_allclose(_moved(state), expected, 1e-5, 1e-6)
      # The mean of those that took part is what it was compared to.
      assert float(info.aggregation_error) < 1e-5


def test_random_participation():
  schedule = byzjax.random_participation(N, 5, jax.random.key(0))
  weights = np.asarray(jax.vmap(schedule)(jnp.arange(200)))
  assert set(np.unique(weights)) == {0, 1}
  assert (weights.sum(axis=1) == 5).all()
  assert np.abs(weights.sum(axis=0) - 62.5).max() < 5 * np.sqrt(200 * 0.215)
  # Not those that attack, though the key is the same.
  attackers = byzjax.random_byzantine(N, 5, jax.random.key(0))
  attackers = np.asarray(jax.vmap(attackers)(jnp.arange(200)))
  both = (attackers & (weights > 0)).sum()
  assert abs(both - 200 * 25 / N) < 5 * np.sqrt(200 * 0.75)
  with pytest.raises(ValueError, match='num_participants <= num_workers, got'):
    byzjax.random_participation(4, 5, jax.random.key(0))


def test_refusals():
  with pytest.raises(ValueError, match='codec to be a Codec or None'):
    problem.training(codec=byzjax.mean())
  with pytest.raises(ValueError, match='server_codec to be a Codec or None'):
    problem.training(server_codec='sign')
  with pytest.raises(ValueError, match='float.16., one entry per message'):
    _step(worker_weights=lambda step: jnp.ones(3))
  with pytest.raises(ValueError, match='aksel does not support'):
    _step(
      aggregator=byzjax.aksel(num_byzantine=2),
      worker_weights=byzjax.random_participation(N, 5, jax.random.key(0)),
    )


# Estimators of gradients.


@pytest.mark.parametrize('worker_map', ['vmap', 5])
def test_an_estimator_gets_a_key_of_its_own(worker_map):
  def value_and_grad(params, batch, key):
    del batch
    draw = jax.random.uniform(key)
    return draw, jax.tree.map(lambda p: jnp.full_like(p, draw), params)

  results = []
  for devices in (None, 8):
    _, state, info = _step(
      value_and_grad=value_and_grad,
      optimizer=optax.sgd(1.0),
      worker_map=worker_map,
      mesh=devices and problem.mesh(devices),
    )
    np.testing.assert_allclose(_moved(state), -float(info.loss), 1e-5)
    results.append(float(info.loss))
  np.testing.assert_allclose(results[0], results[1], 1e-6)
  assert 0.1 < results[0] < 0.9  # a mean of 16 draws
