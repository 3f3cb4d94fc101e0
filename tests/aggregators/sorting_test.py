"""The sorting network, and what coordinate rules make of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax._src import sorting
from tests import reference


def _run(pairs, columns):
  """The network on every column of [n, k], in NumPy."""
  rows = np.array(columns)
  for a, b in pairs:
    rows[a], rows[b] = (
      np.minimum(rows[a], rows[b]),
      np.maximum(rows[a], rows[b]),
    )
  return rows


def _zeros_and_ones(n):
  return np.array(list(itertools.product([0, 1], repeat=n))).T


@pytest.mark.parametrize('n', range(1, 11))
def test_sorts_every_vector_of_zeros_and_ones(n):
  # Enough for all vectors, by the 0-1 principle.
  columns = _zeros_and_ones(n)
  result = _run(sorting.comparators(n), columns)
  np.testing.assert_array_equal(result, np.sort(columns, axis=0))


@pytest.mark.parametrize('n', [20, 31, 50, 127, 128])
def test_sorts_random_vectors(n):
  columns = np.random.default_rng(n).normal(size=(n, 200))
  # A threshold network that is wrong is wrong near the middle: vary the zeros.
  columns[:, 100:] = columns[:, 100:] > np.linspace(-2, 2, 100)
  result = _run(sorting.comparators(n), columns)
  np.testing.assert_array_equal(result, np.sort(columns, axis=0))


def _classes(n, num_trimmed):
  return tuple(
    0 if i < num_trimmed else 1 if i < n - num_trimmed else 2 for i in range(n)
  )


@pytest.mark.parametrize(
  'n, num_trimmed', [(n, k) for n in range(2, 9) for k in range((n + 1) // 2)]
)
def test_a_pruned_network_puts_the_right_values_in_each_class(n, num_trimmed):
  labels = _classes(n, num_trimmed)
  pairs = sorting.pruned_comparators(labels)
  assert len(pairs) <= len(sorting.comparators(n))
  columns = _zeros_and_ones(n)
  result, expected = _run(pairs, columns), np.sort(columns, axis=0)
  for label in set(labels):
    inside = np.array(labels) == label
    np.testing.assert_array_equal(
      np.sort(result[inside], axis=0), expected[inside]
    )


def test_pruning_prunes():
  everything = sorting.comparators(20)
  assert len(sorting.pruned_comparators(_classes(20, 4))) < len(everything)
  assert not sorting.pruned_comparators(_classes(20, 0))


@pytest.mark.parametrize('n', [1, 2, 19, 20, 129, 140])
def test_median_of_few_and_of_more_than_a_network_can(n):
  x = np.random.default_rng(n).normal(size=(n, 7)).astype(np.float32)
  result = jax.jit(byzjax.coordinate_median().__call__)(jnp.asarray(x))
  np.testing.assert_allclose(result, np.median(x, axis=0), 1e-6)


def test_trimmed_mean_of_more_than_a_network_can():
  x = np.random.default_rng(0).normal(size=(131, 7)).astype(np.float32)
  x[:30] = [[np.nan]]
  result = jax.jit(byzjax.trimmed_mean(num_byzantine=30).__call__)(
    jnp.asarray(x)
  )
  expected = reference.trimmed_mean(np.where(np.isnan(x), 1e30, x), 30)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6)


def test_trimming_nothing_is_the_mean():
  x = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
  result = byzjax.trimmed_mean(num_byzantine=0)(jnp.asarray(x))
  np.testing.assert_allclose(result, reference.mean(x), 1e-5, 1e-7)


@pytest.mark.parametrize('scale', [1.0, 1e8])
def test_trimming_does_not_cancel(scale):
  x = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
  x[:4] *= 1e8
  x = x.astype(np.float32)
  result = jax.jit(byzjax.trimmed_mean(num_byzantine=4).__call__)(
    scale * jnp.asarray(x)
  )
  expected = reference.trimmed_mean(np.float32(scale) * x, 4)
  np.testing.assert_allclose(result, expected, 1e-5, 1e-6 * scale)


def test_large_finite_values_do_not_overflow():
  x = jnp.full((6, 2), 3e38)
  np.testing.assert_array_equal(byzjax.coordinate_median()(x), x[0])


@pytest.mark.parametrize(
  'rule',
  [byzjax.coordinate_median(), byzjax.trimmed_mean(num_byzantine=4)],
  ids=['median', 'trimmed_mean'],
)
def test_temporary_memory_is_under_five_percent_of_the_messages(rule):
  x = jax.ShapeDtypeStruct((20, 2**16), jnp.float32)

  def temporary_bytes(function):
    memory = jax.jit(function).lower(x).compile().memory_analysis()
    return memory.temp_size_in_bytes

  size = 20 * 2**16 * 4
  assert temporary_bytes(rule.__call__) < 0.05 * size
  # What it replaces, to see that the measure measures.
  assert temporary_bytes(functools.partial(jnp.median, axis=0)) > 0.5 * size
