"""Epsilon, against numbers and formulas that know nothing of the accountant."""

import math
import sys

import numpy as np
import pytest
from scipy import optimize, stats

from byzjax import theory

RUN = {
  'noise_multiplier': 1.0,
  'sampling_rate': 0.01,
  'num_rounds': 1000,
  'delta': 1e-5,
}
needs_package = pytest.mark.filterwarnings('ignore')


def epsilon(**changed):
  pytest.importorskip('dp_accounting')
  return theory.privacy_epsilon(**{**RUN, **changed})


def gaussian_epsilon(z, delta):
  """Of one Gaussian mechanism, by the theorem of Balle and Wang (2018)."""

  def excess(eps):
    a, b = 1 / (2 * z) - eps * z, -1 / (2 * z) - eps * z
    value = stats.norm.cdf(a) - math.exp(eps) * stats.norm.cdf(b)
    return value - delta

  return optimize.brentq(excess, 0, 50)


def renyi_epsilon(z, q, num_rounds, delta):
  """By integrals of the two densities, at whole orders up to 64."""
  x = np.linspace(-12 * z, 12 * z + 40, 400_001)
  p = stats.norm.pdf(x, 0, z)
  ratio = 1 - q + q * np.exp((2 * x - 1) / (2 * z * z))
  best = math.inf
  for order in range(2, 65):
    with np.errstate(over='ignore'):
      moment = np.trapezoid(p * ratio**order, x)
    if not math.isfinite(moment):
      break
    divergence = num_rounds * math.log(moment) / (order - 1)
    best = min(
      best,
      divergence
      + math.log1p(-1 / order)
      - math.log(delta * order) / (order - 1),
    )
  return best


@needs_package
@pytest.mark.parametrize(
  ('q', 'z', 'num_rounds', 'rdp', 'pld'),
  [
    (0.01, 1.0, 1000, 2.1014, 1.8282),
    (0.05, 2.0, 200, 1.7213, 1.5606),
    (1.0, 10.0, 100, 4.7285, 4.3772),
  ],
)
def test_known_numbers(q, z, num_rounds, rdp, pld):
  given = {'sampling_rate': q, 'noise_multiplier': z, 'num_rounds': num_rounds}
  np.testing.assert_allclose(epsilon(**given, accountant='rdp'), rdp, atol=1e-3)
  np.testing.assert_allclose(epsilon(**given), pld, atol=1e-3)


@needs_package
@pytest.mark.parametrize(('z', 'num_rounds'), [(3.0, 1), (10.0, 100)])
def test_without_sampling_it_is_one_gaussian_mechanism(z, num_rounds):
  exact = gaussian_epsilon(z / math.sqrt(num_rounds), 1e-5)
  given = {'sampling_rate': 1.0, 'noise_multiplier': z}
  got = epsilon(**given, num_rounds=num_rounds)
  assert exact <= got * (1 + 1e-6) and got < 1.001 * exact + 1e-3


@needs_package
def test_renyi_divergences_are_those_of_the_two_densities():
  want = renyi_epsilon(1.0, 0.01, 1000, 1e-5)
  got = epsilon(accountant='rdp')
  # Orders that are no whole numbers make it a little smaller.
  assert 0.98 * want < got <= want * (1 + 1e-6)
  assert epsilon() < got


@needs_package
def test_the_least_noise_has_that_epsilon():
  pytest.importorskip('dp_accounting')
  given = {'sampling_rate': 0.01, 'num_rounds': 1000, 'delta': 1e-5}
  z = theory.privacy_noise_multiplier(epsilon=3.0, accountant='rdp', **given)
  np.testing.assert_allclose(z, 0.86461, atol=1e-4)
  assert epsilon(noise_multiplier=z, accountant='rdp') <= 3.0
  assert epsilon(noise_multiplier=z - 1e-3, accountant='rdp') > 3.0


def test_what_needs_no_accountant(monkeypatch):
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  for changed, want in [
    ({'noise_multiplier': 0.0}, math.inf),
    ({'noise_multiplier': math.inf}, 0.0),
    ({'sampling_rate': 0.0}, 0.0),
  ]:
    assert theory.privacy_epsilon(**{**RUN, **changed}) == want


@pytest.mark.parametrize(
  ('function', 'argument'),
  [
    (theory.privacy_epsilon, {'noise_multiplier': 1.0}),
    (theory.privacy_noise_multiplier, {'epsilon': 1.0}),
  ],
)
def test_says_which_extra_is_missing(monkeypatch, function, argument):
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  given = {**RUN, **argument}
  if function is theory.privacy_noise_multiplier:
    del given['noise_multiplier']
  with pytest.raises(ImportError, match=r"pip install 'byzjax\[privacy\]'"):
    function(**given)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'noise_multiplier': -1.0}, 'noise_multiplier'),
    ({'sampling_rate': 1.5}, 'sampling_rate'),
    ({'num_rounds': 0}, 'num_rounds'),
    ({'delta': 0.0}, 'delta'),
    ({'delta': 1.0}, 'delta < 1'),
    ({'accountant': 'x'}, 'accountant to be one of pld, rdp'),
  ],
)
def test_refuses(changed, message):
  with pytest.raises(ValueError, match=message):
    theory.privacy_epsilon(**{**RUN, **changed})
