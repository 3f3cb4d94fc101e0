"""The bounds of ByzSGDm and ByzSGDnm, and where they are least."""

import numpy as np
import pytest
from scipy import optimize

from byzjax import theory

SETTING = {'num_workers': 8, 'num_gradients': 1e6}


@pytest.mark.parametrize(
  ('num_byzantine', 'plain', 'normalized'),
  [(1, 9.424, 0.0569), (2, 14.309, 0.0847), (3, 19.158, 0.1132)],
)
def test_known_values(num_byzantine, plain, normalized):
  given = {**SETTING, 'num_byzantine': num_byzantine}
  best = theory.optimal_batch_size(**given)
  np.testing.assert_allclose(best, plain, atol=5e-4)
  best = theory.optimal_batch_size(**given, normalized=True)
  np.testing.assert_allclose(best, normalized, atol=5e-5)


OTHER = {
  'num_workers': 12,
  'num_byzantine': 4,
  'num_gradients': 3e5,
  'smoothness': 2.0,
  'gap': 0.7,
  'variance': 9.0,
  'constant': 3.0,
}


@pytest.mark.parametrize('normalized', [False, True])
@pytest.mark.parametrize('given', [{**SETTING, 'num_byzantine': 3}, OTHER])
def test_the_optimum_is_where_a_search_finds_it(given, normalized):
  bound = theory.byz_sgdnm_bound if normalized else theory.byz_sgdm_bound
  found = optimize.minimize_scalar(
    lambda x: bound(np.exp(x), **given), bounds=(-10, 15), method='bounded'
  )
  best = theory.optimal_batch_size(**given, normalized=normalized)
  np.testing.assert_allclose(np.exp(found.x), best, rtol=1e-3)


def test_at_the_optimum_the_bound_is_its_closed_form():
  # A1 + 3 (A2^2 A3 / 4)^(1/3), with c = L = F0 = sigma = 1.
  c, m, f = 1e6, 8, 3
  a = (1 + f) * (1 - f / m)
  a1 = 16 * np.sqrt(10 * a / c) + 20 * a / c
  a2, a3 = 16 * np.sqrt(3 * f / m * a / c), 32 * (m - f) / c
  best = theory.optimal_batch_size(**SETTING, num_byzantine=f)
  np.testing.assert_allclose(
    theory.byz_sgdm_bound(best, **SETTING, num_byzantine=f),
    a1 + 3 * (a2**2 * a3 / 4) ** (1 / 3),
    rtol=1e-12,
  )


@pytest.mark.parametrize('normalized', [False, True])
def test_the_best_batch_grows_with_the_attackers(normalized):
  best = [
    theory.optimal_batch_size(**SETTING, num_byzantine=f, normalized=normalized)
    for f in range(4)
  ]
  assert best == sorted(best)
  assert len(set(best)) == 4
  if not normalized:
    assert best[0] == 0


def test_the_best_whole_batch_is_a_neighbour_of_the_optimum():
  given = {**SETTING, 'num_byzantine': 2}
  bounds = [theory.byz_sgdm_bound(b, **given) for b in range(1, 100)]
  best = int(np.argmin(bounds)) + 1
  assert best - theory.optimal_batch_size(**given) in (
    pytest.approx(-0.309, abs=1e-3),
    pytest.approx(0.691, abs=1e-3),
  )


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'num_byzantine': 4}, r'num_workers > 2 \* num_byzantine, got 8 and 4'),
    ({'variance': 0.0}, 'needs variance > 0, got 0.0'),
    ({'num_gradients': -1}, 'needs num_gradients > 0, got -1'),
    ({'constant': -0.5}, 'needs constant >= 0, got -0.5'),
  ],
)
def test_refuses(changed, message):
  given = {**SETTING, 'num_byzantine': 1, **changed}
  with pytest.raises(ValueError, match=f'optimal_batch_size.*{message}'):
    theory.optimal_batch_size(**given)
  for bound in (theory.byz_sgdm_bound, theory.byz_sgdnm_bound):
    with pytest.raises(ValueError, match=f'{bound.__name__}.*{message}'):
      bound(1.0, **given)
  with pytest.raises(ValueError, match='needs batch_size > 0, got 0'):
    theory.byz_sgdm_bound(0, **SETTING, num_byzantine=1)
