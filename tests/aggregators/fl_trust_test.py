"""FLTrust: what it promises, and what it is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference_trust
from tests.rounds import problem

PLANE = np.array(
  [[1.0, 0], [0, 1], [1, 1], [2, 1], [1, 2], [10, -10], [10, -10]]
)


@functools.cache
def _inspect():
  rule = byzjax.fl_trust()
  return jax.jit(
    lambda x, trusted: rule.inspect(x, rule.init(x[0]), trusted=trusted)
  )


def _answer(x, trusted):
  x, trusted = jnp.float32(x), jnp.float32(trusted)
  aggregate, _, info = _inspect()(x, trusted)
  return np.asarray(aggregate), info


def test_golden():
  aggregate, info = _answer(PLANE, [1, 1])
  np.testing.assert_allclose(aggregate, [0.881347, 0.881347], 1e-5)
  trust = [0.707107, 0.707107, 1, 0.948683, 0.948683, 0, 0]
  np.testing.assert_allclose(1 - info.scores, trust, 1e-5, 1e-6)
  assert list(info.kept) == [True] * 5 + [False] * 2


def test_lengths_do_not_matter():
  random = np.random.default_rng(0)
  x, trusted = random.normal(size=(7, 2)), [0.3, -0.4]
  scales = 10.0 ** random.integers(-6, 6, size=(7, 1))
  aggregate, _ = _answer(x, trusted)
  np.testing.assert_allclose(_answer(scales * x, trusted)[0], aggregate, 1e-4)
  assert np.linalg.norm(aggregate) <= 0.5 + 1e-6
  assert aggregate @ trusted >= 0


def test_no_message_becomes_longer_than_the_trusted_gradient():
  # Of the squares of the small numbers nothing is left in float32.
  x = np.full((7, 10_000), 1e-19)
  x[:, 0] = 2e-19
  aggregate, _ = _answer(x, np.ones(10_000))
  assert np.linalg.norm(aggregate) <= 100 * (1 + 1e-6)


def test_all_liars_but_one():
  x = np.full((7, 2), -1e6)
  x[3] = [0.0, 2]
  np.testing.assert_allclose(_answer(x, [1, 1])[0], [0, 2**0.5], 1e-6)


@pytest.mark.parametrize(
  'x, trusted',
  [
    (-PLANE[:5], [1, 1]),
    (np.zeros((7, 2)), [1, 1]),
    (PLANE, [0, 0]),
    (PLANE, [np.nan, 1]),
    (PLANE, [1e30, 1]),
    (PLANE * np.nan, [1, 1]),
  ],
  ids=['all against', 'zeros', 'no root', 'NaN', 'huge', 'all NaN'],
)
def test_where_nothing_can_be_said_it_is_zero(x, trusted):
  aggregate, info = _answer(x, trusted)
  assert (aggregate == 0).all() and not info.kept.any()


def test_weights_of_workers_multiply_the_trust():
  weights = jnp.array([0.0, 3, 1, 1, 2, 1, 1])
  aggregate = byzjax.fl_trust()(
    jnp.float32(PLANE), trusted=jnp.ones(2), worker_weights=weights
  )
  expected = reference_trust.fl_trust(PLANE, np.ones(2), np.asarray(weights))
  np.testing.assert_allclose(aggregate, expected, 1e-5)


def test_trees_and_stages_in_front():
  x = {'a': jnp.float32(PLANE[:, 0]), 'b': jnp.float32(PLANE[:, 1:])}
  own = {'a': jnp.float32(1), 'b': jnp.ones(1)}
  expected, _ = _answer(PLANE, [1, 1])
  rule = byzjax.fl_trust()
  result = rule(x, trusted=own)
  np.testing.assert_allclose([result['a'], *result['b']], expected, 1e-6)
  behind = byzjax.pre_aggregate(byzjax.clip_messages(max_norm=0.1), rule)
  result = behind(x, trusted=own)
  np.testing.assert_allclose([result['a'], *result['b']], expected, 1e-5)


@pytest.mark.parametrize('trusted', [None, jnp.ones(3), {'a': jnp.ones(2)}])
def test_what_is_no_message_is_refused(trusted):
  with pytest.raises(ValueError, match='fl_trust needs trusted'):
    byzjax.fl_trust()(jnp.float32(PLANE), trusted=trusted)


def test_where_messages_are_split_over_the_mesh():
  """Over workers and over coordinates, a copied leaf among them."""
  mesh = problem.mesh(2, 2)
  rule = byzjax.worker_sharded(
    byzjax.fl_trust(), 'workers', coordinate_axes='model'
  )
  specs = {'a': jax.P('model'), 'b': jax.P()}
  by_worker = jax.tree.map(lambda spec: jax.P('workers', *spec), specs)

  @jax.jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(by_worker, specs), out_specs=specs
  )
  def aggregate(x, trusted):
    state = rule.init(jax.tree.map(lambda x: x[0], x))
    return rule.update(x, state, trusted=trusted)[0]

  random = np.random.default_rng(1)
  x = {k: random.normal(size=(8, d)) + 1 for k, d in (('a', 6), ('b', 5))}
  x = {k: jnp.float32(leaf) for k, leaf in x.items()}
  own = {'a': jnp.ones(6), 'b': jnp.ones(5)}
  expected = byzjax.fl_trust()(x, trusted=own)
  result = aggregate(x, own)
  for name in x:
    np.testing.assert_allclose(result[name], expected[name], 1e-5, 1e-6)
  with pytest.raises(ValueError, match='worker_sharded needs trusted'):
    aggregate(x, {'a': jnp.ones(6), 'b': jnp.ones(4)})
