"""How many messages rules stand, found by search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import analysis

N = 11


def clip(max_norm):
  return byzjax.pre_aggregate(
    byzjax.clip_messages(max_norm=max_norm), byzjax.mean()
  )


def arc(f):
  return byzjax.pre_aggregate(
    byzjax.adaptive_clipping(num_byzantine=f),
    byzjax.trimmed_mean(num_byzantine=f),
  )


@pytest.mark.parametrize(
  'rule, expected',
  [
    (byzjax.mean(), 1),
    # A half, whatever the rule was told.
    (byzjax.coordinate_median(), 6),
    (byzjax.geometric_median(), 6),
    # One more than what the rule was told.
    (byzjax.trimmed_mean(num_byzantine=2), 3),
    (byzjax.multi_krum(num_byzantine=2), 3),
    (byzjax.comparative_gradient_elimination(num_byzantine=2), 3),
    # Scores have honest messages only up to f + 1, see the docstring.
    (byzjax.krum(num_byzantine=2), 5),
    (byzjax.krum(num_byzantine=2, num_neighbors=8), 4),
    # floor(2 f (n - f) / n) = 3 messages are clipped.
    (arc(2), 4),
    # Two messages far apart: one fixes the direction, the other stays.
    (byzjax.divide_and_conquer(num_byzantine=4), 2),
    # Lengths do not matter to the clusters, but they do to the mean.
    (byzjax.clustering(), 1),
    # If the reference itself is Byzantine.
    (byzjax.monna(num_byzantine=2, reference_worker=0), 1),
    # Not even all messages.
    (byzjax.centered_clipping(radius=1.0), None),
    (byzjax.majority_vote(), None),
    (clip(2.0), None),
  ],
  ids=lambda x: x.name if isinstance(x, byzjax.Aggregator) else str(x),
)
def test_breakdown_points(rule, expected):
  found = analysis.breakdown_point(
    rule, num_workers=N, num_draws=6, key=jax.random.key(0)
  )
  assert found.num_byzantine == expected
  # A clear cut: bounded before it, at the attackers' will from there on.
  is_broken = found.exponents > 0.5
  first = N if expected is None else expected - 1
  assert not is_broken[:first].any() and is_broken[first:].all()
  assert (found.exponents[:first] < 0.05).all()
  assert (found.exponents[first:] > 0.9).all()
  assert (found.displacements[:first] < 100).all()
  assert (found.displacements[first:] > 1e4).all()


def test_a_bucket_is_lost_with_each_message():
  # Of 6 buckets the median stands 2.
  rule = byzjax.pre_aggregate(
    byzjax.bucketing(bucket_size=2), byzjax.coordinate_median()
  )
  found = analysis.breakdown_point(
    rule, num_workers=N, num_draws=6, key=jax.random.key(0)
  )
  assert found.num_byzantine == 3


def test_what_clipping_moves_is_within_its_bound():
  found = analysis.breakdown_point(
    byzjax.centered_clipping(radius=0.5), num_workers=N, key=jax.random.key(0)
  )
  f = np.arange(1, N + 1)
  assert (found.displacements <= 2 * f * 0.5 / N * (1 + 1e-5)).all()
  assert found.displacements[0] > 0.5 * 0.5 / N


@pytest.mark.parametrize('power', [1, 20])
def test_a_rule_that_gives_no_number_is_broken(power):
  def soft(messages, state, params=None, **extra):
    del params, extra
    weights = jnp.exp(power * jnp.linalg.norm(messages, axis=1))
    return weights @ messages / weights.sum(), state

  found = analysis.breakdown_point(
    byzjax.Aggregator(lambda params: (), soft, name='soft'),
    num_workers=5,
    key=jax.random.key(0),
  )
  assert found.num_byzantine == 1
  assert np.isinf(found.displacements).all()
  assert (found.exponents > 1).all()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'num_workers': 0}, 'num_workers.*got 0'),
    ({'num_draws': 0}, 'num_draws'),
    ({'num_coordinates': 1.5}, 'num_coordinates'),
    ({'magnitude': 0.0}, 'magnitude > 0'),
  ],
)
def test_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    analysis.breakdown_point(
      byzjax.mean(), key=jax.random.key(0), **{'num_workers': 5, **options}
    )
