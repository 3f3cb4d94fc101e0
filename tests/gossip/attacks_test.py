"""Attacks on edges: what the formula says, and what it does to whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import gossip, topology
from tests.gossip import oracle

GRAPH = topology.dumbbell(5, num_byzantine=2)
N = GRAPH.num_nodes
BYZANTINE = np.arange(N) >= 10
LEFT, RIGHT = 0, 9  # the ends of the bridge, that the attackers hang on


def _vectors(d=6):
  return np.random.default_rng(3).normal(size=(N, d))


PLAIN = gossip.plain()
ROBUST = {
  gossip.clipped(): oracle.clipped,
  gossip.clipped(num_byzantine=2): functools.partial(
    oracle.clipped, num_byzantine=2
  ),
  gossip.nearest_neighbor_averaging(num_byzantine=2): functools.partial(
    oracle.nearest_neighbor_averaging, num_byzantine=2
  ),
  gossip.trimmed(num_byzantine=2): functools.partial(
    oracle.trimmed, num_byzantine=2
  ),
}


def _step(rule, x, epsilon=1.0):
  return np.asarray(_compiled(rule, jnp.asarray(x, jnp.float32), epsilon))


@functools.partial(jax.jit, static_argnums=0)
def _compiled(rule, x, epsilon):
  return gossip.mix(
    rule,
    GRAPH,
    x,
    attack=gossip.dissensus(epsilon=epsilon),
    is_byzantine=jnp.asarray(BYZANTINE),
  )


def test_dissensus_leaves_the_victims_of_plain_gossip_where_they_were():
  x = _vectors()
  mixed = _step(PLAIN, x)
  np.testing.assert_allclose(mixed[[LEFT, RIGHT]], x[[LEFT, RIGHT]], 0, 2e-6)
  # The others have no Byzantine neighbour, and move.
  expected = oracle.plain(GRAPH, x)
  np.testing.assert_allclose(mixed[1:9], expected[1:9], 1e-5, 1e-6)
  assert np.linalg.norm(mixed[1:9] - x[1:9], axis=1).min() > 0.1


def test_a_stronger_dissensus_moves_them_away():
  x = _vectors()
  mixed = _step(PLAIN, x, epsilon=2.0)
  honest = oracle.plain(
    GRAPH._replace(adjacency=GRAPH.adjacency & ~BYZANTINE[None]), x
  )
  # As far away from the honest neighbours as honest gossip would go to them.
  np.testing.assert_allclose(
    (mixed - x)[[LEFT, RIGHT]], -(honest - x)[[LEFT, RIGHT]], 1e-4, 1e-5
  )


@pytest.mark.parametrize('rule', ROBUST, ids=lambda rule: rule.name)
@pytest.mark.parametrize('epsilon', [1.0, 4.0])
def test_robust_rules_against_messages_by_edge(rule, epsilon):
  x = _vectors()
  mixed = _step(rule, x, epsilon)
  for i in np.flatnonzero(~BYZANTINE):
    seen = x.copy()
    if i in (LEFT, RIGHT):
      seen[BYZANTINE] = oracle.dissensus(GRAPH, x, i, BYZANTINE, epsilon)
    np.testing.assert_allclose(
      mixed[i], ROBUST[rule](GRAPH, seen)[i], 1e-4, 1e-5
    )


def test_the_byzantine_keep_up_with_their_honest_neighbours():
  x = _vectors()
  for rule in ROBUST:
    mixed = _step(rule, x)
    for b, victim in ((10, LEFT), (13, RIGHT)):
      weight = GRAPH.mixing[b, victim]
      expected = x[b] + weight * (x[victim] - x[b])
      np.testing.assert_allclose(mixed[b], expected, 1e-5, 1e-6)


def test_dissensus_does_not_use_vectors_that_are_no_numbers():
  x = _vectors()
  x[3] = np.nan  # an honest neighbour of the left end
  mixed = _step(PLAIN, x)
  others = np.setdiff1d(np.arange(10), [3])
  assert np.isfinite(mixed[others]).all()
  np.testing.assert_allclose(mixed[LEFT], x[LEFT], atol=2e-6)


def test_any_combination_can_be_sent():
  # An edge attack of one's own: the Byzantine send back what they hear.
  echo = gossip.EdgeAttack(
    lambda mixing, is_byzantine: jnp.eye(len(mixing)), 'echo'
  )
  x = _vectors()
  mixed = oracle.mix(
    gossip.plain(),
    GRAPH,
    jnp.asarray(x, jnp.float32),
    attack=echo,
    is_byzantine=jnp.asarray(BYZANTINE),
  )
  honest = oracle.plain(
    GRAPH._replace(adjacency=GRAPH.adjacency & ~BYZANTINE[None]), x
  )
  np.testing.assert_allclose(mixed[:10], honest[:10], 1e-5, 1e-6)


def test_an_attacker_imagines_a_server_whose_rule_remembers():
  x, bad = jnp.asarray(_vectors(), jnp.float32), jnp.asarray(BYZANTINE)
  attack = byzjax.adaptive(
    byzjax.alie(z=1.0),
    byzjax.Aggregator(
      lambda params: params,
      lambda x, state, params=None, **_: (x.mean(0) + state, state),
    ),
    strengths=(1.0, 2.0),
    num_refinements=0,
  )
  mixed = gossip.mix(PLAIN, GRAPH, x, attack=attack, is_byzantine=bad)
  told = jnp.where(bad[:, None], attack(x, is_byzantine=bad), x)
  # The ends of the bridge hear the attackers.
  expected = jnp.asarray(GRAPH.mixing, jnp.float32) @ told
  ends = np.array([LEFT, RIGHT])
  np.testing.assert_allclose(mixed[ends], expected[ends], 1e-5, 1e-5)


def test_alone_an_attacker_knows_itself_only():
  x = jnp.asarray(_vectors(), jnp.float32)
  sent = {}
  for name, attack in (
    ('own', gossip.alone(byzjax.sign_flip(scale=2.0, own=True))),
    ('all', byzjax.sign_flip(scale=2.0, own=True)),
    ('mean', gossip.alone(byzjax.sign_flip(scale=2.0))),
    ('zero', byzjax.constant(value=0.0)),
  ):
    sent[name] = oracle.mix(
      gossip.plain(),
      GRAPH,
      x,
      attack=attack,
      is_byzantine=jnp.asarray(BYZANTINE),
    )
  np.testing.assert_allclose(sent['own'], sent['all'], 1e-6, 1e-6)
  # There is no honest vector to take a mean of.
  np.testing.assert_allclose(sent['mean'], sent['zero'], 1e-6, 1e-6)
  assert np.abs(sent['own'] - sent['zero']).max() > 0.1


def test_alone_draws_for_each_node():
  x = jnp.zeros((N, 6))
  mixed = oracle.mix(
    gossip.plain(),
    GRAPH,
    x,
    attack=gossip.alone(byzjax.gaussian(std=1.0)),
    is_byzantine=jnp.asarray(BYZANTINE),
    key=jax.random.key(0),
  )
  assert np.linalg.norm(mixed[LEFT] - mixed[RIGHT]) > 0.1


def test_alone_needs_an_attack():
  with pytest.raises(ValueError, match='to be an Attack'):
    gossip.alone(gossip.dissensus())
