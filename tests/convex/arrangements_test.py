"""Arrangements that are sampled: of which hyperplanes, and how many."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import convex

KEY = jax.random.key(0)


def examples(n=7, d=3, seed=0):
  """Far from the origin next to their spread, with a column of ones."""
  x = 5 + np.random.default_rng(seed).normal(size=(n, d))
  return np.c_[x, np.ones(n)].astype(np.float32)


def of_all_pairs(x):
  """What all triples give, in plain NumPy."""
  found = set()
  for a, b, c in itertools.permutations(range(len(x)), 3):
    active = [
      k == c or np.dot(x[k] - x[c], x[a] - x[b]) >= 0 for k in range(len(x))
    ]
    found.add(tuple(active))
  return found


def test_pairs_are_those_of_all_triples():
  x = examples()
  drawn = convex.sample_arrangements(
    jnp.array(x), 4000, KEY, hyperplanes='pairs'
  )
  assert {tuple(row) for row in drawn.tolist()} == of_all_pairs(x)


def test_centred_hyperplanes_pass_through_an_example():
  x = examples(n=3, d=1)
  order = np.argsort(x[:, 0])
  drawn = convex.sample_arrangements(
    jnp.array(x), 200, KEY, hyperplanes='centred'
  )
  # On a line: all on one side of an example, which is active itself.
  above = [np.isin(np.arange(3), order[i:]) for i in range(3)]
  below = [np.isin(np.arange(3), order[: i + 1]) for i in range(3)]
  expected = {tuple(p.tolist()) for p in (*above, *below)}
  assert {tuple(row) for row in drawn.tolist()} == expected


@pytest.mark.parametrize('kind', ['centred', 'pairs'])
def test_a_vector_with_the_bias_has_the_pattern(kind):
  """So the program on these patterns has solutions besides zero."""
  x = examples(n=5, d=2, seed=1)
  drawn = convex.sample_arrangements(jnp.array(x), 20, KEY, hyperplanes=kind)
  vectors = np.random.default_rng(2).normal(size=(200_000, 3)) * [1, 1, 6]
  realised = np.unique(x @ vectors.T >= 0, axis=1).T
  assert {tuple(p) for p in drawn.tolist()} <= {
    tuple(p) for p in realised.tolist()
  }


def test_they_are_more_balanced_than_gaussian_ones():
  x = jnp.array(examples(n=60, d=8))

  def of(kind):
    return convex.sample_arrangements(x, 50, KEY, hyperplanes=kind)

  def balanced(kind):
    share = of(kind).mean(axis=1)
    return np.mean((share > 0.1) & (share < 0.9))

  assert balanced('gaussian') < 0.5 < balanced('pairs')
  assert balanced('gaussian') < balanced('centred')
  assert len(of('gaussian')) < len(of('pairs'))


@pytest.mark.parametrize('kind', ['gaussian', 'centred', 'pairs'])
def test_more_samples_begin_with_the_same(kind):
  x = jnp.array(examples())
  few, more = (
    convex.sample_arrangements(
      x, n, KEY, hyperplanes=kind, epsilon=0.1, num_perturbations=2
    )
    for n in (5, 15)
  )
  np.testing.assert_array_equal(more[: len(few)], few)


def test_perturbed_patterns_are_of_the_same_hyperplane():
  x = jnp.array(examples(n=20, d=2))
  side = jnp.array([0.01, 0.01, 0.0])
  plain, moved = (
    convex.sample_arrangements(
      x, 10, KEY, hyperplanes='pairs', epsilon=side, num_perturbations=k
    )
    for k in (0, 3)
  )
  assert len(moved) >= len(plain)
  # A small move of the examples changes few of them.
  apart = np.abs(moved[:, None] ^ plain[None]).sum(-1).min(1)
  assert apart.max() <= 3


@pytest.mark.parametrize('kind', ['gaussian', 'centred', 'pairs'])
def test_whole_numbers_are_floats(kind):
  x = np.array([[0, 9, 1], [7, 3, 1], [2, 0, 1], [5, 5, 1]], np.uint8)
  options = dict(hyperplanes=kind, epsilon=0.9, num_perturbations=1)
  found, expected = (
    convex.sample_arrangements(x.astype(dtype), 8, KEY, **options)
    for dtype in (np.uint8, np.float32)
  )
  np.testing.assert_array_equal(found, expected)


def test_refuses_hyperplanes():
  x = jnp.array(examples())
  with pytest.raises(
    ValueError, match='hyperplanes to be one of gaussian, cen'
  ):
    convex.sample_arrangements(x, 3, KEY, hyperplanes='whitened')
  for kind in ('centred', 'pairs'):
    with pytest.raises(ValueError, match='needs a constant column of x for'):
      convex.sample_arrangements(x[:, :-1], 3, KEY, hyperplanes=kind)
  with pytest.raises(ValueError, match="at least 3 examples .*'pairs', got 2"):
    convex.sample_arrangements(x[:2], 3, KEY, hyperplanes='pairs')
