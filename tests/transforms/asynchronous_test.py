"""What else acts on single messages: staleness, senders, filters, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import asynchrony
from tests.transforms import arrivals

# Staleness.


def _update(tx, g, params=None, **extra):
  return tx.update(g, tx.init(params), params, **extra)[0]


def test_weights_by_staleness():
  g = {'a': jnp.asarray([0.1, -3.0]), 'b': jnp.asarray(1.7, jnp.bfloat16)}
  tau = np.arange(12)

  def weights(tx):
    weigh = jax.vmap(lambda t: _update(tx, jnp.ones([]), staleness=t))
    return np.float64(jax.jit(weigh)(tau))

  poly = byzjax.discount_staleness(0.7)
  np.testing.assert_allclose(weights(poly), (1.0 + tau) ** -0.7, 3e-7)
  adaptive = byzjax.delay_adaptive(4)
  np.testing.assert_allclose(
    weights(adaptive), np.minimum(1, 4 / np.maximum(tau, 1)), 3e-7
  )
  # In time, nothing changes.
  for tx, on_time in (
    (poly, 0),
    (byzjax.discount_staleness(0.0), 9),
    (adaptive, 4),
  ):
    jax.tree.map(
      np.testing.assert_array_equal, _update(tx, g, staleness=on_time), g
    )


def test_delay_compensation():
  rows = np.float32(arrivals.normal(3, 6))
  g, w, stale = ({'a': x[:2], 'b': x[2:]} for x in rows)
  tx = byzjax.compensate_delay(0.3)
  found = _update(tx, g, w, stale_params=stale)
  exact = rows[0] + 0.3 * rows[0] ** 2 * (rows[1] - rows[2])
  found = np.concatenate([found['a'], found['b']])
  np.testing.assert_allclose(found, exact, 1e-6)
  off = byzjax.compensate_delay(0.0)
  for idle, old in ((off, stale), (tx, w)):
    jax.tree.map(
      np.testing.assert_array_equal, _update(idle, g, w, stale_params=old), g
    )


def test_delay_compensation_is_right_to_first_order():
  """The Hessian of `-log(1 - w)` is g * g."""
  tx, stale, errors = byzjax.compensate_delay(1.0), 0.4, []
  with jax.enable_x64(True):
    for gap in (1e-2, 1e-3):
      w = jnp.asarray(stale + gap)
      g = jnp.asarray(1 / (1 - stale))
      found = _update(tx, g, w, stale_params=jnp.asarray(stale))
      errors.append(abs(float(found - 1 / (1 - w))))
  np.testing.assert_allclose(errors[0] / errors[1], 100, 0.02)


def test_dropped_messages_never_were():
  gradients = arrivals.normal(20, 3)
  sgd = optax.sgd(0.3, momentum=0.7)
  tau = np.random.default_rng(0).integers(0, 9, 20)
  gradients[tau > 5] = np.nan
  with jax.enable_x64(True):
    tx = byzjax.drop_stale(sgd, max_staleness=5)
    w, state = arrivals.run(tx, gradients, staleness=tau)
    kept, other = arrivals.run(sgd, gradients[tau <= 5])
  momentum = state[0].trace[tau <= 5]
  np.testing.assert_allclose(w[tau <= 5], kept, 0, 1e-14)
  np.testing.assert_allclose(momentum, other[0].trace, 0, 1e-14)
  steps = np.diff(w, axis=0, prepend=np.zeros((1, 3)))
  np.testing.assert_array_equal(steps[tau > 5], 0)


# Senders and buffers.


def test_each_sender_has_its_own_momentum():
  gradients, seen = arrivals.normal(30, 3), arrivals.asynchronous(3, 30)
  with jax.enable_x64(True):
    tx = byzjax.by_sender(optax.sgd(0.3, momentum=0.7), 3)
    w, state = arrivals.run(tx, gradients, **seen._asdict())
  x, u = np.zeros(3), np.zeros((3, 3))
  for t, (k, g) in enumerate(zip(seen.worker, gradients)):
    u[k] = 0.7 * u[k] + g
    x = x - 0.3 * u[k]
    np.testing.assert_allclose(w[t], x, 0, 1e-14)
    np.testing.assert_allclose(state[0].trace[t], u, 0, 1e-14)


def test_states_of_senders_of_any_kind():
  """Counts and random keys, too, and arguments are handed on."""
  seen, key = arrivals.asynchronous(3, 12), jax.random.key(0)
  gradients = jnp.asarray(arrivals.normal(12, 3), jnp.float32)
  tx = optax.chain(
    byzjax.discount_staleness(),
    optax.scale_by_adam(),
    optax.add_noise(0.1, 0.0, key),
  )
  _, rows = arrivals.run(byzjax.by_sender(tx, 3), gradients, **seen._asdict())
  mine = seen.worker == 0
  _, own = arrivals.run(tx, gradients[mine], staleness=seen.staleness[mine])

  def compare(found, expected):
    np.testing.assert_allclose(found[-1, 0], expected[-1], 1e-5, 1e-7)

  jax.tree.map(compare, rows, own)
  # Outside of jit a key is no tracer.
  noise, w = byzjax.by_sender(optax.add_noise(0.1, 0.0, key), 3), jnp.zeros(3)
  _, state = noise.update(w, noise.init(w), w, worker=1)
  assert state.count.tolist() == [0, 1, 0]


def test_buffered_sgd_is_optax():
  """FedBuff is `optax.MultiSteps`, with discounts in front."""
  n = 4
  gradients, seen = arrivals.normal(10, 3), arrivals.asynchronous(3, 10)
  buffered = optax.MultiSteps(
    optax.sgd(0.3, momentum=0.7, nesterov=True), n
  ).gradient_transformation()
  tx = optax.chain(byzjax.discount_staleness(), buffered)
  w, _ = arrivals.run(
    tx,
    np.float32(gradients),
    stale_params=np.float32(gradients),
    **seen._asdict(),
  )
  x, m = np.zeros(3), np.zeros(3)
  weighted = gradients * (1.0 + seen.staleness[:, None]) ** -0.5
  for t in range(10):
    if t % n == n - 1:
      mean = weighted[t + 1 - n : t + 1].mean(0)
      m = 0.7 * m + mean
      x = x - 0.3 * (mean + 0.7 * m)
    np.testing.assert_allclose(w[t], x, 1e-5, 1e-6)


# The data's own learning rate, and averages of the parameters.


def test_learning_rate_by_progress():
  schedule = optax.warmup_cosine_decay_schedule(0.0, 0.5, 10, 40, 0.01)
  progress = np.array([0, 7, 10, 3, 39, 40, 400])
  gradients = np.float32(arrivals.normal(7, 3))
  w, _ = arrivals.run(
    byzjax.scale_by_progress(schedule), gradients, progress=progress
  )
  rate = np.where(
    progress < 10,
    0.05 * progress,
    0.01 + 0.245 * (1 + np.cos(np.pi * np.clip(progress - 10, 0, 30) / 30)),
  )
  np.testing.assert_allclose(
    w, np.cumsum(-rate[:, None] * gradients, 0), 2e-5, 1e-6
  )


@pytest.mark.parametrize('decay', [None, 0.0, 0.8, 1.0])
def test_averages_of_the_iterates(decay):
  gradients, start = arrivals.normal(30, 3), arrivals.normal(3)
  with jax.enable_x64(True):
    tx = optax.chain(optax.sgd(0.3), byzjax.average_iterates(decay))
    w, state = arrivals.run(tx, gradients, jnp.asarray(start))
    plain, _ = arrivals.run(optax.sgd(0.3), gradients, jnp.asarray(start))
  np.testing.assert_array_equal(w, plain)
  if decay is None:
    expected = np.cumsum(w, 0) / np.arange(1, 31)[:, None]
  else:
    expected, a = [], start
    for x in w:
      a = decay * a + (1 - decay) * x
      expected.append(a)
  np.testing.assert_allclose(state[1].average, expected, 0, 1e-13)


# Steps of the workers.


def test_dynamic_local_updates():
  speeds = [0.58, 0.75, 1.51, 3.33]
  make = asynchrony.dynamic_local_updates
  np.testing.assert_array_equal(make(speeds, 20), [20, 15, 7, 3])
  np.testing.assert_array_equal(
    make(speeds, 20, rounding='ceil'), [20, 16, 8, 4]
  )
  for rounding in ('floor', 'ceil'):
    np.testing.assert_array_equal(
      make([0.3] * 5, 13, rounding=rounding), [13] * 5
    )
    # Whole ratios are whole, however they are rounded.
    whole = 0.07 * np.array([1, 3, 7, 49])
    np.testing.assert_array_equal(
      make(whole, 147, rounding=rounding), [147, 49, 21, 3]
    )
  np.testing.assert_array_equal(make([1.0, 1e9], 4), [4, 1])
  assert make(speeds, 20).dtype == np.int32
  for bad in ([], [1.0, 0.0], [1.0, np.inf], [[1.0]]):
    with pytest.raises(ValueError, match='seconds_per_step'):
      make(bad, 20)
  with pytest.raises(ValueError, match='num_local_steps'):
    make(speeds, 0)
  with pytest.raises(ValueError, match='rounding'):
    make(speeds, 20, rounding='nearest')


# All of them.

MOMENTUM = optax.sgd(0.1, momentum=0.9)
SERVERS = {
  'ordered_momentum': lambda: byzjax.ordered_momentum(0.1, num_workers=3),
  'delay_adaptive': lambda: byzjax.delay_adaptive(3),
  'discount_staleness': lambda: byzjax.discount_staleness(),
  'compensate_delay': lambda: byzjax.compensate_delay(0.1),
  'drop_stale': lambda: byzjax.drop_stale(MOMENTUM, max_staleness=2),
  'delayed_nesterov': lambda: byzjax.delayed_nesterov(
    0.1, num_buffered=3, aggregator=byzjax.coordinate_median()
  ),
  'smega2': lambda: byzjax.smega2(0.1, num_workers=3),
  'by_sender': lambda: byzjax.by_sender(MOMENTUM, 3),
  'scale_by_progress': lambda: byzjax.scale_by_progress(lambda t: 1 / (1 + t)),
  'scale_by_round': lambda: byzjax.scale_by_round(lambda t: 1 / (1 + t)),
  'average_iterates': lambda: byzjax.average_iterates(),
  'lipschitz_filter': lambda: byzjax.lipschitz_filter(
    MOMENTUM, num_workers=4, num_byzantine=1
  ),
  'zeno_plus_plus': lambda: byzjax.zeno_plus_plus(
    MOMENTUM, root_gradient=lambda w, refresh: jax.tree.map(jnp.ones_like, w)
  ),
}
NEEDS = {
  'delay_adaptive': ['staleness'],
  'discount_staleness': ['staleness'],
  'drop_stale': ['staleness'],
  'compensate_delay': ['params', 'stale_params'],
  'by_sender': ['worker'],
  'scale_by_progress': ['progress'],
  'scale_by_round': ['round'],
  'average_iterates': ['params'],
  'lipschitz_filter': ['stale_params', 'worker'],
  'zeno_plus_plus': ['params'],
}


def _everything(num_messages):
  seen = arrivals.asynchronous(3, num_messages)
  return seen._asdict() | {
    'num_local_steps': np.full(num_messages, 2, np.int32),
    'progress': np.arange(num_messages, dtype=np.int32),
    'round': np.arange(num_messages, dtype=np.int32),
  }


@pytest.mark.parametrize('name', SERVERS)
def test_types_are_kept_in_a_scan_under_vmap(name):
  """Leaves of two types; two runs at once are each of them alone."""
  rows = np.float32(arrivals.normal(2, 6, 5))
  gradients = {
    'a': jnp.asarray(rows[..., :3]),
    'b': jnp.asarray(rows[..., 3:], jnp.bfloat16),
  }
  tx = optax.chain(SERVERS[name](), optax.identity())
  extra = _everything(6)

  def whole(gradients):
    return arrivals.scan(tx, gradients, stale_params=gradients, **extra)[0]

  both = jax.jit(jax.vmap(whole))(gradients)
  one = jax.jit(whole)(jax.tree.map(lambda x: x[1], gradients))
  assert both['b'].dtype == jnp.bfloat16
  for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(one)):
    assert np.any(np.float32(y) != 0)
    np.testing.assert_allclose(np.float32(x[1]), np.float32(y), 1e-2, 1e-3)


@pytest.mark.parametrize(
  'tx',
  [
    *(make() for make in SERVERS.values()),
    byzjax.delayed_nesterov(0.1, num_buffered=3),
    byzjax.scale_by_delta_sgd(),
  ],
)
def test_no_buffer_is_in_a_first_state_twice(tx):
  params = {'a': jnp.zeros(3), 'b': jnp.ones(2)}
  leaves = jax.tree.leaves((params, tx.init(params)))
  buffers = [x.unsafe_buffer_pointer() for x in leaves if x.size]
  assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize('name', NEEDS)
def test_what_is_missing_is_named(name):
  tx, w = SERVERS[name](), jnp.ones(2)
  state = tx.init(w)
  given = {'params': w, 'stale_params': w, 'worker': 0, 'staleness': 1}
  for need in NEEDS[name]:
    extra = {k: v for k, v in given.items() if k in NEEDS[name] and k != need}
    with pytest.raises(ValueError, match=f'{name} needs {need} in update'):
      tx.update(w, state, **extra)


def test_bad_arguments_are_named():
  sgd = optax.sgd(0.1)
  for name, argument, build in (
    ('delay_adaptive', 'num_workers', lambda: byzjax.delay_adaptive(0)),
    ('discount_staleness', 'exponent', lambda: byzjax.discount_staleness(-1.0)),
    ('compensate_delay', 'strength', lambda: byzjax.compensate_delay(-1.0)),
    (
      'drop_stale',
      'max_staleness',
      lambda: byzjax.drop_stale(sgd, max_staleness=-1),
    ),
    ('by_sender', 'num_workers', lambda: byzjax.by_sender(sgd, 0)),
    ('average_iterates', 'decay', lambda: byzjax.average_iterates(1.5)),
    (
      'lipschitz_filter',
      '3 and 1',
      lambda: byzjax.lipschitz_filter(sgd, num_workers=3, num_byzantine=1),
    ),
    (
      'lipschitz_filter',
      'reference',
      lambda: byzjax.lipschitz_filter(
        sgd, num_workers=4, num_byzantine=1, reference='mean'
      ),
    ),
  ):
    with pytest.raises(ValueError, match=f'{name} needs.*{argument}'):
      build()
