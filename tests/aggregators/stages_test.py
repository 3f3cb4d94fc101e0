"""Stages in front of a rule: clipping, resampling, and chains of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests import reference, reference_rules, tables

N, SIZE, F = tables.NUM_WORKERS, tables.SIZE, 3
KEY = jax.random.key(2)


def _messages(seed=0):
  x = np.float32(tables.random_messages(seed))
  x[1] *= 30
  return x


def _nnm():
  return byzjax.nearest_neighbor_mixing(num_byzantine=F)


def _applied(stage, x, key=None):
  return np.asarray(stage.apply(jnp.asarray(x), stage.init(x[0]), key=key)[0])


@pytest.mark.parametrize('max_norm', [0.0, 0.5, 3.0, 1e9, np.inf])
def test_clip_messages(max_norm):
  x = _messages()
  x[4] = 0
  result = _applied(byzjax.clip_messages(max_norm=max_norm), x)
  expected = reference_rules.clip_messages(x, max_norm)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


@pytest.mark.parametrize('f', [0, 1, 3, 5])
def test_adaptive_clipping(f):
  x = _messages(1)
  result = _applied(byzjax.adaptive_clipping(num_byzantine=f), x)
  expected = reference_rules.adaptive_clipping(x, f)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)
  # As many as that are shorter than before, and no norm is above theirs.
  norms, before = np.linalg.norm(result, axis=1), np.linalg.norm(x, axis=1)
  assert (norms < before * (1 - 1e-5)).sum() == 2 * f * (N - f) // N


def test_golden_vectors():
  x = jnp.array([0.0, 1.0, 2.0, 3.0, 100.0])[:, None]
  clipped = _applied(byzjax.adaptive_clipping(num_byzantine=1), x)
  np.testing.assert_allclose(clipped[:, 0], [0, 1, 2, 3, 3], 1e-6)
  x = jnp.array(
    [[1, 0], [0, 1], [1, 1], [2, 1], [1, 2], [10, -10], [10, -10.0]]
  )
  clipped = _applied(byzjax.adaptive_clipping(num_byzantine=2), x)
  np.testing.assert_allclose(clipped[5:], [[1.5811, -1.5811]] * 2, 1e-4)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_broken_messages_are_as_loud_as_can_be_and_stay_masked(bad):
  x = _messages(2)
  x[0] = bad
  clipped = _applied(byzjax.adaptive_clipping(num_byzantine=F), x)
  assert np.isnan(clipped[0]).all()
  silent = np.where(np.arange(N)[:, None] == 0, 0, x)
  silent[0, 0] = 1e9  # the loudest, whoever is broken
  expected = reference_rules.adaptive_clipping(silent, F)
  np.testing.assert_allclose(clipped[1:], expected[1:], 1e-5, 1e-6)
  rule = byzjax.pre_aggregate(byzjax.clip_messages(max_norm=2.0), byzjax.mean())
  expected = reference.mean(reference_rules.clip_messages(x[1:], 2.0))
  np.testing.assert_allclose(rule(x), expected, 1e-5, 1e-6)


@pytest.mark.parametrize('n, s', [(11, 1), (11, 2), (6, 4)])
def test_resampling_uses_every_message_equally_often(n, s):
  stage = byzjax.resampling(num_samples=s)
  matrices = [
    _applied(stage, jnp.eye(n), jax.random.key(seed)) for seed in (0, 0, 1)
  ]
  times = matrices[0] * s
  np.testing.assert_allclose(times, np.round(times), 0, 1e-5)
  np.testing.assert_allclose(times.sum(axis=0), np.full(n, s), 1e-5)
  np.testing.assert_allclose(times.sum(axis=1), np.full(n, s), 1e-5)
  np.testing.assert_array_equal(matrices[0], matrices[1])
  assert (matrices[0] != matrices[2]).any()


def test_resampling_leaves_masked_messages_out():
  x = np.ones((6, 3), np.float32)
  x[2] = np.nan
  sampled = _applied(byzjax.resampling(num_samples=3), x, KEY)
  assert (np.isnan(sampled).all(axis=1) | (sampled == 1).all(axis=1)).all()
  assert (sampled == 1).any()


CHAINS = {
  'arc, nnm, trimmed_mean': (
    [byzjax.adaptive_clipping(num_byzantine=F), _nnm()],
    byzjax.trimmed_mean(num_byzantine=F),
    lambda x: reference.trimmed_mean(
      reference.nearest_neighbor_mixing(
        reference_rules.adaptive_clipping(x, F), F
      ),
      F,
    ),
  ),
  'clip, nnm, krum': (
    [byzjax.clip_messages(max_norm=3.0), _nnm()],
    byzjax.krum(num_byzantine=F),
    lambda x: reference.krum(
      reference.nearest_neighbor_mixing(
        reference_rules.clip_messages(x, 3.0), F
      ),
      F,
    ),
  ),
  'nnm, clip, geometric_median': (
    [_nnm(), byzjax.clip_messages(max_norm=3.0)],
    byzjax.geometric_median(num_iterations=64),
    lambda x: reference.geometric_median(
      reference_rules.clip_messages(
        reference.nearest_neighbor_mixing(x, F), 3.0
      )
    ),
  ),
  'arc, clip, mean': (
    [
      byzjax.adaptive_clipping(num_byzantine=F),
      byzjax.clip_messages(max_norm=2.0),
    ],
    byzjax.mean(),
    lambda x: reference.mean(
      reference_rules.clip_messages(
        reference_rules.adaptive_clipping(x, F), 2.0
      )
    ),
  ),
}


@pytest.mark.parametrize('name', CHAINS)
def test_chains_agree_with_the_oracle(name):
  stages, rule, oracle = CHAINS[name]
  chain = byzjax.pre_aggregate(*stages, rule)
  x = _messages(3)
  state = chain.init(jnp.asarray(x[0]))
  assert len(state) == len(stages) + 1
  result, new_state = jax.jit(chain.update)(x, state)
  assert jax.tree.structure(new_state) == jax.tree.structure(state)
  np.testing.assert_allclose(result, oracle(x), 1e-4, 1e-5)


def test_a_chain_tells_by_which_factors_messages_were_clipped():
  x = _messages(4)
  chain = byzjax.pre_aggregate(
    byzjax.clip_messages(max_norm=3.0),
    byzjax.adaptive_clipping(num_byzantine=F),
    byzjax.multi_krum(num_byzantine=F),
  )
  aggregate, _, info = chain.inspect(x, chain.init(jnp.asarray(x[0])))
  clipped = reference_rules.adaptive_clipping(
    reference_rules.clip_messages(x, 3.0), F
  )
  expected = np.linalg.norm(clipped, axis=1) / np.linalg.norm(x, axis=1)
  np.testing.assert_allclose(info.factors, expected, 1e-4)
  np.testing.assert_allclose(
    aggregate, np.asarray(info.weights) @ x, 1e-4, 1e-5
  )
  scores = reference.krum_scores(clipped, F)
  np.testing.assert_allclose(info.scores, scores, 1e-3, 1e-4)
  assert np.asarray(info.kept).sum() == N - F


def test_the_linear_end_of_a_chain_stays_in_gram_space():
  d, x = 40_000, jnp.ones((N, 40_000))
  chain = byzjax.pre_aggregate(
    byzjax.resampling(num_samples=2), _nnm(), byzjax.krum(num_byzantine=F)
  )

  def aggregate(x):
    return chain.update(x, chain.init(x[0]), key=KEY)[0]

  memory = jax.jit(aggregate).lower(x).compile().memory_analysis()
  # Mixed messages that were written out would take as much as x.
  assert memory.temp_size_in_bytes < 0.25 * N * d * 4


@pytest.mark.parametrize(
  'build, message',
  [
    (
      lambda: byzjax.clip_messages(max_norm=-1.0),
      'clip_messages needs max_norm >= 0, got -1.0',
    ),
    (
      lambda: byzjax.adaptive_clipping(num_byzantine=-1),
      'adaptive_clipping needs num_byzantine .* at least 0, got -1',
    ),
    (
      lambda: _applied(
        byzjax.adaptive_clipping(num_byzantine=3), np.ones((6, 2))
      ),
      r'adaptive_clipping needs num_workers > 2 \* num_byz.*, got 6 and 3',
    ),
    (
      lambda: byzjax.resampling(num_samples=0),
      'resampling needs num_samples .* at least 1, got 0',
    ),
    (
      lambda: _applied(byzjax.resampling(num_samples=2), np.ones((6, 2))),
      'resampling needs a key',
    ),
    (
      lambda: byzjax.pre_aggregate(
        byzjax.bucketing(bucket_size=2), byzjax.fools_gold(num_workers=3)
      ),
      'a rule without a row for each worker behind byzjax.bucketing.* got byz',
    ),
  ],
)
def test_bad_arguments_are_refused_by_name(build, message):
  with pytest.raises(ValueError, match=message):
    build()


# Diagnostics on request.


# Derivatives of long sorting networks, of which trimmed_mean has one, too.
LONG = {'mean_around_median', 'phocas'}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name in tables.RULE
  ],
)
def test_every_rule_can_be_diagnosed(name):
  rule = tables.RULE[name]
  x = _messages(5)
  x[1] = 1e6
  if rule.num_byzantine > 1:
    x[2, 3] = np.nan
  aggregator = rule.make(rule.num_byzantine, 1.0)
  info = jax.jit(
    lambda x: byzjax.diagnose(aggregator, x, key=jax.random.key(7))
  )(x)
  for field in ('weights', 'mask', 'kept', 'scores', 'factors'):
    assert getattr(info, field).shape == (N,), field
  assert np.isfinite(info.weights).all()
  assert (np.asarray(info.weights)[np.isnan(x).all(axis=1)] == 0).all()
  if rule.num_byzantine > 1:
    assert info.scores[2] == np.inf or not rule.weighs


def test_the_diagnosis_of_a_trimmed_mean_is_how_often_each_is_kept():
  x = np.random.default_rng(0).normal(size=(N, 200)).astype(np.float32)
  x[0] += 100
  rule = byzjax.trimmed_mean(num_byzantine=F)
  info = byzjax.diagnose(rule, jnp.asarray(x))
  order = np.argsort(np.argsort(x, axis=0), axis=0)
  kept = (order >= F) & (order < N - F)
  np.testing.assert_allclose(
    info.weights, kept.mean(axis=1) / (N - 2 * F), 1e-4, 1e-6
  )
  assert not info.kept[0] and np.asarray(info.kept)[1:].all()
  distances = ((x - np.asarray(rule(x))) ** 2).sum(axis=1)
  np.testing.assert_allclose(info.scores, distances, 1e-4)


def test_the_diagnosis_uses_the_state_and_the_weights_it_is_given():
  x = jnp.asarray(_messages(6))
  rule = byzjax.centered_clipping(radius=2.0)
  state = byzjax.CenteredClippingState(x[3])
  info = byzjax.diagnose(rule, x, state, worker_weights=jnp.arange(N) + 1.0)
  assert info.factors[3] == 1 and info.factors[1] < 0.1
  expected = np.asarray(info.factors) * (np.arange(N) + 1) / 66
  np.testing.assert_allclose(info.weights, expected, 1e-5)


def test_adaptive_clipping_does_not_count_who_is_absent():
  rule = byzjax.pre_aggregate(
    byzjax.adaptive_clipping(num_byzantine=1), byzjax.mean()
  )
  x = jnp.array([[1.0], [1.0], [1.0], [1e6], [1e9], [jnp.nan]])
  weights = jnp.array([1.0, 1, 1, 1, 0, 0])
  np.testing.assert_allclose(rule(x, worker_weights=weights), rule(x[:4]))
