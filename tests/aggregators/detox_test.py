"""The vote of redundant groups, buckets, and the two together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference
from tests.rounds import problem

KEY = jax.random.key(3)


def _vote(x, group_size):
  stage = byzjax.group_vote(group_size=group_size)
  return stage.apply(x, stage.init(None))[0]


def _inspect(rule, x, key=KEY):
  return jax.jit(lambda x: rule.inspect(x, rule.init(x[0]), key=key))(x)


def _groups(num_groups, group_size, seed=0, size=40):
  """Honest messages: the same bits in every group."""
  x = np.random.default_rng(seed).normal(1, 1, (num_groups, size))
  return np.repeat(np.float32(x), group_size, axis=0)


# The vote.


def _counted(rows, group_size):
  """By counting: the member that most of each group is equal to, or None."""
  names = [row.tobytes() for row in rows]
  winners = []
  for start in range(0, len(rows), group_size):
    group = names[start : start + group_size]
    best = max(group, key=group.count)
    elected = 2 * group.count(best) > group_size
    winners.append(start + group.index(best) if elected else None)
  return winners


def _last_standing(rows, group_size):
  """By the one pass of the official code, which always has a winner."""
  winners = []
  for start in range(0, len(rows), group_size):
    candidate, count = start, 0
    for i in range(start, start + group_size):
      if count == 0:
        candidate, count = i, 1
      else:
        same = rows[i].tobytes() == rows[candidate].tobytes()
        count += 1 if same else -1
    winners.append(candidate)
  return winners


def _palette():
  """Six messages that are equal in all but one coordinate, at most."""
  base = np.float32(np.random.default_rng(1).normal(size=9))
  base[4] = 0
  palette = np.tile(base, (6, 1))
  palette[1, 4] = -0.0
  palette[2, 8] = np.nan
  palette[3, 8:] = np.array([0x7FC00001], np.uint32).view(np.float32)
  palette[4, 0] = np.inf
  palette[5, 0] = np.nextafter(base[0], np.float32(9))
  return palette


@pytest.mark.parametrize('group_size', [3, 5, 7])
def test_the_vote_agrees_with_counting(group_size):
  random = np.random.default_rng(group_size)
  n, palette = 4 * group_size, _palette()
  chosen = random.choice(6, (300, n), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
  scenes = palette[chosen]
  votes = np.asarray(jax.jit(jax.vmap(lambda x: _vote(x, group_size)))(scenes))
  assert votes.shape == (300, 4, 9)
  num_elected = 0
  for rows, result in zip(scenes, votes):
    winners = _counted(rows, group_size)
    for vote, winner, last in zip(
      result, winners, _last_standing(rows, group_size)
    ):
      if winner is None:
        assert np.isnan(vote).all()
      else:
        num_elected += 1
        assert vote.tobytes() == rows[winner].tobytes()
        assert vote.tobytes() == rows[last].tobytes()
  assert 300 < num_elected < 1100  # of 1200: both cases are here


def test_the_vote_is_on_whole_messages_and_keeps_dtypes():
  half = jnp.asarray([[1, 2], [1, 2], [3, 4], [5, 6], [5, 6], [5, 6]])
  messages = {
    'half': jnp.asarray(half, jnp.bfloat16),
    'single': jnp.array([1.0, 2.0, 1.0, -0.0, 0.0, -0.0]),
    'empty': jnp.zeros((6, 0, 2)),
  }
  votes = _vote(messages, 3)
  assert votes['half'].dtype == jnp.bfloat16
  assert votes['empty'].shape == (2, 0, 2)
  # Every leaf of the first group has a majority, and no message has.
  assert np.isnan(np.float32(votes['half'][0])).all()
  assert np.isnan(votes['single'][0])
  np.testing.assert_array_equal(np.float32(votes['half'][1]), [5, 6])
  assert np.signbit(votes['single'][1])


def test_integers_are_compared_before_they_are_rounded_to_floats():
  x = jnp.array([4, 7, 7, 5, 6, 5])[:, None]
  np.testing.assert_array_equal(_vote(x, 3), [[7], [5]])
  far = jnp.array([2**24, 2**24 + 1, 2**24 + 3])[:, None]
  assert np.isnan(_vote(far, 3)).all()


def test_the_order_inside_a_group_does_not_matter():
  x = _groups(4, 5)
  x[[0, 1, 7]] = -x[[0, 1, 7]]
  random = np.random.default_rng(0)
  expected = np.asarray(_vote(x, 5))
  np.testing.assert_array_equal(expected, _groups(4, 5)[::5])
  for _ in range(5):
    order = [5 * j + random.permutation(5) for j in range(4)]
    shuffled = x[np.concatenate(order)]
    np.testing.assert_array_equal(_vote(shuffled, 5), expected)


# Instances.

INSTANCES = {
  'median of means': dict(
    rule=byzjax.coordinate_median(), bucket_rule=byzjax.mean(), num_buckets=5
  ),
  'geometric median of means': dict(
    rule=byzjax.geometric_median(), bucket_rule=byzjax.mean(), num_buckets=5
  ),
  'multi-Krum': dict(
    rule=byzjax.mean(),
    bucket_rule=byzjax.multi_krum(num_byzantine=2),
    num_buckets=2,
  ),
  'Bulyan': dict(rule=byzjax.bulyan(num_byzantine=2)),
  'stateful': dict(rule=byzjax.centered_clipping(radius=2.0)),
}
PAYLOADS = [1e6, 1e30, np.inf, np.nan]


@functools.cache
def _instance(name):
  rule = byzjax.detox(group_size=3, **INSTANCES[name])
  return jax.jit(lambda x: rule.inspect(x, rule.init(x[0]), key=KEY))


@pytest.mark.parametrize('name', INSTANCES)
def test_one_attacker_in_every_group_changes_no_bit(name):
  x, attacked = _groups(15, 3), _groups(15, 3)
  members = np.arange(0, 45, 3) + np.arange(15) % 3
  attacked[members] = np.resize([-100, *PAYLOADS], 15)[:, None]
  expected, _, _ = _instance(name)(x)
  result, _, info = _instance(name)(attacked)
  np.testing.assert_array_equal(result, expected)
  assert np.isfinite(result).all() and np.abs(result).max() > 0.1
  kept = ~np.isin(np.arange(45), members)
  np.testing.assert_array_equal(info.kept, kept)


@pytest.mark.parametrize('payload', PAYLOADS)
@pytest.mark.parametrize('name', INSTANCES)
def test_captured_groups_stay_within_the_bound_of_the_rule(name, payload):
  x = _groups(15, 3)
  is_byzantine = np.asarray(byzjax.worst_case_byzantine(45, 5, 3))
  x[is_byzantine] = payload  # two groups fall, the third does not
  result, _, info = _instance(name)(x)
  assert np.isfinite(result).all()
  honest = x[~is_byzantine]
  spread = np.linalg.norm(honest[:, None] - honest[None], axis=2).max()
  assert np.linalg.norm(result - honest.mean(axis=0)) < spread
  elected = np.arange(45) < 6
  np.testing.assert_array_equal(
    info.kept, np.where(elected, is_byzantine, ~is_byzantine)
  )


@pytest.mark.parametrize('name', INSTANCES)
def test_colluders_who_differ_have_no_majority_and_are_dropped(name):
  x = _groups(15, 3)
  x[[3, 4, 6, 7]] = np.array([7.0, 8.0, 9.0, np.nan])[:, None]
  result, _, info = _instance(name)(x)
  assert not np.asarray(info.kept)[3:9].any()
  assert np.asarray(info.kept).sum() == 39
  assert np.isfinite(result).all()
  if info.weights is not None:
    assert (np.asarray(info.weights)[3:9] == 0).all()


def test_two_colluders_who_agree_win_and_two_who_differ_are_left_out():
  x = _groups(3, 3)
  rule = byzjax.detox(group_size=3, rule=byzjax.mean())
  honest = x[::3].astype(np.float64)
  x[3:5] = 50
  expected = (honest[0] + 50 + honest[2]) / 3
  np.testing.assert_allclose(rule(x), expected, 1e-5)
  x[3] = 49
  np.testing.assert_allclose(rule(x), (honest[0] + honest[2]) / 2, 1e-5)
  median = byzjax.pre_aggregate(
    byzjax.group_vote(group_size=3), byzjax.coordinate_median()
  )
  between = np.sort(np.where(np.arange(3)[:, None] == 1, np.inf, honest), 0)[1]
  np.testing.assert_allclose(median(x), between, 1e-6)


@pytest.mark.parametrize('name', ['geometric median of means', 'multi-Krum'])
def test_the_weights_are_those_of_the_messages(name):
  x = _groups(15, 3)
  x[[1, 8]] = -5
  result, _, info = _instance(name)(x)
  weights = np.asarray(info.weights, np.float64)
  np.testing.assert_allclose(weights.sum(), 1, 1e-5)
  assert weights[1] == 0 and weights[8] == 0
  np.testing.assert_allclose(weights @ x, result, 1e-4, 1e-5)


def test_one_worker_per_group_is_the_rule_and_one_bucket_its_own():
  x = _groups(9, 1)
  rule = byzjax.krum(num_byzantine=2)
  single = byzjax.detox(group_size=1, rule=rule)
  np.testing.assert_array_equal(single(x), rule(x))
  inside = byzjax.hierarchical(
    byzjax.mean(), bucket_rule=byzjax.krum(num_byzantine=2), num_buckets=1
  )
  np.testing.assert_array_equal(inside(x), rule(x))


def test_means_of_equal_buckets_are_the_mean():
  x = _groups(15, 3)
  rule = byzjax.detox(
    group_size=3, rule=byzjax.mean(), bucket_rule=byzjax.mean(), num_buckets=5
  )
  result, _, info = _inspect(rule, x)
  np.testing.assert_allclose(result, reference.mean(x), 1e-5)
  np.testing.assert_allclose(info.weights, np.full(45, 1 / 45), 1e-5)


def test_gradients_reach_the_messages_that_were_elected():
  x = _groups(3, 3)
  x[3:5] = [[2.0], [3.0]]  # no majority
  x[6] = 4
  rule = byzjax.detox(group_size=3, rule=byzjax.coordinate_median())
  gradient = jax.grad(lambda x: rule(x).sum())(jnp.asarray(x))
  by_group = np.asarray(gradient).reshape(3, 3, -1).sum(axis=1)
  order = np.argsort(np.stack([x[0], np.full(40, np.inf), x[7]]), axis=0)
  np.testing.assert_array_equal(by_group, order.argsort(axis=0) == 1)
  assert (np.asarray(gradient)[[3, 4, 5, 6]] == 0).all()


# Sharded.


@pytest.mark.parametrize('devices', [2, 8])
def test_sharded_votes_see_the_coordinates_of_all_devices(devices):
  x = _groups(8, 3, size=600)
  x[[1, 5, 8, 9], [599, 0, 300, 599]] += 1  # one in every group
  x[[12, 13], [0, 599]] += 1  # two that differ: no majority
  x[[15, 16], [599, 599]] += 1  # two that agree
  rule = byzjax.detox(
    group_size=3,
    rule=byzjax.coordinate_median(),
    bucket_rule=byzjax.mean(),
    num_buckets=3,
  )
  sharded = byzjax.worker_sharded(rule, 'workers')

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=problem.mesh(devices),
    in_specs=(jax.P('workers'), jax.P()),
    out_specs=jax.P(),
  )
  def aggregate(messages, key):
    state = sharded.init(jnp.zeros_like(messages[0]))
    result, _, info = sharded.inspect(messages, state, key=key)
    return result, info.kept

  # The server splits its key between the attack and the rule.
  expected, _, info = _inspect(rule, x, jax.random.split(KEY)[1])
  result, kept = aggregate(x, KEY)
  np.testing.assert_array_equal(kept, info.kept)
  dropped = [1, 5, 8, 9, 12, 13, 14, 17]
  np.testing.assert_array_equal(np.flatnonzero(~np.asarray(kept)), dropped)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


# Arguments.


def _hierarchical(**kwargs):
  arguments = dict(bucket_rule=byzjax.mean(), num_buckets=2) | kwargs
  return byzjax.hierarchical(byzjax.mean(), **arguments)


@pytest.mark.parametrize(
  'build, message',
  [
    (
      lambda: byzjax.group_vote(group_size=4),
      'group_vote needs group_size to be odd, got 4',
    ),
    (
      lambda: byzjax.detox(group_size=0, rule=byzjax.mean()),
      'detox needs group_size to be a Python int .* at least 1, got 0',
    ),
    (
      lambda: byzjax.detox(group_size=3, rule=byzjax.mean())(np.ones((10, 2))),
      'detox needs group_size to divide num_workers, got 3 and 10',
    ),
    (
      lambda: _vote(np.ones((4, 2)), 3),
      'group_vote needs group_size to divide num_workers, got 3 and 4',
    ),
    (
      lambda: byzjax.detox(group_size=3, rule=byzjax.mean(), num_buckets=2),
      'detox needs both bucket_rule and num_buckets, or neither, got None',
    ),
    (
      lambda: byzjax.detox(group_size=3, rule=byzjax.group_vote(group_size=3)),
      'detox needs rule to be an Aggregator, got PreAggregator',
    ),
    (
      lambda: byzjax.detox(group_size=1, rule=byzjax.mean())(
        np.ones((3, 2)), worker_weights=np.ones(3)
      ),
      'detox does not support worker_weights',
    ),
    (
      lambda: _hierarchical(bucket_rule=byzjax.bucketing(bucket_size=2)),
      'hierarchical needs bucket_rule to be an Aggregator, got PreAggregator',
    ),
    (
      lambda: byzjax.hierarchical(
        byzjax.fools_gold(num_workers=3),
        bucket_rule=byzjax.mean(),
        num_buckets=3,
      ),
      'hierarchical needs a rule without a row for each worker, .* got byz',
    ),
    (
      lambda: _hierarchical(num_buckets=0),
      'hierarchical needs num_buckets to be .* at least 1, got 0',
    ),
    (
      lambda: _hierarchical(num_buckets=4)(np.ones((3, 2)), key=KEY),
      'hierarchical needs num_buckets <= the number of mess.*, got 4 and 3',
    ),
    (
      lambda: _hierarchical()(np.ones((3, 2))),
      'hierarchical needs a key to draw its buckets, got None',
    ),
    (
      lambda: _hierarchical()(
        np.ones((3, 2)), key=KEY, worker_weights=np.ones(3)
      ),
      'hierarchical does not support worker_weights',
    ),
    (
      lambda: _hierarchical(
        bucket_rule=byzjax.centered_clipping(radius=1.0)
      ).init(np.ones(2)),
      'hierarchical needs a bucket_rule without state, got centered_clipping',
    ),
  ],
)
def test_bad_arguments_are_refused_by_name(build, message):
  with pytest.raises(ValueError, match=message):
    build()
