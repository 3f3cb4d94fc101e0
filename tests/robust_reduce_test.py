"""`robust_reduce`: sharded arrays in, the aggregate in the model's sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import byzjax

N, F = 8, 1
KEY = jax.random.key(3)
# `odd` is split over what does not divide it; an outlier hides in a copy.
SPECS = {
  'embedding': P('fsdp', 'tensor'),
  'kernel': P(None, ('fsdp', 'tensor')),
  'odd': P('fsdp'),
  'norm': P(),
  'scale': P(),
}
SHAPES = {
  'embedding': (4, 6),
  'kernel': (3, 16),
  'odd': (7, 5),
  'norm': (6,),
  'scale': (),
}
MESHES = {
  '8': ((8,), ('diloco',)),
  '4x2': ((4, 2), ('diloco', 'fsdp')),
  '2x4': ((2, 4), ('diloco', 'fsdp')),
  '2x2x2': ((2, 2, 2), ('diloco', 'fsdp', 'tensor')),
  # Worker axes in two parts, not the first of the mesh; copies; a size of one.
  'pods': ((2, 2, 2, 1), ('data', 'diloco', 'pod', 'fsdp')),
}


def _mesh(name, kind=AxisType.Auto):
  shape, axes = MESHES[name]
  return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


def _specs(mesh, shapes=SHAPES):
  """Without the axes that the mesh does not have."""

  def of(spec):
    parts = [p if isinstance(p, tuple) else (p,) for p in spec]
    kept = [tuple(a for a in p if a in mesh.axis_names) for p in parts]
    return P(*[p or None for p in kept])

  return {name: of(SPECS[name]) for name in shapes}


def _messages(seed=0, dtype=np.float32):
  random = np.random.default_rng(seed)
  x = {k: random.normal(size=(N, *shape)) for k, shape in SHAPES.items()}
  x['norm'][2] += 30.0
  return jax.tree.map(dtype, x)


def _reduced(rule, mesh, messages, workers='diloco', **options):
  options.setdefault('specs', _specs(mesh))

  def reduce(messages, options):
    return byzjax.robust_reduce(
      messages, rule, mesh=mesh, worker_axis=workers, **fixed, **options
    )

  names = ('specs', 'num_chunks', 'attack', 'return_info')
  fixed = {k: options.pop(k) for k in names if k in options}
  return jax.jit(reduce)(messages, options)


def _assert_same(result, expected):
  assert jax.tree.structure(result) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, 2e-6, 2e-6)


RULES = {
  'krum': lambda: byzjax.krum(num_byzantine=F),
  'coordinate_median': byzjax.coordinate_median,
  'geometric_median': byzjax.geometric_median,
  'nnm_trimmed_mean': lambda: byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=F),
    byzjax.trimmed_mean(num_byzantine=F),
  ),
}
QUICK = [('krum', '2x2x2'), ('coordinate_median', '4x2'), ('krum', 'pods')]


@pytest.mark.parametrize(
  'name, mesh_name',
  [
    pytest.param(
      rule, mesh, marks=() if (rule, mesh) in QUICK else pytest.mark.slow
    )
    for rule in RULES
    for mesh in MESHES
  ],
)
def test_any_mesh_agrees_with_one_device(name, mesh_name):
  rule, mesh, messages = RULES[name](), _mesh(mesh_name), _messages()
  workers = ('diloco', 'pod') if mesh_name == 'pods' else 'diloco'
  result = _reduced(rule, mesh, messages, workers)
  _assert_same(result, rule(messages))
  for name, spec in _specs(mesh).items():
    if name != 'odd':
      assert result[name].sharding.is_equivalent_to(
        NamedSharding(mesh, spec), len(SHAPES[name])
      )


def test_an_explicit_mesh_tells_the_specs():
  mesh = _mesh('4x2', AxisType.Explicit)
  specs = {'kernel': P(None, 'fsdp'), 'norm': P('fsdp')}
  messages = {k: _messages()[k] for k in specs}
  placed = {
    k: jax.device_put(x, NamedSharding(mesh, P('diloco', *specs[k])))
    for k, x in messages.items()
  }
  rule = byzjax.krum(num_byzantine=F)

  @jax.jit
  def reduce(messages):
    return byzjax.robust_reduce(messages, rule, worker_axis='diloco')

  with jax.set_mesh(mesh):
    result = reduce(placed)
  _assert_same(result, rule(messages))
  assert {k: x.sharding.spec for k, x in result.items()} == specs


def test_arrays_outside_of_jit_tell_the_specs():
  mesh = _mesh('4x2')
  x = jax.random.normal(KEY, (N, 4, 6))
  placed = jax.device_put(x, NamedSharding(mesh, P('diloco', None, 'fsdp')))
  rule = byzjax.coordinate_median()
  result = byzjax.robust_reduce(placed, rule, mesh=mesh, worker_axis='diloco')
  _assert_same(result, rule(x))
  assert result.sharding.spec == P(None, 'fsdp')


def test_the_state_lies_as_the_parameters_and_moves_to_another_mesh():
  rule = byzjax.centered_clipping(radius=1.0)
  messages = _messages()
  alone = state = rule.init(jax.tree.map(lambda x: x[0], messages))
  for name in ('2x2x2', '8'):
    mesh = _mesh(name)
    result, state = _reduced(rule, mesh, messages, state=state)
    state = jax.device_get(state)
    expected, alone = rule.update(messages, alone)
    _assert_same(result, expected)
    _assert_same(state, alone)


def test_an_attack_and_its_state():
  messages, is_byzantine = _messages(), np.arange(N) == 2
  rule, attack = byzjax.coordinate_median(), byzjax.mimic()
  params = jax.tree.map(lambda x: x[0], messages)
  state = rule.init(params), attack.init(params)
  attacked, of_attack = attack.apply(
    messages,
    state[1],
    is_byzantine=is_byzantine,
    key=jax.random.split(KEY)[0],
  )
  result, (_, kept) = _reduced(
    rule,
    _mesh('2x2x2'),
    messages,
    attack=attack,
    is_byzantine=is_byzantine,
    state=state,
    key=KEY,
  )
  _assert_same(result, rule(attacked))
  _assert_same(kept, of_attack)


def test_noise_is_the_same_on_every_mesh():
  messages, attack = _messages(), byzjax.gaussian(std=3.0)
  results = [
    _reduced(
      byzjax.mean(),
      _mesh(name),
      messages,
      attack=attack,
      is_byzantine=np.arange(N) < 3,
      key=KEY,
    )
    for name in ('2x2x2', '2x4')
  ]
  _assert_same(*results)


def test_who_is_absent_or_not_finite_does_not_count():
  messages = _messages()
  messages['norm'][5, 0] = np.nan
  messages['kernel'][3] = 1e30
  weights = np.where(np.arange(N) == 3, 0.0, 1.0)
  weights[0] = 2.0
  result, info = _reduced(
    byzjax.mean(),
    _mesh('2x2x2'),
    messages,
    worker_weights=weights,
    return_info=True,
  )
  _assert_same(result, byzjax.mean()(messages, worker_weights=weights))
  np.testing.assert_array_equal(info.mask, np.arange(N) != 5)


@pytest.mark.parametrize('name', ['coordinate_median', 'krum', 'mean'])
def test_chunks_give_the_same(name):
  rule = RULES.get(name, byzjax.mean)()
  messages = _messages()
  messages['norm'][5, 0] = np.nan
  told = {} if name == 'krum' else {'worker_weights': 1.0 + np.arange(N)}
  result = _reduced(rule, _mesh('2x2x2'), messages, num_chunks=3, **told)
  _assert_same(result, rule.update(messages, rule.init(messages), **told)[0])


@pytest.mark.parametrize('mesh_name', ['8', '4x2'])
def test_votes_do_not_see_that_dtypes_travel_apart(mesh_name):
  messages = _messages()
  messages['kernel'] = jnp.asarray(messages['kernel'], jnp.bfloat16)
  vote = byzjax.majority_vote()
  result = _reduced(vote, _mesh(mesh_name), messages)
  for name, expected in vote(messages).items():
    np.testing.assert_array_equal(
      np.float32(result[name]), np.float32(expected)
    )


# Wrong uses.


@pytest.mark.parametrize(
  'options, message',
  [
    ({'worker_axis': 'workers'}, "axis of the mesh, .* got 'workers'"),
    ({'worker_axis': ()}, r'name of a mesh axis, .* got \(\)'),
    ({'specs': P('diloco')}, 'other than the worker axis'),
    ({'specs': P(None, None, 'fsdp')}, 'without the axis of the workers'),
    ({'specs': None}, 'needs specs=, the PartitionSpecs of the aggregate'),
    ({'specs': {'a': P()}}, 'robust_reduce needs specs to be a tree'),
    ({'messages': jnp.zeros((6, 4, 6))}, 'multiple of the 4 devices .* got 6'),
    ({'messages': jnp.zeros((8, 4), int)}, 'messages of floats, got int32'),
    ({'rule': byzjax.centered_clipping(radius=1.0)}, 'needs state='),
    ({'attack': byzjax.alie()}, 'needs is_byzantine'),
    ({'num_chunks': 0}, 'num_chunks'),
    (
      {'rule': RULES['nnm_trimmed_mean'](), 'num_chunks': 2},
      'num_chunks=2 and nearest',
    ),
    (
      {'worker_weights': np.ones(N), 'num_chunks': 2},
      'krum does not support worker_weights',
    ),
    (
      {'rule': byzjax.centered_clipping(radius=1.0), 'state': {'a': 1}},
      'state= to be what rule.init',
    ),
    (
      {'attack': byzjax.replay(delay=2), 'is_byzantine': np.arange(N) < 1},
      'remembers more than one message',
    ),
  ],
)
def test_wrong_uses_are_refused(options, message):
  defaults = {
    'messages': jnp.zeros((N, 4, 6)),
    'rule': byzjax.krum(num_byzantine=F),
    'worker_axis': 'diloco',
    'specs': P(None, 'fsdp'),
  }
  options = defaults | options
  messages, rule = options.pop('messages'), options.pop('rule')

  @jax.jit
  def reduce(messages):
    return byzjax.robust_reduce(messages, rule, mesh=_mesh('4x2'), **options)

  with pytest.raises(ValueError, match=message):
    reduce.trace(messages)


def test_no_mesh_and_a_call_inside_shard_map_are_refused():
  rule = byzjax.coordinate_median()

  def reduce(x):
    return byzjax.robust_reduce(x, rule, worker_axis='diloco', specs=P())

  with pytest.raises(ValueError, match='needs a mesh'):
    reduce(jnp.zeros((8, 3)))
  inside = jax.shard_map(
    reduce, mesh=_mesh('8'), in_specs=P('diloco'), out_specs=P()
  )
  with pytest.raises(ValueError, match='outside of shard_map'):
    inside(jnp.zeros((8, 3)))


# In a program of drjax.


def test_in_place_of_the_mean_of_drjax():
  drjax = pytest.importorskip('drjax')
  mesh = _mesh('4x2')
  params = jax.random.normal(KEY, (4, 6))
  replicas = params[None] + jax.random.normal(jax.random.key(4), (4, 4, 6))
  rule = byzjax.coordinate_median()

  @jax.jit
  @drjax.program(placements={'diloco': 4})
  def outer(params, replicas):
    delta = drjax.broadcast(params, mesh=mesh) - replicas
    return byzjax.robust_reduce(
      delta, rule, mesh=mesh, worker_axis='diloco', specs=P('fsdp')
    )

  _assert_same(outer(params, replicas), rule(params[None] - replicas))
