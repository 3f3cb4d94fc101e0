"""Corrupted groups: the formulas, counting, and the vote itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import theory

# n, f, r, E and the worst case.
KNOWN = [
  (45, 5, 3, 0.4334, 2),
  (45, 5, 5, 0.0589, 1),
  (15, 3, 3, 0.4066, 1),
  (15, 2, 3, 0.1429, 1),
  (15, 5, 3, 1.2088, 2),
  (27, 5, 3, 0.7077, 2),
  (21, 4, 3, 0.5579, 2),
  (9, 2, 3, 0.25, 1),
]


@pytest.mark.parametrize('n, f, r, expected, worst', KNOWN)
def test_known_values(n, f, r, expected, worst):
  result = theory.expected_corrupted_groups(n, f, r)
  assert isinstance(result, float)
  np.testing.assert_allclose(result, expected, 0, 5e-5)
  assert theory.max_corrupted_groups(n, f, r) == worst
  distribution = theory.corrupted_groups_distribution(n, f, r)
  assert len(distribution) == worst + 1
  np.testing.assert_allclose(sum(distribution), 1, 1e-12)
  mean = np.dot(distribution, np.arange(worst + 1))
  np.testing.assert_allclose(mean, result, 1e-12)


def test_the_known_distribution():
  distribution = theory.corrupted_groups_distribution(45, 5, 3)
  np.testing.assert_allclose(distribution, [0.5973, 0.3720, 0.0307], 0, 5e-5)


@pytest.mark.parametrize(
  'n, f, r', [(9, 4, 3), (9, 9, 3), (10, 5, 5), (6, 0, 3), (4, 3, 1)]
)
def test_the_distribution_agrees_with_counting_all_placements(n, f, r):
  numbers = [
    sum(2 * sum(i // r == j for i in placed) > r for j in range(n // r))
    for placed in itertools.combinations(range(n), f)
  ]
  most = theory.max_corrupted_groups(n, f, r)
  assert max(numbers) == most
  np.testing.assert_allclose(
    theory.corrupted_groups_distribution(n, f, r),
    np.bincount(numbers, minlength=most + 1) / len(numbers),
    1e-12,
  )
  np.testing.assert_allclose(
    theory.expected_corrupted_groups(n, f, r), np.mean(numbers), 1e-12
  )


def test_the_expectation_is_exact_where_floats_are_not():
  # One worker per group: each is corrupted with probability f / n.
  assert theory.expected_corrupted_groups(3000, 700, 1) == 700.0
  assert theory.expected_corrupted_groups(3000, 700, 5) < 600


def _num_corrupted(is_byzantine, r):
  """Votes that are the attackers', by the vote itself."""
  stage = byzjax.group_vote(group_size=r)
  sent = jnp.where(is_byzantine, jnp.nan, jnp.arange(len(is_byzantine)) // r)
  votes, _ = stage.apply(sent, ())
  return jnp.sum(jnp.isnan(votes))


@pytest.mark.parametrize('n, f, r', [(45, 5, 3), (15, 5, 3), (15, 5, 5)])
def test_random_placements_corrupt_votes_as_computed(n, f, r):
  schedule = byzjax.random_byzantine(n, f, jax.random.key(0))
  draws = 20_000

  @jax.jit
  @jax.vmap
  def numbers(step):
    return _num_corrupted(schedule(step), r)

  counts = np.asarray(numbers(jnp.arange(draws)))
  expected = theory.expected_corrupted_groups(n, f, r)
  error = counts.std() / np.sqrt(draws)
  assert abs(counts.mean() - expected) < 4 * error
  distribution = theory.corrupted_groups_distribution(n, f, r)
  shares = np.bincount(counts, minlength=len(distribution)) / draws
  assert len(shares) == len(distribution)
  np.testing.assert_allclose(shares, distribution, 0, 4 * 0.5 / draws**0.5)


def test_the_worst_placement_corrupts_as_many_votes_as_can_be():
  for n, r in [(45, 3), (45, 5), (15, 3), (9, 1), (9, 9)]:
    for f in range((n + 1) // 2):
      mask = byzjax.worst_case_byzantine(n, f, r)
      assert mask.shape == (n,) and mask.dtype == bool
      by_group = np.asarray(mask).reshape(-1, r).sum(axis=1)
      assert by_group.sum() == f
      captured = int((2 * by_group > r).sum())
      assert captured == theory.max_corrupted_groups(n, f, r)
  mask = byzjax.worst_case_byzantine(45, 5, 3)
  assert int(_num_corrupted(mask, 3)) == 2


@pytest.mark.parametrize(
  'function',
  [
    theory.expected_corrupted_groups,
    theory.corrupted_groups_distribution,
    theory.max_corrupted_groups,
    byzjax.worst_case_byzantine,
  ],
)
@pytest.mark.parametrize(
  'arguments, message',
  [
    ((9, 2, 2), 'needs group_size to be odd, got 2'),
    ((10, 2, 3), 'needs group_size to divide num_workers, got 3 and 10'),
    ((9, -1, 3), 'needs num_byzantine to be .* at least 0, got -1'),
    ((9, 10, 3), r'needs num_(byz.* <=|workers >) .*, got (10 and 9|9 and 10)'),
    ((9.0, 1, 3), 'needs num_workers to be a Python int .*, got 9.0'),
  ],
)
def test_bad_arguments_are_refused_by_name(function, arguments, message):
  with pytest.raises(ValueError, match=f'{function.__name__} {message}'):
    function(*arguments)
