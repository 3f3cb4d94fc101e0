"""Pacing functions: the property table of the paper's card."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax import data
from byzjax.data import _pacing

PACINGS = get_args(_pacing.Pacing)
T = 50
STEPS = np.arange(T + 11)
A = (0.1, 0.5, 0.8, 1.0)
B = (0.0025, 0.1, 0.2, 0.5, 0.8)
SIZES = (1, 7, 31, 500, 60_000)
GRID = [x.ravel() for x in np.meshgrid(SIZES, A, B, indexing='ij')]


@functools.cache
def table(pacing):
  """int[sizes * a * b, steps], in one vmap over traced numbers."""

  def of_one(n, a, b):
    return data.pool_size(
      STEPS,
      pacing=pacing,
      num_examples=n,
      total_steps=T,
      full_at=a,
      initial_share=b,
    )

  return np.asarray(jax.jit(jax.vmap(of_one))(*map(jnp.asarray, GRID)))


@pytest.mark.parametrize('pacing', PACINGS)
def test_begins_at_its_share_grows_and_is_full_in_time(pacing):
  sizes, (n, a, b) = table(pacing), GRID
  assert sizes.dtype == np.int32
  first = np.maximum(1, np.floor(b * n + 1e-9))
  assert np.all(np.abs(sizes[:, 0] - first) <= (n > 1000))
  assert np.all(np.diff(sizes, axis=1) >= 0)
  full = STEPS[None] >= (a * T)[:, None] - 1e-9
  assert np.all((sizes == n[:, None])[full])
  assert np.all((sizes >= 1) & (sizes <= n[:, None]))


def share(pacing, r):
  return {
    'linear': r,
    'quadratic': r**2,
    'root': r**0.5,
    'step': np.floor(r),
    'exponential': (np.exp(10 * r) - 1) / (np.exp(10) - 1),
    'logarithmic': 1 + np.log(r + np.exp(-10)) / 10,
  }[pacing]


@pytest.mark.parametrize('pacing', PACINGS)
def test_is_the_formula_rounded_down(pacing):
  n, a, b = (x[:, None] for x in GRID)
  r = np.minimum(STEPS[None] / (a * T) + 1e-12, 1)
  exact = b * n + (1 - b) * n * share(pacing, r)
  sizes = table(pacing)
  # One example more or less where the formula is next to a whole number.
  np.testing.assert_allclose(
    sizes, np.clip(np.floor(exact), 1, n), atol=1, rtol=0
  )
  safe = np.abs(exact - np.rint(exact)) > 2e-6 * n + 1e-6
  np.testing.assert_array_equal(
    sizes[safe], np.clip(np.floor(exact), 1, n)[safe]
  )
  assert (safe & (r < 1)).sum() > 100 or pacing == 'step'


def test_order_of_the_six():
  assert np.all(table('quadratic') <= table('linear'))
  assert np.all(table('linear') <= table('root'))
  assert np.all(table('exponential') <= table('linear'))
  assert np.all(table('linear') <= table('logarithmic'))
  assert np.all(table('step') <= table('quadratic'))


@pytest.mark.parametrize('pacing', PACINGS)
def test_everything_from_the_start(pacing):
  for a, b in ((0.5, 1.0), (0.5, 1.7), (1.0, 3.0), (0.0, 0.1)):
    sizes = data.pool_size(
      STEPS,
      pacing=pacing,
      num_examples=33,
      total_steps=T,
      full_at=a,
      initial_share=b,
    )
    np.testing.assert_array_equal(sizes, np.full(STEPS.size, 33))


def test_products_that_are_whole_numbers_are_not_rounded_down():
  for percent in range(1, 100):
    size = data.pool_size(
      0,
      pacing='linear',
      num_examples=100,
      total_steps=10,
      full_at=0.5,
      initial_share=percent / 100,
    )
    assert size == percent


def test_step_jumps_at_a_share_of_the_steps():
  for a in np.arange(1, 21) / 20:
    full = data.pool_size(
      jnp.arange(101),
      pacing='step',
      num_examples=10,
      total_steps=100,
      full_at=a,
      initial_share=0.3,
    )
    np.testing.assert_array_equal(
      full, np.where(np.arange(101) >= np.rint(100 * a), 10, 3)
    )


@pytest.mark.parametrize(
  'change, found',
  [
    ({'pacing': 'cubic'}, "pacing to be one of .*'root'.*, got 'cubic'"),
    ({'full_at': -0.1}, 'full_at >= 0, got -0.1'),
    ({'initial_share': np.nan}, 'initial_share >= 0, got nan'),
    ({'total_steps': 0}, 'total_steps > 0, got 0'),
    ({'num_examples': 0}, 'num_examples >= 1, got 0'),
  ],
)
def test_refusals(change, found):
  kwargs = dict(
    pacing='linear',
    num_examples=9,
    total_steps=5,
    full_at=0.8,
    initial_share=0.2,
  )
  with pytest.raises(ValueError, match=f'pool_size needs {found}'):
    data.pool_size(0, **(kwargs | change))
