"""`from_work`, and the methods that are written with it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

N, S, B, D = 8, 3, 4, 5
RATE, ALPHA = 0.1, 0.5
ROUNDS = 4


def _loss(params, batch):
  x, y = batch
  return jnp.mean((x @ params['w'] + params['b'][None] - y) ** 2) / 2


def _data(seed=0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(N, S, B, D)).astype(np.float32)
  # Uneven: every worker has a slope of its own.
  slopes = random.normal(size=(N, 1, D, 2)).astype(np.float32)
  return x, (x @ slopes + 0.1).astype(np.float32)


PARAMS = {'w': jnp.zeros((D, 2)), 'b': jnp.ones(2)}


def _train(training, rounds=ROUNDS, batch=None):
  state = training.init(PARAMS)
  step = jax.jit(training.step)
  infos = []
  for _ in range(rounds):
    state, info = step(state, _data() if batch is None else batch, KEY)
    infos.append(info)
  return state, infos


KEY = jax.random.key(0)


def _numpy_gradient(w, b, x, y):
  error = (x @ w + b[None] - y) / y.size
  return x.T @ error, error.sum(0)


def _numpy_local(start, correction, i):
  """Local steps in float64; trees are pairs (w, b)."""
  x, y = (part.astype(np.float64) for part in _data())
  current = start
  for s in range(S):
    gradient = _numpy_gradient(*current, x[i, s], y[i, s])
    extra = correction(current)
    current = tuple(
      v - RATE * (g + e) for v, g, e in zip(current, gradient, extra)
    )
  return current


def _numpy_scaffold(chosen_by_round):
  w = (np.zeros((D, 2)), np.ones(2))
  zero = tuple(np.zeros_like(v) for v in w)
  own, common = [zero] * N, zero
  for chosen in chosen_by_round:
    deltas, changes = [], []
    for i in chosen:
      offset = tuple(c - o for c, o in zip(common, own[i]))
      end = _numpy_local(w, lambda _, offset=offset: offset, i)
      delta = tuple(a - b for a, b in zip(w, end))
      new = tuple(
        o - c + d / (S * RATE) for o, c, d in zip(own[i], common, delta)
      )
      changes.append(tuple(a - b for a, b in zip(new, own[i])))
      deltas.append(delta)
      own[i] = new
    w = tuple(a - np.mean(d, 0) for a, d in zip(w, zip(*deltas)))
    common = tuple(
      c + len(chosen) / N * np.mean(d, 0) for c, d in zip(common, zip(*changes))
    )
  return w


def _numpy_fed_dyn(chosen_by_round):
  w = (np.zeros((D, 2)), np.ones(2))
  zero = tuple(np.zeros_like(v) for v in w)
  own, server = [zero] * N, zero
  for chosen in chosen_by_round:
    deltas = []
    for i in chosen:

      def correction(y, i=i, w=w):
        return tuple(-o + ALPHA * (a - b) for o, a, b in zip(own[i], y, w))

      end = _numpy_local(w, correction, i)
      delta = tuple(a - b for a, b in zip(w, end))
      own[i] = tuple(o + ALPHA * d for o, d in zip(own[i], delta))
      deltas.append(delta)
    mean = tuple(np.mean(d, 0) for d in zip(*deltas))
    share = len(chosen) / N
    server = tuple(h + ALPHA * share * d for h, d in zip(server, mean))
    w = tuple(a - d - h / ALPHA for a, d, h in zip(w, mean, server))
  return w


METHODS = {
  'scaffold': (byzjax.scaffold, _numpy_scaffold, {}),
  'fed_dyn': (byzjax.fed_dyn, _numpy_fed_dyn, {'alpha': ALPHA}),
}


def _make(name, **options):
  make, _, given = METHODS[name]
  options = {'learning_rate': RATE} | given | options
  return make(_loss, num_workers=N, **options)


@pytest.mark.parametrize('participation', [None, 3])
@pytest.mark.parametrize('name', METHODS)
def test_agrees_with_an_independent_loop(name, participation):
  state, infos = _train(_make(name, participation=participation))
  chosen = [
    range(N) if info.participants is None else np.asarray(info.participants)
    for info in infos
  ]
  w, b = METHODS[name][1](chosen)
  np.testing.assert_allclose(state.params['w'], w, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(state.params['b'], b, rtol=2e-5, atol=2e-6)


def _loss_of_all(params):
  x, y = _data()
  return float(_loss(params, (x.reshape(-1, D), y.reshape(-1, 2))))


@pytest.mark.parametrize('name', METHODS)
def test_the_drift_of_uneven_data_goes(name):
  # Workers' own minima are far apart, so FedAvg stops beside the minimum.
  x, y = _data()
  batch = (x[:, :1].repeat(8, 1), y[:, :1].repeat(8, 1))

  def gap(training):
    state, _ = _train(training, 150, batch)
    flat = x[:, 0].reshape(-1, D), y[:, 0].reshape(-1, 2)
    gradient = jax.grad(_loss)(state.params, flat)
    return float(optax.tree.norm(gradient))

  drifted = gap(
    byzjax.fed_avg(_loss, learning_rate=RATE, num_local_steps=8, num_workers=N)
  )
  assert gap(_make(name)) < 0.1 * drifted


def test_one_step_of_all_workers_is_sgd():
  x, y = _data()
  batch = x[:, :1], y[:, :1]
  state, _ = _train(_make('scaffold'), 3, batch)
  params = PARAMS
  for _ in range(3):
    losses = jax.vmap(jax.grad(_loss), (None, 0))(params, (x[:, 0], y[:, 0]))
    params = jax.tree.map(lambda p, g: p - RATE * g.mean(0), params, losses)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.params,
    params,
  )


# Attack, codec and mesh, without a further line of the method.


@pytest.mark.parametrize('name', METHODS)
def test_a_rule_holds_against_liars(name):
  attack = {
    'attack': byzjax.sign_flip(scale=20.0),
    'byzantine': 2,
  }
  broken, _ = _train(_make(name, **attack), 12)
  robust, _ = _train(
    _make(name, aggregator=byzjax.coordinate_median(), **attack), 12
  )
  assert _loss_of_all(robust.params) < 1.2 * _loss_of_all(PARAMS)
  assert not _loss_of_all(broken.params) < 10 * _loss_of_all(PARAMS)


@pytest.mark.parametrize(
  'name, options',
  [
    ('scaffold', {}),
    ('fed_dyn', {'codec': byzjax.qsgd_codec(norm='l2')}),
    pytest.param('scaffold', {'participation': 4}, marks=pytest.mark.slow),
  ],
  ids=['plain', 'codec', 'participation'],
)
def test_a_mesh_agrees_with_one_device(name, options):
  mesh = jax.make_mesh(
    (4,),
    ('workers',),
    (jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )
  options = options | {
    'aggregator': byzjax.krum(num_byzantine=1),
    'attack': byzjax.alie(z=1.0),
    'byzantine': 1,
  }
  alone, _ = _train(_make(name, **options), 2)
  split, _ = _train(_make(name, mesh=mesh, **options), 2)
  for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(split.params)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  spec = split.workers.sharding.spec
  assert tuple(spec)[:1] == ('workers',)


def test_who_is_absent_keeps_its_variate():
  weights = jnp.array([1.0] * 6 + [0.0] * 2)
  state, _ = _train(_make('scaffold', worker_weights=weights), 2)
  assert not state.workers[6:].any() and state.workers[:6].any()
  w, b = _numpy_scaffold([range(6)] * 2)
  np.testing.assert_allclose(state.params['w'], w, rtol=2e-5, atol=2e-6)


def test_variates_stay_in_a_round_without_a_learning_rate():
  still = _make('scaffold', learning_rate=lambda t: RATE * (t != 1))
  state, _ = _train(still, 3)
  w, b = _numpy_scaffold([range(N)] * 2)
  np.testing.assert_allclose(state.params['w'], w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize('name', METHODS)
def test_states_keep_the_dtype_of_the_parameters(name, dtype):
  # In float64, as a schedule is for who has switched that on.
  with jax.enable_x64(True):
    options = {'alpha': np.float64(ALPHA)} if name == 'fed_dyn' else {}
    training = _make(name, learning_rate=lambda t: jnp.float64(RATE), **options)
    state = training.init(jax.tree.map(lambda p: p.astype(dtype), PARAMS))
    batch = jax.tree.map(lambda x: x.astype(dtype), _data())
    new, _ = jax.eval_shape(training.step, state, batch, KEY)

  def types(state):
    return jax.tree.map(lambda x: x.dtype, state)

  assert types(new) == types(state) and new.workers.dtype == dtype


@pytest.mark.parametrize(
  'make, message',
  [
    (
      lambda: byzjax.from_work(
        None, num_workers=2, aggregator=byzjax.mean(), optimizer=optax.sgd(1.0)
      ),
      'from_work needs work',
    ),
    (lambda: _make('fed_dyn', attack=byzjax.alie()), 'fed_dyn .*byzantine='),
    (
      lambda: byzjax.fed_dyn(_loss, learning_rate=0.1, alpha=0, num_workers=2),
      'fed_dyn needs alpha > 0, got 0',
    ),
    (
      lambda: byzjax.scaffold(_loss, learning_rate=0, num_workers=2),
      'scaffold needs learning_rate > 0, got 0',
    ),
    (
      lambda: _make('fed_dyn', worker_weights=jnp.arange(N)),
      r'fed_dyn needs worker_weights > 0, got \[0 1 .*use participation',
    ),
    (
      lambda: _make('fed_dyn', worker_weights=lambda step: jnp.ones(N)),
      r'fed_dyn needs worker_weights to be float\[8\] or None, got the sched',
    ),
  ],
)
def test_wrong_arguments_are_refused(make, message):
  with pytest.raises((TypeError, ValueError), match=message):
    make()
