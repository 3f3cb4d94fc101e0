"""Rules of gossip against loops over nodes, and what the papers promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import gossip, topology
from tests.gossip import oracle

GRAPHS = {
  'torus': topology.torus(3, 4),
  'erdos_renyi': topology.erdos_renyi(12, probability=0.4, seed=1),
  'dumbbell': topology.dumbbell(5, num_byzantine=1),
  'star': topology.star(12),
}
RULES = {
  'plain': (gossip.plain(), oracle.plain),
  'clipped': (
    gossip.clipped(radius=2.0),
    functools.partial(oracle.clipped, radius=2.0),
  ),
  'clipped adaptive': (gossip.clipped(), oracle.clipped),
  'clipped f=2': (
    gossip.clipped(num_byzantine=2),
    functools.partial(oracle.clipped, num_byzantine=2),
  ),
  'nna': (
    gossip.nearest_neighbor_averaging(num_byzantine=1),
    functools.partial(oracle.nearest_neighbor_averaging, num_byzantine=1),
  ),
  'trimmed': (
    gossip.trimmed(num_byzantine=2),
    functools.partial(oracle.trimmed, num_byzantine=2),
  ),
}


def _vectors(n=12, d=6, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d))


# All rules in one program: compiling is what these tests wait for.
@functools.partial(jax.jit, static_argnums=0)
def _all_mixed(graph_name, x):
  graph = GRAPHS[graph_name]
  return {k: gossip.mix(rule, graph, x) for k, (rule, _) in RULES.items()}


# Against loops.


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('graph', GRAPHS)
def test_rules_equal_their_loops(rule, graph):
  x, expected = _vectors(), RULES[rule][1]
  result = _all_mixed(graph, jnp.asarray(x, jnp.float32))[rule]
  np.testing.assert_allclose(
    result, expected(GRAPHS[graph], x), rtol=2e-5, atol=2e-6
  )


@pytest.mark.parametrize('rule', ['plain', 'clipped adaptive', 'nna'])
def test_models_that_nearly_agree_keep_their_digits(rule):
  # Raw inner products would lose these distances altogether.
  x = 100 + 1e-3 * _vectors()
  x = np.asarray(x, np.float32).astype(np.float64)
  result = _all_mixed('torus', jnp.asarray(x, jnp.float32))[rule]
  moved = RULES[rule][1](GRAPHS['torus'], x) - x
  # Of steps of size 1e-3, within the spacing of floats at 100.
  np.testing.assert_allclose(result - x, moved, atol=1.6e-5)


def test_float64():
  with jax.enable_x64(True):
    x = _vectors(seed=4)
    results = _all_mixed('torus', jnp.asarray(x))
    for name, (_, expected) in RULES.items():
      assert results[name].dtype == jnp.float64
      np.testing.assert_allclose(
        results[name], expected(GRAPHS['torus'], x), rtol=1e-10, atol=1e-12
      )


def test_pytrees_keep_their_shapes_and_dtypes():
  x = _vectors()
  tree = {
    'a': jnp.asarray(x[:, :4].reshape(12, 2, 2), jnp.float32),
    'b': jnp.asarray(x[:, 4:], jnp.bfloat16),
  }
  mixed = oracle.mix(gossip.plain(), GRAPHS['torus'], tree)
  assert mixed['a'].shape == (12, 2, 2) and mixed['b'].dtype == jnp.bfloat16
  np.testing.assert_allclose(
    mixed['a'].reshape(12, 4),
    oracle.plain(GRAPHS['torus'], x)[:, :4],
    1e-5,
    1e-6,
  )


# Limits.


@pytest.mark.parametrize('graph', GRAPHS)
def test_plain_gossip_keeps_the_mean_and_contracts_by_the_gap(graph):
  gap = topology.spectral_gap(GRAPHS[graph])
  x = jnp.asarray(_vectors(), jnp.float32)
  mean = x.mean(axis=0)
  for _ in range(10):
    before = float(jnp.sum((x - mean[None]) ** 2))
    x = _all_mixed(graph, x)['plain']
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=1e-5)
    after = float(jnp.sum((x - mean[None]) ** 2))
    assert after <= (1 - gap) ** 2 * before * 1.001


def test_the_contraction_is_no_better_than_the_gap_says():
  # Along the slowest eigenvector the bound is met.
  graph = GRAPHS['torus']
  values, vectors = np.linalg.eigh(graph.mixing)
  slowest = np.argsort(np.abs(values))[-2]
  x = jnp.tile(jnp.asarray(vectors[:, slowest, None], jnp.float32), (1, 6))
  after = _all_mixed('torus', x)['plain']
  ratio = float(jnp.linalg.norm(after) / jnp.linalg.norm(x))
  np.testing.assert_allclose(ratio, 1 - topology.spectral_gap(graph), 1e-5)


def test_a_complete_graph_is_the_mean():
  graph, x = topology.complete(7), jnp.asarray(_vectors(7), jnp.float32)
  mean = np.tile(_vectors(7).mean(axis=0), (7, 1))
  rules = (
    gossip.plain(),
    gossip.clipped(radius=jnp.inf),
    gossip.nearest_neighbor_averaging(num_byzantine=0),
    gossip.trimmed(num_byzantine=0),
    gossip.aggregate(lambda m: byzjax.mean()),
  )
  for mixed in jax.jit(lambda x: [gossip.mix(r, graph, x) for r in rules])(x):
    np.testing.assert_allclose(mixed, mean, atol=1e-6)


def test_radii_of_infinity_and_zero():
  x = jnp.asarray(_vectors(), jnp.float32)
  graph = GRAPHS['erdos_renyi']
  np.testing.assert_allclose(
    oracle.mix(gossip.clipped(radius=jnp.inf), graph, x),
    oracle.mix(gossip.plain(), graph, x),
    atol=1e-6,
  )
  ignored = oracle.mix(gossip.clipped(radius=0.0), graph, x)
  np.testing.assert_array_equal(ignored, x)


def test_radii_may_be_traced():
  graph, x = GRAPHS['torus'], jnp.asarray(_vectors(), jnp.float32)
  radii = jnp.array([0.0, 2.0])
  swept = jax.jit(
    jax.vmap(lambda r: gossip.mix(gossip.clipped(radius=r), graph, x))
  )(radii)
  np.testing.assert_array_equal(swept[0], x)
  np.testing.assert_allclose(
    swept[1], oracle.clipped(graph, _vectors(), 2.0), 2e-5, 2e-6
  )


def test_nna_is_monna_at_every_node():
  x = jnp.asarray(_vectors(), jnp.float32)
  monna = gossip.aggregate(
    lambda m: byzjax.monna(num_byzantine=1, reference_worker=0)
  )
  np.testing.assert_allclose(
    oracle.mix(monna, GRAPHS['torus'], x),
    _all_mixed('torus', x)['nna'],
    atol=1e-6,
  )


@pytest.mark.parametrize(
  'rule',
  [gossip.trimmed(num_byzantine=1), gossip.aggregate(lambda m: byzjax.mean())],
)
def test_a_node_without_neighbours_stays(rule):
  pair_and_one = topology.from_adjacency([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
  x = jnp.array([[0.0, 4.0], [2.0, 0.0], [9.0, 7.0]])
  mixed = gossip.mix(rule, pair_and_one, x)
  np.testing.assert_allclose(mixed, [[1, 2], [1, 2], [9, 7]], 1e-6)


def test_ties_go_to_the_lowest_index():
  graph, x = topology.star(4), jnp.array([0.0, 1.0, -1.0, 3.0])
  rule = gossip.nearest_neighbor_averaging(num_byzantine=2)
  assert oracle.mix(rule, graph, x)[0] == 0.5  # node 1, not node 2


def test_derivatives_through_a_step_of_gossip():
  with jax.enable_x64(True):
    target, direction = jnp.asarray(_vectors(seed=9)), _vectors(seed=2)

    # A weight for every rule, so that one derivative tests them all.
    def loss(x):
      ys = _all_mixed('torus', x).values()
      losses = [jnp.sum((y - target) ** 2) for y in ys]
      return sum((k + 1) * loss for k, loss in enumerate(losses))

    x, h = _vectors(), 1e-6
    slope = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(np.sum(gradient(x) * direction), slope, 1e-6)
    # Models that agree, where a distance is zero.
    assert np.isfinite(gradient(jnp.ones((12, 6)))).all()


# Who is Byzantine.


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize('rule', RULES)
def test_neighbours_that_send_no_vectors_count_as_oneself(rule, bad):
  graph, x = GRAPHS['torus'], _vectors()
  mixed = _attacked(jnp.asarray(x, jnp.float32), bad)[rule]
  honest = np.arange(12) != 5
  assert np.isfinite(mixed).all()
  # In the hull of all honest vectors.
  assert np.abs(np.asarray(mixed)[honest]).max() <= np.abs(x[honest]).max()
  if rule == 'plain':
    masked = graph.mixing.copy()
    masked[:, 5] = 0
    expected = x + masked @ x - masked.sum(axis=1)[:, None] * x
    np.testing.assert_allclose(mixed[honest], expected[honest], 1e-5, 1e-6)


@jax.jit
def _attacked(x, value):
  def mixed(rule):
    return gossip.mix(
      rule,
      GRAPHS['torus'],
      x,
      attack=byzjax.constant(value=value),
      is_byzantine=jnp.arange(12) == 5,
    )

  return {name: mixed(rule) for name, (rule, _) in RULES.items()}


@pytest.mark.parametrize('rule', ['clipped adaptive', 'nna', 'trimmed'])
@pytest.mark.parametrize('size', [1e2, 1e6, 1e12])
def test_robust_rules_have_a_bound_that_does_not_know_the_attack(rule, size):
  x = _vectors()
  mixed = np.asarray(_attacked(jnp.asarray(x, jnp.float32), size)[rule])
  honest = np.arange(12) != 5
  spread = np.linalg.norm(x[:, None] - x[None], axis=2).max()
  moved = np.linalg.norm(mixed - x, axis=1)
  assert moved[honest].max() <= spread


def test_plain_gossip_has_no_bound():
  x = jnp.asarray(_vectors(), jnp.float32)
  mixed = np.asarray(_attacked(x, 1e6)['plain'])
  neighbour = np.flatnonzero(GRAPHS['torus'].adjacency[5])[0]
  assert np.abs(mixed[neighbour]).max() > 1e5


def test_a_majority_of_liars_far_away_costs_the_honest_no_digits():
  graph = topology.complete(12)
  x = _vectors() * 1e-3
  x[:7] = 1e7
  honest = np.arange(12) >= 7
  mixed = oracle.mix(
    gossip.clipped(num_byzantine=7),
    graph,
    jnp.asarray(x, jnp.float32),
    attack=byzjax.constant(value=1e7),
    is_byzantine=jnp.asarray(~honest),
  )
  expected = oracle.clipped(graph, x, num_byzantine=7)
  np.testing.assert_allclose(mixed[honest], expected[honest], 1e-3, 1e-8)


def test_two_liars_choose_the_radius_of_the_official_code():
  # Which is why clipped has a number of attackers.
  graph, x = topology.complete(8), jnp.asarray(_vectors(8), jnp.float32)
  moved = {}
  for f in (1, 2):
    mixed = oracle.mix(
      gossip.clipped(num_byzantine=f),
      graph,
      x,
      attack=byzjax.constant(value=1e4),
      is_byzantine=jnp.arange(8) < 2,
    )
    moved[f] = float(jnp.linalg.norm((mixed - x)[2:], axis=1).max())
  assert moved[1] > 1e3 and moved[2] < 5


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: gossip.clipped(radius=-1.0), 'radius >= 0'),
    (lambda: gossip.clipped(num_byzantine=-1), 'num_byzantine'),
    (lambda: gossip.nearest_neighbor_averaging(num_byzantine=0.5), 'int'),
    (lambda: gossip.trimmed(num_byzantine=-1), 'num_byzantine'),
    (lambda: gossip.aggregate(byzjax.mean()), 'rule_for to be a function'),
    (
      lambda: oracle.mix(byzjax.mean(), topology.ring(3), jnp.ones(3)),
      'one of byzjax.gossip',
    ),
    (lambda: oracle.mix(gossip.plain(), np.eye(3), jnp.ones(3)), 'Topology'),
    (
      lambda: oracle.mix(gossip.plain(), topology.ring(3), jnp.ones(4)),
      'with 3 rows',
    ),
    (
      lambda: oracle.mix(
        gossip.aggregate(lambda m: byzjax.centered_clipping(radius=1.0)),
        topology.ring(3),
        jnp.ones((3, 2)),
      ),
      'without state',
    ),
    (
      lambda: oracle.mix(
        gossip.plain(),
        topology.ring(3),
        jnp.ones(3),
        attack=gossip.dissensus(),
      ),
      'is_byzantine to be bool',
    ),
  ],
)
def test_errors_say_what_is_wrong(make, words):
  with pytest.raises(ValueError, match=words):
    make()
