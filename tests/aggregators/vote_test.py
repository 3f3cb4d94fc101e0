"""The majority vote."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference_rules
from tests.aggregators import instances
from tests.rounds import problem


def _votes(seed=0, n=9):
  """Messages with zeros of either sign in them, and ties among an even n."""
  random = np.random.default_rng(seed)
  return np.float32(
    random.integers(-1, 2, (n, 40)) * random.gamma(1, size=(n, 40))
  )


@pytest.mark.parametrize('zeros', ['plus', 'abstain'])
@pytest.mark.parametrize('n', [1, 2, 9, 10, 130])
def test_votes_agree_with_the_oracle(n, zeros):
  x = _votes(n=n)
  rule = byzjax.majority_vote(zeros=zeros)
  expected = reference_rules.majority_vote(x, zeros)
  np.testing.assert_array_equal(instances.aggregate(rule, x), expected)
  # Equal weights tie where equal votes do.
  weights = np.full(n, 0.1, np.float32)
  np.testing.assert_array_equal(instances.aggregate(rule, x, weights), expected)
  if zeros == 'plus':
    assert np.isin(expected, [-1, 1]).all()


@pytest.mark.parametrize('zeros', ['plus', 'abstain'])
def test_only_signs_count(zeros):
  x, random = _votes(1), np.random.default_rng(1)
  rule = byzjax.majority_vote(zeros=zeros)
  result = instances.aggregate(rule, x)
  scaled = x * np.float32(10 ** random.uniform(-20, 20, x.shape))
  np.testing.assert_array_equal(instances.aggregate(rule, scaled), result)
  shuffled = x[random.permutation(len(x))]
  np.testing.assert_array_equal(instances.aggregate(rule, shuffled), result)


def test_what_has_no_sign():
  x = np.float32([[np.nan, np.nan, -0.0, np.inf], [-1, np.nan, -0.0, -np.inf]])
  plus, abstain = byzjax.majority_vote(), byzjax.majority_vote(zeros='abstain')
  np.testing.assert_array_equal(instances.aggregate(plus, x), [1, 1, 1, 1])
  np.testing.assert_array_equal(instances.aggregate(abstain, x), [-1, 0, 0, 0])


@pytest.mark.parametrize('f', [1, 2, 4])
def test_f_workers_change_no_vote_that_is_clear(f):
  x = np.float32(np.random.default_rng(2).normal(size=(9, 200)))
  margin = np.sign(x[f:]).sum(axis=0)
  x[:f] = -1e30 * margin
  result = instances.aggregate(byzjax.majority_vote(), x)
  clear = np.abs(margin) > f
  assert clear.any() and (~clear).any()
  np.testing.assert_array_equal(result[clear], np.sign(margin)[clear])
  # Nor can fewer do what these did.
  changed = (np.abs(margin) < f) & (margin != 0)
  np.testing.assert_array_equal(result[changed], -np.sign(margin)[changed])


def test_weighted_votes():
  x, weights = _votes(3), np.arange(1.0, 10)
  result = instances.aggregate(byzjax.majority_vote(), x, weights)
  copies = np.repeat(x, np.arange(1, 10), axis=0)
  np.testing.assert_array_equal(
    result, reference_rules.majority_vote(copies, 'plus')
  )


def test_votes_keep_dtypes_and_work_sharded():
  x = _votes(4, n=8)
  messages = {'half': jnp.asarray(x[:, :7], jnp.bfloat16), 'single': x[:, 7:]}
  rule = byzjax.majority_vote()
  expected = reference_rules.majority_vote(x)
  sharded = byzjax.worker_sharded(rule, 'workers')

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=problem.mesh(4),
    in_specs=jax.P('workers'),
    out_specs=jax.P(),
  )
  def aggregate(messages):
    params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), messages)
    return sharded.update(messages, sharded.init(params))[0]

  for result in (rule(messages), aggregate(messages)):
    assert result['half'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(result['half']), expected[:7])
    np.testing.assert_array_equal(result['single'], expected[7:])
