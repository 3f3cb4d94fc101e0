"""Redundant groups, and that their gradients are equal bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import data
from tests.rounds import problem

N, R, ROUNDS = 6, 3, 3
KINDS = ['alie', 'nan', 'different', 'huge']
ONE_EACH = np.array([0, 1, 0, 0, 0, 1], bool)


def test_every_batch_goes_to_the_workers_of_its_group():
  batch = {
    'x': jnp.arange(6.0).reshape(3, 2),
    'key': jax.random.split(jax.random.key(0), 3),
  }
  workers = data.redundant_groups(batch, 3)
  assert workers['x'].shape == (9, 2)
  keys = jax.random.key_data(batch['key'])
  for i in range(9):
    np.testing.assert_array_equal(workers['x'][i], batch['x'][i // 3])
    key = jax.random.key_data(workers['key'][i])
    np.testing.assert_array_equal(key, keys[i // 3])


@pytest.mark.parametrize(
  'batch, group_size, message',
  [
    (np.ones(4), 2, 'redundant_groups needs group_size to be odd, got 2'),
    ((np.ones(4), np.ones(3)), 3, 'redundant_groups: batch must have leaves'),
  ],
)
def test_bad_arguments_are_refused_by_name(batch, group_size, message):
  with pytest.raises(ValueError, match=message):
    data.redundant_groups(batch, group_size)


def _attack():
  """One of four attacks, as the state says: one program for all."""

  def apply(messages, kind, *, is_byzantine, **knowledge):
    alie, _ = byzjax.alie(z=1.5).apply(
      messages, (), is_byzantine=is_byzantine, **knowledge
    )
    number = jnp.arange(1.0, N + 1)[:, None]
    sent = [alie, jnp.nan, -number * messages, 1e30]
    for i, value in enumerate(sent):
      chosen = is_byzantine & (kind == i)
      messages = jnp.where(chosen[:, None], value, messages)
    return messages, kind

  return byzjax.Attack(lambda params: jnp.zeros([], jnp.int32), apply)


@functools.cache
def _program(worker_map, devices):
  @jax.jit
  def run(params, mask, kind):
    training = problem.training(
      num_workers=N,
      aggregator=byzjax.detox(group_size=R, rule=byzjax.mean()),
      worker=byzjax.worker_momentum(0.9),
      optimizer=optax.sgd(0.5),
      attack=_attack(),
      byzantine=mask,
      worker_map=worker_map,
      mesh=devices and problem.mesh(devices),
    )
    batches = jax.vmap(lambda batch: data.redundant_groups(batch, R))(
      problem.batches(ROUNDS, N // R)
    )
    state = training.init(params)._replace(attack=kind)
    step = functools.partial(training.step, key=problem.KEY)
    state, infos = jax.lax.scan(step, state, batches)
    return state.params, infos.kept

  return lambda mask, kind: run(problem.params(), mask, jnp.int32(kind))


# Three devices have two workers each: groups do not stay on one device.
@pytest.mark.parametrize(
  'worker_map, devices',
  [('vmap', None), ('map', None), (2, None), ('vmap', 2), ('vmap', 3)],
)
def test_one_attacker_in_every_group_changes_no_bit(worker_map, devices):
  run = _program(worker_map, devices)
  expected, kept = run(np.zeros(N, bool), 0)
  assert np.asarray(kept).all()  # every group computed the same bits
  expected = problem.flat(expected)
  assert np.linalg.norm(expected - problem.flat(problem.params())) > 0.05
  for kind in range(len(KINDS)):
    result, kept = run(ONE_EACH, kind)
    np.testing.assert_array_equal(problem.flat(result), expected)
    np.testing.assert_array_equal(kept, np.tile(~ONE_EACH, (ROUNDS, 1)))


def test_two_attackers_in_a_group_do_change_it():
  run = _program('vmap', None)
  expected = problem.flat(run(np.zeros(N, bool), 0)[0])
  mask = byzjax.worst_case_byzantine(N, 2, R)
  for kind in range(len(KINDS)):
    result, kept = run(mask, kind)
    result = problem.flat(result)
    assert np.isfinite(result).all() or KINDS[kind] == 'huge'
    assert (result != expected).any()
    elected = [True, True, False] if kind != 2 else [False] * 3
    np.testing.assert_array_equal(kept[0], elected + [True] * 3)
