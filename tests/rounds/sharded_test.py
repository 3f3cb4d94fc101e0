"""Rounds on one device and on several: same numbers, right communication."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests import tables
from tests.rounds import problem

N = problem.N
F = 3
ATTACKS = ['alie', 'gaussian']
# One for each way to use the mesh. The others share these, and go round in slow
# tests.
KINDS = {
  'bucketing_geometric_median',
  'centered_clipping',
  'clipped_clustering',
  'coordinate_median',
  'divide_and_conquer_sampled',
  'nnm_krum',
}


def _alie_or_gaussian():
  """Either attack, as the state says: one program for both."""

  def apply(messages, use_alie, **knowledge):
    alie, _ = byzjax.alie(z=1.0).apply(messages, (), **knowledge)
    noise, _ = byzjax.gaussian(std=0.5).apply(messages, (), **knowledge)
    return jnp.where(use_alie, alie, noise), use_alie

  return byzjax.Attack(lambda params: jnp.zeros([], bool), apply)


@functools.cache
def _program(name, mesh, n=N, axis_name='workers'):
  rounds = problem.training(
    aggregator=tables.RULE[name].make(F, 1.0),
    worker=byzjax.worker_momentum(0.9),
    attack=_alie_or_gaussian(),
    byzantine=F,
    mesh=mesh,
    num_workers=n,
    axis_name=axis_name,
  )

  @jax.jit
  def run(state, batches, use_alie):
    state = state._replace(attack=use_alie)
    step = functools.partial(rounds.step, key=problem.KEY)
    return jax.lax.scan(step, state, batches)

  return rounds.init(problem.params()), run


def _train(name, attack, mesh=None, n=N, axis_name='workers', num_rounds=20):
  state, run = _program(name, mesh, n, axis_name)
  batches = problem.batches(num_rounds, n)
  return run(state, batches, jnp.asarray(attack == 'alie'))


def _assert_same(result, expected):
  (state, infos), (expected_state, expected_infos) = result, expected
  np.testing.assert_allclose(
    problem.flat(state.params), problem.flat(expected_state.params), 1e-5, 1e-5
  )
  for name in ('loss', 'aggregation_error', 'weights'):
    a, b = getattr(infos, name), getattr(expected_infos, name)
    assert (a is None) == (b is None)
    if a is not None:
      np.testing.assert_allclose(a, b, 1e-4, 1e-5)
  np.testing.assert_array_equal(infos.masked, expected_infos.masked)
  moved = problem.flat(state.params) - problem.flat(problem.params())
  assert np.linalg.norm(moved) > 0.05  # something was learnt


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in tables.ON_A_MESH
  ],
)
def test_eight_devices_agree_with_one_after_twenty_rounds(name, attack):
  _assert_same(_train(name, attack, problem.mesh(8)), _train(name, attack))


@pytest.mark.parametrize('name', ['coordinate_median', 'nnm_krum'])
@pytest.mark.parametrize(
  'shape, axis_name',
  [
    ((1,), 'workers'),
    pytest.param((2,), 'workers', marks=pytest.mark.slow),
    pytest.param((4,), 'workers', marks=pytest.mark.slow),
    ((4, 2), 'workers'),
    ((4, 2), ('workers', 'model')),
  ],
  ids=str,
)
def test_any_mesh_agrees_with_one_device(name, shape, axis_name):
  mesh = problem.mesh(*shape)
  result = _train(name, 'gaussian', mesh, axis_name=axis_name)
  _assert_same(result, _train(name, 'gaussian'))


@pytest.mark.parametrize('num_devices', [3, 6])
def test_noise_does_not_depend_on_the_number_of_devices(num_devices):
  result = _train('mean', 'gaussian', problem.mesh(num_devices), n=12)
  _assert_same(result, _train('mean', 'gaussian', n=12))


def test_a_mesh_with_explicit_axes_will_do():
  mesh = jax.make_mesh((8,), ('workers',))
  name = 'centered_clipping'
  _assert_same(_train(name, 'alie', mesh), _train(name, 'alie'))


@pytest.mark.parametrize('devices', [None, 8])
def test_gradients_of_workers_are_their_own(devices):
  # Inside shard_map, gradients of replicated parameters are summed over the
  # devices, silently, unless somebody prevents it.
  mesh = devices and problem.mesh(devices)
  rounds = problem.training(worker=byzjax.worker_momentum(0.0), mesh=mesh)
  params, batch = problem.params(), problem.batch()
  state, _ = jax.jit(rounds.step)(rounds.init(params), batch, problem.KEY)
  expected = jax.vmap(jax.grad(problem.loss_fn), (None, 0))(params, batch)
  expected = np.stack(
    [
      problem.flat(jax.tree.map(lambda g, i=i: g[i], expected))
      for i in range(N)
    ]
  )
  assert np.linalg.norm(expected[0] - expected[8]) > 0.1  # distinguishable
  np.testing.assert_allclose(state.workers.momentum, expected, 1e-5, 1e-6)


@pytest.mark.parametrize('worker', [0, 9])
def test_a_sharded_rule_that_selects_a_worker_steps_along_its_gradient(worker):
  rounds = problem.training(
    aggregator=problem.select(worker),
    optimizer=optax.sgd(1.0),
    mesh=problem.mesh(8),
  )
  params, batch = problem.params(), problem.batch()
  state, info = jax.jit(rounds.step)(rounds.init(params), batch, problem.KEY)
  mine = jax.tree.map(lambda x: x[worker], batch)
  gradient = problem.flat(jax.grad(problem.loss_fn)(params, mine))
  step = problem.flat(params) - problem.flat(state.params)
  np.testing.assert_allclose(step, gradient, 1e-5, 1e-6)
  np.testing.assert_array_equal(info.weights, np.arange(N) == worker)


# The compiled program.

WIDTH = 4096


def _wide_round(rule, mesh):
  def loss_fn(params, batch):
    return jnp.mean((params[None] - batch) ** 2)

  return byzjax.robust_round(
    loss_fn,
    aggregator=rule.make(F, 1.0),
    optimizer=optax.sgd(0.1, momentum=0.9),
    num_workers=N,
    worker=byzjax.worker_momentum(0.9),
    attack=byzjax.alie(z=1.0),
    byzantine=F,
    mesh=mesh,
  )


def _arguments(rounds):
  state = rounds.init(jnp.zeros(WIDTH))
  return state, jnp.ones((N, 2, WIDTH)), problem.KEY


def collectives(hlo):
  """`[(name, entries of the result), ...]` of every collective in HLO text."""
  ops = []
  names = 'all-gather all-reduce all-to-all collective-permute reduce-scatter'
  pattern = rf'= (.*?) ({"|".join(names.split())})(?:-start)?\('
  for match in re.finditer(pattern, hlo):
    shapes = re.findall(r'\w+\[([\d,]*)\]', match[1])
    sizes = [math.prod(int(n) for n in s.split(',') if n) for s in shapes]
    ops.append((match[2], sum(sizes)))
  return ops


@pytest.mark.parametrize(
  'name', ['coordinate_median', 'krum', 'centered_clipping', 'nnm_krum']
)
def test_no_collective_is_as_large_as_all_messages(name):
  rounds = _wide_round(tables.RULE[name], problem.mesh(8))
  compiled = jax.jit(rounds.step).lower(*_arguments(rounds)).compile()
  ops = collectives(compiled.as_text())
  assert max(size for _, size in ops) < N * WIDTH
  # Workers to coordinates, once, and the aggregate back, once.
  exchanged = [size for kind, size in ops if kind == 'all-to-all']
  assert exchanged == [N * WIDTH // 8]
  gathered = [size for kind, size in ops if kind == 'all-gather']
  assert gathered == [WIDTH]
  # What is left are sums of n x n numbers or less.
  summed = [size for kind, size in ops if kind == 'all-reduce']
  assert sum(summed) <= 2 * N * N + 8 * N


def test_the_check_on_collectives_sees_a_gather_of_all_messages():
  def gather(x):
    return jnp.median(jax.lax.all_gather(x, 'workers', tiled=True), axis=0)

  sharded = jax.shard_map(
    gather,
    mesh=problem.mesh(8),
    in_specs=jax.P('workers'),
    out_specs=jax.P(),
    check_vma=False,
  )
  compiled = jax.jit(sharded).lower(jnp.ones((N, WIDTH))).compile()
  sizes = [size for _, size in collectives(compiled.as_text())]
  assert max(sizes) >= N * WIDTH


@pytest.mark.parametrize('devices', [None, 8])
@pytest.mark.parametrize('name', ['krum', 'bucketing_geometric_median'])
def test_the_program_never_calls_the_host(name, devices):
  mesh = devices and problem.mesh(devices)
  rounds = _wide_round(tables.RULE[name], mesh)
  traced = jax.jit(rounds.step).trace(*_arguments(rounds))
  hlo = traced.lower().compile().as_text()
  for text in (str(traced.jaxpr), hlo):
    for word in ('callback', 'infeed', 'outfeed', 'custom-call', 'send('):
      assert word not in text, word


@pytest.mark.parametrize('devices', [None, 8])
def test_one_executable_and_donated_buffers(devices):
  mesh = devices and problem.mesh(devices)
  rounds = _wide_round(tables.RULE['centered_clipping'], mesh)
  step = jax.jit(rounds.step, donate_argnums=0)
  params = jnp.ones(WIDTH)
  state, batch, key = rounds.init(params), *_arguments(rounds)[1:]
  memory = step.lower(state, batch, key).compile().memory_analysis()
  local = sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
  )
  assert memory.alias_size_in_bytes >= 0.99 * local
  for _ in range(4):
    donated = state.workers.momentum
    state, _ = step(state, batch, key)
    assert donated.is_deleted()
  assert step._cache_size() == 1
  np.testing.assert_array_equal(params, np.ones(WIDTH))  # still the caller's
