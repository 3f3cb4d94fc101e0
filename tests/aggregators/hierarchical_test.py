"""Rules inside random buckets and across them."""

import jax
import numpy as np
import pytest

import byzjax
from tests.rounds import problem

KEY = jax.random.key(3)


def _messages(n):
  x = np.random.default_rng(2).normal(1, 1, (n, 40))
  return np.float32(x)


def _buckets(m, k, key):
  """Which messages are in which bucket: bool[k, m]."""
  members = []
  for i in range(k):
    rule = byzjax.hierarchical(
      problem.select(i), bucket_rule=byzjax.mean(), num_buckets=k
    )
    inspect = jax.jit(lambda x, rule=rule: rule.inspect(x, (), key=key))
    members.append(inspect(np.ones((m, 2)))[2].weights)
  return np.stack(members) > 0


def test_buckets_are_a_random_partition_of_nearly_equal_sizes():
  first, second = _buckets(8, 3, KEY), _buckets(8, 3, jax.random.key(4))
  for inside in (first, second):
    np.testing.assert_array_equal(inside.sum(axis=0), np.ones(8))
    np.testing.assert_array_equal(inside.sum(axis=1), [3, 3, 2])
  assert (first != second).any()


def test_median_of_means_agrees_with_its_equation():
  inside = _buckets(8, 3, KEY)
  x = _messages(8)
  rule = byzjax.hierarchical(
    byzjax.coordinate_median(), bucket_rule=byzjax.mean(), num_buckets=3
  )
  means = [x[members].astype(np.float64).mean(axis=0) for members in inside]
  np.testing.assert_allclose(
    rule(x, key=KEY), np.median(means, axis=0), 1e-5, 1e-6
  )


@pytest.mark.parametrize(
  'bucket_rule', [byzjax.mean(), byzjax.coordinate_median(), problem.select(0)]
)
def test_a_bucket_without_a_usable_message_is_dropped(bucket_rule):
  x = _messages(4)
  x[2] = np.nan
  rule = byzjax.hierarchical(
    byzjax.mean(), bucket_rule=bucket_rule, num_buckets=4
  )
  expected = np.delete(x, 2, axis=0).mean(axis=0)
  np.testing.assert_allclose(rule(x, key=KEY), expected, 1e-5)
