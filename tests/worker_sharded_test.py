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
from tests.rounds import sharded_test

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


AUTO = (jax.sharding.AxisType.Auto,) * 3


def _mesh(shape):
  return jax.make_mesh(shape, AXES, axis_types=AUTO)


def _messages(seed=0):
  """Six honest workers near each other; two that lie in the copied leaf."""
  random = np.random.default_rng(seed)
  x = {k: random.normal(size=(N, *shape)) for k, shape in SHAPES.items()}
  x['norm'][2] += 30.0
  return jax.tree.map(np.float32, x)


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
# One for each way in which coordinates matter; the others are slow tests.
OTHERS = [
  'centered_clipping',
  'bucketing_geometric_median',
  'clipped_clustering',
]
OTHERS += ['divide_and_conquer_sampled']


def _slow(names, quick):
  marks = {True: (), False: pytest.mark.slow}
  return [pytest.param(k, marks=marks[k in quick]) for k in names]


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


@pytest.mark.parametrize('name', _slow(tables.ON_A_MESH, OTHERS))
def test_every_rule_agrees_with_one_device(name):
  _check_rule(_rule(name), (2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES[:-1], ids=str)
@pytest.mark.parametrize('name', tables.ON_A_MESH)
def test_every_rule_on_every_mesh(name, shape):
  _check_rule(_rule(name), shape)


ATTACKS = {attack.name: attack.make() for attack in tables.ATTACKS}
ATTACKS |= {k: v for k, v in scenes.ATTACKS.items() if k != 'replay_own'}
ATTACKS['gaussian'] = byzjax.gaussian(std=0.5)
ATTACKS['replay_own'] = byzjax.replay(delay=2, own=True, num_workers=N)
ATTACKS['adaptive'] = byzjax.adaptive(
  byzjax.alie(z=1.0), byzjax.krum(num_byzantine=1), num_refinements=0
)


QUICK_ATTACKS = ['alie', 'gaussian', 'mimic', 'min_max', 'drift', 'replay']


def _check_attack(name, shape):
  attack, rule = ATTACKS[name], byzjax.mean()
  sharded = byzjax.worker_sharded(
    rule,
    'workers',
    attack,
    coordinate_axes=('fsdp', 'tensor'),
    specs=SPECS,
  )
  messages = _messages()
  result, _ = _call(sharded, _mesh(shape), is_byzantine=BAD)(messages)
  _assert_same(result, _on_one_device(rule, attack)(messages))


@pytest.mark.parametrize('name', _slow(ATTACKS, QUICK_ATTACKS))
def test_every_attack_agrees_with_one_device(name):
  _check_attack(name, (2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES[:-1], ids=str)
@pytest.mark.parametrize('name', ATTACKS)
def test_every_attack_on_every_mesh(name, shape):
  _check_attack(name, shape)


def _krum(**options):
  rule = byzjax.krum(num_byzantine=2)
  return byzjax.worker_sharded(rule, 'workers', **options)


def test_both_halves_come_from_the_worker_that_one_device_selects():
  # In 16 of 20 such draws they did not, where each half was scored alone.
  mesh = jax.make_mesh((4, 2), AXES[:2], axis_types=AUTO[:2])
  specs = {'x': P('fsdp')}
  sharded = _call(_krum(coordinate_axes='fsdp'), mesh, specs)
  alone = jax.jit(lambda x: byzjax.krum(num_byzantine=2)(x))
  for seed in range(20):
    x = np.random.default_rng(seed).normal(size=(N, 8)).astype(np.float32)
    np.testing.assert_array_equal(sharded({'x': x})[0]['x'], alone(x))


def test_a_copied_leaf_counts_once():
  random = np.random.default_rng(0)
  mesh = jax.make_mesh((2, 4), AXES[:2], axis_types=AUTO[:2])
  specs = {'split': P('fsdp'), 'copied': P()}
  rule = _call(_krum(coordinate_axes='fsdp'), mesh, specs)
  alone = jax.jit(lambda x: byzjax.krum(num_byzantine=2)(x))
  differs = 0
  for _ in range(20):
    messages = {
      'split': random.normal(size=(N, 8)).astype(np.float32),
      'copied': random.normal(size=(N, 3)).astype(np.float32),
    }
    expected = alone(messages)
    jax.tree.map(np.testing.assert_array_equal, rule(messages)[0], expected)
    often = {**messages, 'copied': 2 * messages['copied']}  # four times
    differs += np.any(alone(often)['split'] != expected['split'])
  assert differs > 2  # to count it on every device would be seen


def test_a_scalar_and_a_nan_in_a_copied_leaf_mask_the_whole_message():
  messages = _messages()
  messages['scale'][5] = np.nan
  sharded = _call(
    byzjax.worker_sharded(
      byzjax.mean(), 'workers', coordinate_axes=('fsdp', 'tensor')
    ),
    _mesh((2, 2, 2)),
  )
  result, (weights, mask, _) = sharded(messages)
  np.testing.assert_array_equal(mask, np.arange(N) != 5)
  assert weights[5] == 0
  _assert_same(result, byzjax.mean()(messages))


def test_the_state_goes_from_call_to_call():
  inner = byzjax.centered_clipping(radius=1.0)
  rule = byzjax.worker_sharded(
    inner, 'workers', coordinate_axes=('fsdp', 'tensor')
  )
  rows = jax.tree.map(lambda spec: P('workers', *spec), SPECS)
  state_specs = P(AXES)

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=_mesh((2, 2, 2)),
    in_specs=(rows, SPECS, state_specs),
    out_specs=(SPECS, state_specs),
  )
  def step(messages, params, state):
    return rule.update(messages, state, params)

  init = jax.shard_map(
    rule.init, mesh=_mesh((2, 2, 2)), in_specs=(SPECS,), out_specs=state_specs
  )
  messages = _messages()
  params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)
  state, alone = init(params), inner.init(params)
  for _ in range(2):
    result, state = step(messages, params, state)
    expected, alone = inner.update(messages, alone)
    _assert_same(result, expected)
  assert step._cache_size() == 1


# The compiled program.


@pytest.mark.parametrize('name', ['coordinate_median', 'krum'])
@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_no_operand_is_as_large_as_all_messages(name, shape):
  specs = {'w': P(None, ('fsdp', 'tensor')), 'v': P('fsdp'), 'b': P()}
  like = {'w': (N, 64, 64), 'v': (N, 64), 'b': (N, 30)}
  messages = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32), like, is_leaf=_is_shape
  )
  rule = byzjax.worker_sharded(
    _rule(name), 'workers', coordinate_axes=('fsdp', 'tensor')
  )
  compiled = _call(rule, _mesh(shape), specs).lower(messages).compile()
  text = compiled.as_text()
  shapes = re.findall(r'\b(?:f|s|u|pred)\d*\[([\d,]+)\]', text)
  largest = max(int(np.prod([int(k) for k in s.split(',')])) for s in shapes)
  # A device's own messages, and what is copied of them is small.
  own = N // shape[0] * (64 * 64 // (shape[1] * shape[2]) + 64 // shape[1] + 30)
  assert largest <= own + 64
  found = [kind for kind, _ in sharded_test.collectives(text)]
  groups = len({spec for spec in specs.values()}) if shape[1] > 1 else 3
  assert found.count('all-to-all') == groups
  assert found.count('all-gather') <= 2 * groups
  assert found.count('all-reduce') <= 4


def _is_shape(x):
  return isinstance(x, tuple)


# Wrong uses.


def _lower(rule, mesh, in_specs, check_vma=True):
  def aggregate(messages):
    params = jax.tree.map(lambda x: x[0], messages)
    return rule.update(messages, rule.init(params))[0]

  sharded = jax.shard_map(
    aggregate, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=check_vma
  )
  jax.eval_shape(sharded, jax.ShapeDtypeStruct((N, 8), jnp.float32))


@pytest.mark.parametrize(
  'options, in_specs, check_vma, message',
  [
    ({}, P('workers', 'fsdp'), True, "vary over the mesh axis 'fsdp' too"),
    (
      {'coordinate_axes': 'fsdp'},
      P('workers', ('fsdp', 'tensor')),
      True,
      "mesh axis 'tensor' too",
    ),
    ({}, P(), True, "over the worker axis 'workers' .* the same rows"),
    ({}, P('workers'), False, 'check_vma=False'),
    ({'coordinate_axes': 'model'}, P('workers'), True, "got 'model'"),
    (
      {'coordinate_axes': 'fsdp', 'specs': P('tensor')},
      P('workers', 'fsdp'),
      True,
      r"needs specs to be .* split over \['fsdp'\]",
    ),
    (
      {'coordinate_axes': 'fsdp', 'specs': {'a': P('fsdp')}},
      P('workers', 'fsdp'),
      True,
      'specs to be a tree of PartitionSpecs',
    ),
  ],
)
def test_wrong_axes_are_refused(options, in_specs, check_vma, message):
  with pytest.raises(ValueError, match=message):
    _lower(_krum(**options), _mesh((2, 2, 2)), in_specs, check_vma)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'coordinate_axes': 'workers'}, 'each axis to be named once'),
    ({'coordinate_axes': 3}, 'coordinate_axes to be the name .* got 3'),
  ],
)
def test_wrong_names_are_refused_at_once(options, message):
  with pytest.raises(ValueError, match=message):
    _krum(**options)


def test_a_state_for_other_local_leaves_is_refused():
  rule = byzjax.worker_sharded(
    byzjax.centered_clipping(radius=1.0), 'workers', coordinate_axes='fsdp'
  )

  def aggregate(messages, params):
    return rule.update(messages, rule.init(params))[0]

  sharded = jax.shard_map(
    aggregate,
    mesh=_mesh((4, 2, 1)),
    in_specs=(P('workers', 'fsdp'), P('fsdp')),
    out_specs=P('fsdp'),
  )
  with pytest.raises(ValueError, match='state that its init returns'):
    jax.eval_shape(sharded, jnp.zeros((N, 64)), jnp.zeros(32))
