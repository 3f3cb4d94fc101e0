"""The mean of the messages nearest to one worker's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference_rules, tables
from tests.aggregators import instances

N = tables.NUM_WORKERS


def test_monna_is_no_farther_from_an_honest_reference_than_honest_neighbours():
  # Every chosen message is within the distance r of the n - f honest ones.
  rule = byzjax.monna(num_byzantine=5, reference_worker=5)
  for seed in range(5):
    x = tables.random_messages(seed)
    honest = np.arange(N) >= 5
    r = np.linalg.norm(x[honest] - x[5], axis=1).max()
    for bad in (0.0, 1.0, 1e6, 1e15, 1e30, np.inf, np.nan):
      x[:5] = bad
      moved = np.linalg.norm(instances.aggregate(rule, x) - x[5])
      assert moved <= r * (1 + 1e-5)
    # As far as it goes: close to the bound, not just below it.
    x[:5] = x[5] + 0.3 * r * np.eye(tables.SIZE)[0]
    moved = np.linalg.norm(instances.aggregate(rule, x) - x[5])
    assert 0.2 * r < moved <= r


@pytest.mark.parametrize('num_selected', [None, 1, 3, N])
def test_monna_of_every_node_in_one_vmap(num_selected):
  x = np.float32(tables.random_messages(1))

  def of_node(node):
    return byzjax.monna(
      num_byzantine=4, reference_worker=node, num_selected=num_selected
    )(x)

  together = jax.jit(jax.vmap(of_node))(jnp.arange(N))
  expected = [
    reference_rules.monna(x, 4, node, num_selected) for node in range(N)
  ]
  one_by_one = [of_node(node) for node in (0, N - 1)]
  np.testing.assert_allclose(together, expected, 1e-5, 1e-6)
  np.testing.assert_allclose(together[jnp.array([0, N - 1])], one_by_one, 1e-6)


def test_monna_takes_its_reference_before_duplicates_and_the_lowest_of_ties():
  x = np.array([[1.0], [-1.0], [1.0], [0.0], [0.0], [5.0]])
  for node in (4, jnp.array(4)):
    for count, kept in ((1, [4]), (2, [3, 4]), (3, [0, 3, 4])):
      rule = byzjax.monna(
        num_byzantine=2, reference_worker=node, num_selected=count
      )
      info = instances.inspect(rule, x)[2]
      assert np.flatnonzero(info.kept).tolist() == kept


def test_monna_of_an_unusable_reference_is_nothing():
  x = np.float32(tables.random_messages(2))
  for node in (5, jnp.array(5)):
    rule = byzjax.monna(num_byzantine=4, reference_worker=node)
    for bad in (np.nan, np.inf, 1e17):
      x[5] = bad
      aggregate, _, info = instances.inspect(rule, x)
      np.testing.assert_array_equal(aggregate, np.zeros(tables.SIZE))
      np.testing.assert_array_equal(info.weights, np.zeros(N))


def test_monna_behind_mixing_of_an_unusable_reference_is_nothing():
  x = jnp.asarray(np.float32(tables.random_messages(2))).at[0].set(jnp.nan)
  rule = byzjax.pre_aggregate(
    byzjax.nearest_neighbor_mixing(num_byzantine=1),
    byzjax.monna(num_byzantine=4, reference_worker=0),
  )
  np.testing.assert_array_equal(rule(x), 0)
