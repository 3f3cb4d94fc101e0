"""Losses that take a key and report more than a loss, in every round.

Every call of the loss writes down what it was given. The rounds are then held
to a loop over the workers that makes the same calls one by one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax.rounds import _local_steps, _local_work
from tests.rounds import every_round

N, H, ROUNDS = every_round.N, every_round.H, every_round.ROUNDS
KEY, RATE = jax.random.key(5), 0.1
ONE_STEP = ('robust_round', 'gossip_round')
RANDOM = np.random.default_rng(0)


def loss_fn(params, batch, key):
  """Dropout on two parameters; sums of two numbers have no order."""
  kept = jax.random.bernoulli(key, 0.5, params.shape)
  residuals = jnp.where(kept, params, 0) - batch
  aux = {'kept': kept, 'count': jnp.sum(kept), 'top': jnp.max(residuals)}
  return jnp.sum(jnp.abs(residuals) * batch), aux


def without_key(params, batch):
  return loss_fn(params, batch, jax.random.key(3))


def without_aux(params, batch, key):
  return loss_fn(params, batch, key)[0]


def batches(name, num_rounds=2):
  """Leaves [T, n, (H,) 2], no two alike; an event sees all its shard has."""
  lead = (num_rounds, N, 2) if name in ONE_STEP else (num_rounds, N, H, 2)
  x = RANDOM.normal(size=lead).astype(np.float32)
  if name == 'asynchronous_round':
    x = np.moveaxis(x, 0, 1).reshape(1, N, num_rounds * H, 2)
    x = np.tile(x, (num_rounds * N, 1, 1, 1))
  return jnp.asarray(x)


class Calls(list):
  """What a loss was given: `(params, batch, key data)`."""

  def of(self, loss_fn, unwrap=lambda params: params):
    def recorded(params, batch, key):
      params = unwrap(params)
      jax.debug.callback(
        lambda *call: self.append(tuple(map(np.asarray, call))),
        params,
        batch,
        jax.random.key_data(key),
      )
      return loss_fn(params, batch, key)

    return recorded

  def on(self, batch):
    (call,) = [c for c in self if np.array_equal(c[1], batch)]
    return call


def run(name, training, batches):
  params = every_round.as_params(name, jnp.array([0.3, -0.2]))
  step = functools.partial(training.step, key=KEY)
  scanned = jax.jit(functools.partial(jax.lax.scan, step))
  result = jax.block_until_ready(scanned(training.init(params), batches))
  jax.effects_barrier()
  return result


def unwrap(name):
  if name == 'modular_round':
    return lambda path: path[0]
  return lambda params: params


def slices_of(name, x, t):
  """The batches [rows, steps, 2] of the workers that are in round t."""
  if name == 'asynchronous_round':
    return x[t, t % N, t // N * H :][None, :H]
  return x[t][:, None] if name in ONE_STEP else x[t]


@pytest.mark.parametrize('name', ROUNDS)
def test_equals_a_loop_over_workers(name):
  calls, x = Calls(), batches(name)
  recorded = calls.of(loss_fn, unwrap(name))
  training = ROUNDS[name](recorded, needs_key=True, has_aux=True)
  _, infos = run(name, training, x)
  one = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

  for t in range(len(x)):
    losses = []
    for row, steps in enumerate(slices_of(name, x, t)):
      values, before = [], None
      for batch in steps:
        params, _, data = calls.on(batch)
        if before is not None and name not in ('elastic_averaging', 'parle'):
          np.testing.assert_allclose(params, before, 1e-6)
        value, gradient = one(params, batch, jax.random.wrap_key_data(data))
        before = params - RATE * gradient
        values.append(value)
      mean = values[0]
      if name not in ONE_STEP:
        mean = jax.tree.map(
          lambda *xs: sum(np.float32(x) for x in xs) / np.float32(H), *values
        )
      losses.append(mean[0])
      actual = jax.tree.map(lambda a, t=t, row=row: a[t, row], infos.aux)
      for leaf, expected in zip(
        jax.tree.leaves(actual), jax.tree.leaves(mean[1]), strict=True
      ):
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.dtype == expected.dtype
    np.testing.assert_allclose(infos.loss[t], np.mean(losses), 1e-6)
  steps = 2 * N * (1 if name in ONE_STEP else H)
  # A key for every worker, round and step.
  assert len(calls) == len({tuple(c[2].tolist()) for c in calls}) == steps


@pytest.mark.parametrize('name', ROUNDS)
def test_each_flag_alone(name):
  x = batches(name, 1)
  path = unwrap(name)

  def plain(params, batch):
    return without_key(path(params), batch)[0]

  def with_aux(params, batch):
    return without_key(path(params), batch)

  def with_key(params, batch, key):
    return without_aux(path(params), batch, jax.random.fold_in(key, 0))

  state, info = run(name, ROUNDS[name](plain), x)
  assert info.aux is None
  same, reported = run(name, ROUNDS[name](with_aux, has_aux=True), x)
  jax.tree.map(
    np.testing.assert_array_equal,
    (state, info, (1 if name == 'asynchronous_round' else N, 2)),
    (same, reported._replace(aux=None), reported.aux['kept'].shape[1:]),
  )
  _, info = run(name, ROUNDS[name](with_key, needs_key=True), x)
  assert info.aux is None


BOTH = dict(needs_key=True, has_aux=True)


@pytest.mark.parametrize(
  'name', ['robust_round', 'local_round', 'gossip_round']
)
def test_one_worker_after_another(name):
  x = batches(name, 1)

  def loss(params, batch, key):
    return loss_fn(unwrap(name)(params), batch, key)

  one, two = (
    run(name, ROUNDS[name](loss, worker_map=how, **BOTH), x)[1].aux
    for how in ('vmap', 'map')
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), one, two)


@pytest.mark.parametrize(
  'name', ['robust_round', 'local_round', 'gossip_round', 'parle']
)
def test_on_a_mesh(name):
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((2,), ('workers',), axis_types=auto)

  def loss(params, batch, key):
    value, aux = loss_fn(params, batch, key)
    return value, {**aux, 'constant': jnp.ones(3)}

  x = batches(name)
  one, two = (
    run(name, ROUNDS[name](loss, mesh=mesh, **BOTH), x)[1].aux
    for mesh in (None, mesh)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), one, two)
  assert two['constant'].shape == (2, N, 3)


def test_of_those_who_take_part():
  def loss(params, batch, key):
    del key
    return jnp.sum(params * batch), batch

  x = batches('local_round')
  training = ROUNDS['local_round'](loss, participation=3, **BOTH)
  _, info = run('local_round', training, x)
  for t in range(2):
    drawn = x[t][info.participants[t]]
    np.testing.assert_array_equal(
      info.aux[t], (drawn[:, 0] + drawn[:, 1]) / np.float32(2)
    )


def test_mean_over_the_steps_that_a_worker_takes():
  def loss(params, batch):
    return jnp.sum(params * batch), jnp.int32(100 * batch[0])

  x = batches('local_round', 1)
  training = ROUNDS['local_round'](
    loss, num_local_steps=lambda step: jnp.arange(4) % 3, has_aux=True
  )
  _, info = run('local_round', training, x)
  whole = np.int32(100 * x[0, :, :, 0]).astype(np.float32)
  expected = [0, whole[1, 0], (whole[2, 0] + whole[2, 1]) / 2, 0]
  np.testing.assert_array_equal(info.aux[0], np.float32(expected))


def recording(drawn):
  def record(key):
    jax.debug.callback(
      lambda data: drawn.add(tuple(np.asarray(data).ravel().tolist())),
      jax.random.key_data(key),
    )

  return record


@pytest.mark.parametrize('on_data', [False, True])
def test_nothing_else_is_drawn_from_the_keys_of_the_loss(on_data, monkeypatch):
  others, calls = set(), Calls()
  record = recording(others)
  plain = _local_steps.take_in_turn()

  def start(state, params, data, key):
    record(key)
    return plain.start(state, params, data, key)

  def draw(plan, data, step, key):
    record(key)
    return plain.draw(plan, data, step, key)

  def data_attack(batch, is_byzantine, key):
    record(key)
    return jnp.where(is_byzantine[:, None], batch + 0.1, batch)

  def apply(messages, state, *, key, **_):
    record(key)
    return messages, state

  inner = byzjax.sparsign_codec(budget=1.0)

  def encode(x, state, key, **known):
    record(key)
    return inner.encode(x, state, key, **known)

  diagonal = _local_work.hutchinson_diagonal

  def probe(loss):
    def estimate(params, batch, key):
      record(key)
      return diagonal(loss)(params, batch, key)

    return estimate

  monkeypatch.setattr(_local_work, 'hutchinson_diagonal', probe)
  training = ROUNDS['local_round'](
    calls.of(loss_fn),
    sampler=plain._replace(start=start, draw=draw),
    attack=data_attack if on_data else byzjax.Attack(lambda p: (), apply),
    byzantine=1,
    codec=inner._replace(encode=encode),
    preconditioner=byzjax.scale_by_preconditioner('oasis', lower_bound=0.1),
    **BOTH,
  )
  run('local_round', training, batches('local_round'))
  mine = {tuple(c[2].ravel().tolist()) for c in calls}
  assert len(others) > 2 * N * H and len(mine) == 2 * N * H
  assert not mine & others
