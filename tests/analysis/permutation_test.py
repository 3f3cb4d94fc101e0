"""Matching of hidden units; assignments against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from byzjax import analysis
from byzjax.analysis import _assignment, _units
from tests.analysis import networks

assign = jax.jit(_assignment.linear_assignment)
match = jax.jit(analysis.match_permutation)
DEEP = (5, 9, 7, 3)


def distance(a, b):
  return sum(
    np.square(np.asarray(x) - np.asarray(y)).sum()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
  )


@pytest.mark.parametrize('n', [1, 7, 40])
def test_assignments_cost_what_those_of_scipy_cost(n):
  random = np.random.default_rng(n)
  with jax.enable_x64(True):
    for cost in (
      random.normal(size=(n, n)),
      random.integers(0, 3, (n, n)).astype(float),  # ties
      np.outer(np.arange(n), np.arange(n)).astype(float),  # long paths
    ):
      found = np.asarray(assign(cost))
      assert sorted(found.tolist()) == list(range(n))
      rows, columns = optimize.linear_sum_assignment(cost)
      np.testing.assert_allclose(
        cost[np.arange(n), found].sum(), cost[rows, columns].sum(), atol=1e-10
      )


def test_assignments_in_a_batch_and_in_float32():
  costs = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
  found = jax.jit(jax.vmap(_assignment.linear_assignment))(costs)
  for cost, columns in zip(costs, np.asarray(found)):
    rows, expected = optimize.linear_sum_assignment(cost)
    np.testing.assert_array_equal(columns, expected)


def test_hostile_costs_still_give_a_permutation():
  cost = np.random.default_rng(0).normal(size=(7, 7))
  for bad in (np.nan, np.inf, -np.inf, 1e38):
    for where in ((slice(2, 4),), (slice(None), slice(2, 4)), (slice(None),)):
      hostile = cost.copy()
      hostile[where] = bad
      assert sorted(np.asarray(assign(hostile)).tolist()) == list(range(7))
  # An infinite cost is avoided.
  hostile = cost.copy()
  hostile[2, :6] = np.inf
  assert int(assign(hostile)[2]) == 6


def test_a_network_in_another_order_is_brought_back():
  with jax.enable_x64(True):
    a = networks.network(DEEP, 0)
    random = np.random.default_rng(1)
    orders = [jnp.asarray(random.permutation(w)) for w in DEEP[1:-1]]
    b = analysis.permute_units(a, orders)
    x, _ = networks.examples(DEEP)
    np.testing.assert_allclose(
      networks.apply(b, x), networks.apply(a, x), rtol=1e-12
    )
    found = match(a, b)
    jax.tree.map(
      np.testing.assert_array_equal, analysis.permute_units(b, found), a
    )


def test_one_hidden_layer_is_matched_as_well_as_can_be():
  with jax.enable_x64(True):
    a, b = networks.network((3, 8, 2), 0), networks.network((3, 8, 2), 1)
    rows = [
      np.concatenate([kernel.T, bias[:, None], top], axis=1)
      for (kernel, bias), (top, _) in (a, b)
    ]
    cost = np.square(rows[0][:, None] - rows[1][None]).sum(axis=2)
    best = cost[optimize.linear_sum_assignment(cost)].sum()
    (found,) = match(a, b)
    np.testing.assert_allclose(cost[np.arange(8), found].sum(), best)


def test_several_hidden_layers_come_nearer_until_no_layer_can_improve():
  with jax.enable_x64(True):
    a, b = networks.network(DEEP, 0), networks.network(DEEP, 1)
    found = list(match(a, b))
    nearest = distance(a, analysis.permute_units(b, found))
    assert nearest < distance(a, b)
    found = [np.array(order) for order in found]
    a, b = jax.tree.map(np.asarray, (a, b))
    for level, order in enumerate(found):
      for i in range(len(order)):
        for j in range(i):
          swapped = order.copy()
          swapped[[i, j]] = order[[j, i]]
          other = [*found[:level], swapped, *found[level + 1 :]]
          moved = _units.select(b, other)
          assert distance(a, moved) >= nearest - 1e-12


@pytest.mark.parametrize(
  'options, sizes, message',
  [
    ({'num_sweeps': 0}, (3, 4, 2), 'num_sweeps'),
    ({}, (3, 5, 2), 'the same shapes'),
  ],
)
def test_refuses(options, sizes, message):
  a, b = networks.network((3, 4, 2), 0), networks.network(sizes, 0)
  with pytest.raises(ValueError, match=message):
    analysis.match_permutation(a, b, **options)
