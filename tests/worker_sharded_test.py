"""`worker_sharded` where messages are split over the mesh as well."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import byzjax
from tests import tables
from tests.attacks import scenes

N, F = 8, 1
KEY = jax.random.key(3)
BAD = np.arange(N) == 2
AXES = ('workers', 'fsdp', 'tensor')
# Split along the first or the second dimension, by one axis or both, or copied;
# `norm` and `scale` are not divisible. What an outlier may hide in is copied.
SHAPES = {
  'embedding': (8, 5),
  'kernel': (3, 16),
  'both': (4, 4),
  'norm': (7,),
  'scale': (),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
MESHES = [(8, 1, 1), (4, 2, 1), (2, 4, 1), (2, 2, 2)]
SPECS = {
  'embedding': P('fsdp'),
  'kernel': P(None, ('fsdp', 'tensor')),
  'both': P('tensor', 'fsdp'),
  'norm': P(),
  'scale': P(),
}


def _mesh(shape):
  auto = (jax.sharding.AxisType.Auto,) * 3
  return jax.make_mesh(shape, AXES, axis_types=auto)


def _messages(seed=0):
  """Six honest workers near each other; two that lie in the copied leaf."""
  random = np.random.default_rng(seed)
  x = {k: random.normal(size=(N, *shape)) for k, shape in SHAPES.items()}
  x['norm'][2] += 30.0
  return jax.tree.map(jnp.float32, x)


def _call(rule, mesh, specs=None, **extra):
  """The aggregate and the diagnostics, as one device has them."""
  specs = SPECS if specs is None else specs
  rows = jax.tree.map(lambda spec: P('workers', *spec), specs)

  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(rows,), out_specs=(specs, P())
  )
  def aggregate(messages):
    params = jax.tree.map(lambda x: x[0], messages)
    state = rule.init(params)
    out, _, info = rule.inspect(messages, state, key=KEY, **extra)
    return out, (info.weights, info.mask, info.error)

  return jax.jit(aggregate)


def _on_one_device(rule, attack=None):
  """From the same place, without a mesh."""

  @jax.jit
  def aggregate(messages):
    attack_key, rule_key = jax.random.split(KEY)
    params = jax.tree.map(lambda x: x[0], messages)
    if attack is not None:
      messages = attack.apply(
        messages, attack.init(params), is_byzantine=BAD, key=attack_key
      )[0]
    return rule.inspect(messages, rule.init(params), key=rule_key)[0]

  return aggregate


def _assert_same(result, expected):
  for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, 2e-6, 2e-6)


def _check_rule(rule, shape):
  sharded = byzjax.worker_sharded(
    rule, 'workers', coordinate_axes=('fsdp', 'tensor'), specs=SPECS
  )
  messages = _messages()
  result, _ = _call(sharded, _mesh(shape))(messages)
  _assert_same(result, _on_one_device(rule)(messages))


KINDS = ['krum', 'coordinate_median', 'nnm_trimmed_mean', 'geometric_median']


def _rule(name):
  if name == 'nnm_trimmed_mean':
    return byzjax.pre_aggregate(
      byzjax.nearest_neighbor_mixing(num_byzantine=2),
      byzjax.trimmed_mean(num_byzantine=2),
    )
  return tables.RULE[name].make(F, 1.0)


@pytest.mark.parametrize('shape', MESHES, ids=str)
@pytest.mark.parametrize('name', KINDS)
def test_any_mesh_agrees_with_one_device(name, shape):
  _check_rule(_rule(name), shape)


@pytest.mark.parametrize('name', [k for k in tables.RULE if k not in KINDS])
def test_every_rule_agrees_with_one_device(name):
  _check_rule(_rule(name), (2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES[:-1], ids=str)
@pytest.mark.parametrize('name', [k for k in tables.RULE if k not in KINDS])
def test_every_rule_on_every_mesh(name, shape):
  _check_rule(_rule(name), shape)


ATTACKS = {attack.name: attack.make() for attack in tables.ATTACKS}
ATTACKS |= {k: v for k, v in scenes.ATTACKS.items() if k != 'replay_own'}
ATTACKS['gaussian'] = byzjax.gaussian(std=0.5)
ATTACKS['replay_own'] = byzjax.replay(delay=2, own=True, num_workers=N)
ATTACKS['adaptive'] = byzjax.adaptive(
  byzjax.alie(z=1.0), byzjax.krum(num_byzantine=1), num_refinements=0
)


@pytest.mark.parametrize('name', ATTACKS)
def test_every_attack_agrees_with_one_device(name):
  attack, rule = ATTACKS[name], byzjax.mean()
  sharded = byzjax.worker_sharded(
    rule,
    'workers',
    attack,
    coordinate_axes=('fsdp', 'tensor'),
    specs=SPECS,
  )
  messages = _messages()
  result, _ = _call(sharded, _mesh((2, 2, 2)), is_byzantine=BAD)(messages)
  _assert_same(result, _on_one_device(rule, attack)(messages))
