"""`delayed_momentum`: against a loop, over devices, and what it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import byzjax

N, D = 8, 5
X = np.random.default_rng(0).normal(size=(6, N, D)).astype(np.float32)
PRESENT = np.random.default_rng(1).random((6, N)) < 0.4
MEDIAN = byzjax.coordinate_median()


def make(rule=MEDIAN, **changed):
  given = {'num_workers': N, 'decay': 0.3, 'participation': 0.4} | changed
  return byzjax.delayed_momentum(rule, **given)


def loop(xs, present, a, p):
  """What the server keeps, round by round."""
  m = np.zeros_like(xs[0], dtype=np.float64)
  for x, here in zip(xs, present):
    m = (1 - a * p) * m + a * here[:, None] * x
    yield m


def test_it_is_the_rule_on_the_momenta_of_a_loop():
  rule = make()
  state = rule.init(X[0, 0])
  for x, here, m in zip(X, PRESENT, loop(X, PRESENT, 0.3, 0.4)):
    weights = jnp.asarray(here, jnp.float32) * 2.5  # Any weight takes part.
    y, state = rule.update(x, state, worker_weights=weights)
    np.testing.assert_allclose(state.momenta, m, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(y, np.median(m, axis=0), rtol=2e-6, atol=1e-6)


def test_with_all_workers_it_is_momentum_of_workers():
  rule = make(decay=0.1, participation=1.0)
  worker = byzjax.per_worker(optax.ema(0.9, debias=False), num_workers=N)
  state, sent = rule.init(X[0, 0]), worker.init(X[0, 0])
  for x in X:
    y, state = rule.update(x, state)
    m, sent = worker.update(x, sent)
    np.testing.assert_allclose(y, MEDIAN(m), rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_counts_as_absent():
  rule, bad = make(), X[0].copy()
  bad[2, 1], bad[5, 3] = np.nan, np.inf
  y, state = rule.update(bad, rule.init(X[0, 0]))
  present = np.ones(N)
  present[[2, 5]] = 0
  expected, same = rule.update(
    X[0], rule.init(X[0, 0]), worker_weights=jnp.asarray(present)
  )
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_array_equal(state.momenta, same.momenta)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30, 3e38])
def test_hostile_values_of_two_do_not_reach_the_aggregate(value):
  rule = make(byzjax.trimmed_mean(num_byzantine=2), participation=1.0)
  state = rule.init(X[0, 0])
  for x in X:
    bad = x.copy()
    bad[:2] = value
    y, state = rule.update(bad, state)
    assert np.abs(y).max() <= np.abs(X[:, 2:]).max()


def test_a_momentum_that_would_overflow_recovers():
  rule = make(decay=1.0, participation=0.5)
  state, big = rule.init(X[0, 0]), jnp.asarray(X[0]).at[2].set(3e38)
  for _ in range(3):
    y, state = rule.update(big, state)
    assert np.isfinite(state.momenta).all() and np.isfinite(y).all()
  # First 3e38. Then 4.5e38 and 3.75e38 would be too much: it counts as absent.
  np.testing.assert_allclose(state.momenta[2], 0.75e38, 1e-6)
  rows = []
  for _ in range(60):
    _, state = rule.update(X[0], state)
    rows.append(state.momenta[2, 0])
  assert rows[-1] < 1e-15 * rows[0]


@functools.cache
def rounds(mesh=None):
  def loss_fn(params, batch):
    return 0.5 * jnp.sum((params - batch) ** 2)

  # Six of 24 lie; three workers take part, of whom most may be liars.
  n, f = 24, 6
  options = {
    'num_workers': n,
    'attack': byzjax.sign_flip(scale=10.0),
    'byzantine': f,
    'worker_weights': byzjax.random_participation(n, 3, key=jax.random.key(5)),
    'optimizer': optax.sgd(0.05),
    'mesh': mesh,
  }
  delayed = byzjax.delayed_momentum(
    MEDIAN, num_workers=n, decay=0.5, participation=3 / n
  )
  truth = jnp.arange(1.0, 6.0)

  def error(rule):
    training = byzjax.robust_round(loss_fn, aggregator=rule, **options)

    def body(state, _):
      batch = jnp.broadcast_to(truth, (n, 5))
      return training.step(state, batch, jax.random.key(0))

    scan = jax.jit(lambda state: jax.lax.scan(body, state, length=400)[0])
    return jnp.linalg.norm(scan(training.init(jnp.zeros(5))).params - truth)

  return float(error(delayed)), float(error(MEDIAN))


def test_a_majority_of_liars_in_the_sample_does_not_carry_a_round():
  delayed, plain = rounds()
  assert delayed < 0.1 < 1 < plain


def test_devices_agree():
  mesh = jax.make_mesh(
    (4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rule = make()
  sharded = byzjax.worker_sharded(rule, 'workers')

  @jax.jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P(None, 'workers'), out_specs=P()
  )
  def twice(xs):
    state = sharded.init(xs[0, 0])
    _, state = sharded.update(xs[0], state)
    return sharded.update(xs[1], state)[0]

  _, state = rule.update(X[0], rule.init(X[0, 0]))
  expected, _ = rule.update(X[1], state)
  np.testing.assert_allclose(twice(X[:2]), expected, rtol=1e-5, atol=1e-6)


def test_a_mesh_of_rounds():
  mesh = jax.make_mesh(
    (8,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  np.testing.assert_allclose(rounds(mesh), rounds(), rtol=1e-3)


def test_dtypes_stay():
  rule = make()
  x = {'a': jnp.ones((N, 2), jnp.bfloat16), 'b': jnp.ones((N, 3))}
  y, state = rule.update(x, rule.init(jax.tree.map(lambda v: v[0], x)))
  assert [v.dtype for v in (y['a'], y['b'])] == [jnp.bfloat16, jnp.float32]
  assert state.momenta['a'].dtype == jnp.float32


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'num_workers': 0}, 'num_workers'),
    ({'decay': 0.0}, 'decay > 0'),
    ({'decay': 1.5}, 'decay <= 1'),
    ({'participation': 0.0}, 'participation > 0'),
  ],
)
def test_bad_arguments(changed, message):
  with pytest.raises(ValueError, match=message):
    make(**changed)


def test_another_number_of_messages():
  rule = make()
  with pytest.raises(ValueError, match='num_workers=8 messages, got 3'):
    rule.update(X[0, :3], rule.init(X[0, 0]))


@pytest.mark.parametrize('shape', [(N, D), (), (1,)])
def test_a_state_of_another_shape_is_refused(shape):
  rule = make()
  state = rule.init(jnp.zeros(shape))
  with pytest.raises(
    ValueError, match=r'delayed_mom.*leaves \[\[8, 5\]\], got'
  ):
    rule.update(X[0], state)
