"""Bounds of training where data differ, against training and constructions."""

import math

import numpy as np
import pytest

from byzjax import theory

GAP = {'num_rounds': 50, 'smoothness': 2.0, 'gap': 3.0}


def trimmed_mean(x, f):
  return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


@pytest.mark.parametrize(('n', 'f', 'growth'), [(9, 3, 0.5), (11, 2, 1.5)])
def test_the_two_bounds_meet_at_the_best_rule(n, f, growth):
  kappa = theory.kappa_lower_bound(n, f)
  assert kappa == theory.kappa_bound('trimmed_mean', n, f)
  upper = theory.heterogeneity_error(kappa, heterogeneity=2.0, growth=growth)
  lower = theory.heterogeneity_lower_bound(
    n, f, heterogeneity=2.0, growth=growth
  )
  np.testing.assert_allclose(upper, lower, rtol=1e-12)
  np.testing.assert_allclose(
    lower, f * 4.0 / (n - (2 + growth**2) * f), rtol=1e-12
  )


@pytest.mark.parametrize(('n', 'f', 'growth'), [(9, 3, 0.5), (11, 2, 1.5)])
def test_the_losses_of_the_proof_are_as_different_as_allowed(n, f, growth):
  # Slopes of three groups of workers, of which the first or the last f lie.
  g, h, e = 1.3, n - f, 0.8
  p2 = f * (n - 2 * f) / h**2
  u = growth**2 * f / (n - 2 * f)
  d0, d1 = g / math.sqrt(p2 * (1 - u)), growth**2 * f * e / (h * p2)
  b1 = e - f / h * d1
  assert b1 >= 0
  for w in np.linspace(-50, 50, 401):
    middle = b1 * w
    slopes = [middle + d0 + d1 * w, middle, middle - d0 + d1 * w]
    counts = [f, n - 2 * f, f]
    means = []
    for liar in (0, 2):
      honest = np.repeat(
        [s for i, s in enumerate(slopes) if i != liar],
        [c for i, c in enumerate(counts) if i != liar],
      )
      assert len(honest) == h
      spread = honest.var()
      allowed = g**2 + growth**2 * honest.mean() ** 2
      assert spread <= allowed * (1 + 1e-9)
      means.append(honest.mean())
    bound = theory.heterogeneity_lower_bound(
      n, f, heterogeneity=g, growth=growth
    )
    assert max(np.square(means)) >= bound * (1 - 1e-9)
    # Of a random w the worse of the two means is at least their mean.
    assert np.mean(np.square(means)) >= bound * (1 - 1e-9)


def test_past_the_breakdown_there_is_nothing_to_promise():
  for n, f, growth in [(9, 3, 1.0), (10, 3, 1.2), (5, 2, 0.8)]:
    given = {'heterogeneity': 0.0, 'growth': growth}
    assert theory.heterogeneity_lower_bound(n, f, **given) == math.inf
    kappa = theory.kappa_lower_bound(n, f)
    assert theory.heterogeneity_error(kappa, **given) == math.inf
    assert theory.robust_descent_bound(kappa, **GAP, **given) == math.inf
    assert momentum_bound(kappa, **given) == math.inf
  # Just before it, equal minima are reached by all.
  given = {'heterogeneity': 0.0, 'growth': 0.99}
  assert theory.heterogeneity_lower_bound(9, 3, **given) == 0
  assert theory.heterogeneity_error(1.0, **given) == 0


def momentum_bound(kappa, **changed):
  given = {
    'num_honest': 6,
    'learning_rate': 1e-3,
    'decay': 0.9,
    'variance': 4.0,
    'heterogeneity': 0.5,
    **GAP,
    **changed,
  }
  return theory.robust_momentum_bound(kappa, **given)


def by_search(kappa, h, rounds, rate, beta, smooth, gap, var, g, b):
  """The least X over s, by fixed-point iteration from 0."""
  lag = (beta * smooth * rate / (1 - beta)) ** 2

  def of(log_s):
    s = lag / (1 - rate * smooth - lag) + math.exp(log_s)
    n = var * (1 - 1 / h)
    n *= (1 - beta) / (1 + beta) + 1 / ((1 - beta**2) * rounds)
    start = 2 * b**2 * beta * smooth * gap / ((1 - beta) * rounds)
    x = 0.0
    for _ in range(300):
      spread = (math.sqrt(n) + math.sqrt(g**2 + start + b**2 * x)) ** 2
      x = 2 * gap / (rate * rounds) + (1 + s) * kappa * spread
      x += (1 + 1 / s) * var / h * (1 - beta + 1 / ((1 - beta) * rounds))
    return x

  return min(map(of, np.linspace(-8, 2, 301)))


@pytest.mark.parametrize('growth', [0.0, 0.4])
@pytest.mark.parametrize('decay', [0.0, 0.9])
def test_the_bound_of_momentum_solves_its_equation(decay, growth):
  want = by_search(0.5, 6, 500, 1e-2, decay, 2.0, 3.0, 4.0, 0.5, growth)
  got = momentum_bound(
    0.5, num_rounds=500, learning_rate=1e-2, decay=decay, growth=growth
  )
  np.testing.assert_allclose(got, want, rtol=2e-3)


def test_limits_of_the_bound_of_momentum():
  # Without attackers, noise and momentum: gradient descent.
  plain = {'variance': 0.0, 'decay': 0.0, 'learning_rate': 0.25}
  got = momentum_bound(0.0, **plain)
  np.testing.assert_allclose(got, 2 * 3.0 / (0.25 * 50), rtol=1e-6)
  # Slow enough, all that is left is that data differ.
  slow = {'num_rounds': 10**12, 'learning_rate': 1e-9, 'decay': 1 - 1e-6}
  for growth in (0.0, 0.7):
    want = theory.heterogeneity_error(0.8, heterogeneity=0.5, growth=growth)
    got = momentum_bound(0.8, **slow, growth=growth)
    assert want < got < 1.2 * want
  # Steps too long for the momentum.
  assert momentum_bound(0.5, learning_rate=0.5) == math.inf
  assert momentum_bound(math.inf) == math.inf


def test_privacy_costs_what_it_adds_to_the_variance():
  noise = theory.privacy_noise_variance(
    clip_norm=0.5, noise_multiplier=3.0, batch_size=10, num_coordinates=40
  )
  drawn = 0.5 * 3.0 / 10 * np.random.default_rng(0).normal(size=(20_000, 40))
  np.testing.assert_allclose((drawn**2).sum(axis=1).mean(), noise, rtol=0.02)
  assert momentum_bound(0.5, variance=4.0 + noise) > momentum_bound(0.5)


class Problem:
  """Quadratics of six honest workers, and three who attack."""

  def __init__(self, seed, d=4):
    rng = np.random.default_rng(seed)
    self.curvature = np.array([0.2, 0.5, 1.0, 2.0])
    self.targets = rng.normal(size=(6, d))
    self.start = 3 * rng.normal(size=d)
    mean = self.targets.mean(axis=0)
    # The minimum of F, with the same curvature for all.
    self.gap = 0.5 * self.curvature @ (self.start - mean) ** 2
    slopes = self.curvature * (self.targets - mean)
    self.heterogeneity = math.sqrt((slopes**2).sum(axis=1).mean())

  def gradients(self, w):
    return self.curvature * (w - self.targets)

  def train(self, rounds, rate, decay, deviation, seed, f=3):
    """Mean of |grad F|^2, attackers at the edge of what is not trimmed."""
    rng = np.random.default_rng(seed)
    w, m, total = self.start, None, 0.0
    for _ in range(rounds):
      g = self.gradients(w)
      total += (g.mean(axis=0) ** 2).sum()
      g = g + deviation * rng.normal(size=g.shape)
      m = g if m is None else decay * m + (1 - decay) * g
      # Against the gradient, as far as the trimmed mean lets them.
      side = np.sign(self.gradients(w).mean(axis=0))
      liars = np.repeat([-1e9 * side], f, axis=0)
      w = w - rate * trimmed_mean(np.concatenate([m, liars]), f)
    return total / rounds


@pytest.mark.parametrize('seed', range(4))
def test_training_stays_below_the_bound_of_descent(seed):
  problem = Problem(seed)
  bound = theory.robust_descent_bound(
    1.0,
    num_rounds=100,
    smoothness=2.0,
    gap=problem.gap,
    heterogeneity=problem.heterogeneity,
  )
  got = problem.train(100, 0.5, 0.0, 0.0, seed)
  assert got <= bound
  # The attack is one that matters.
  assert got > 0.02 * theory.heterogeneity_error(
    1.0, heterogeneity=problem.heterogeneity
  )


@pytest.mark.parametrize('decay', [0.0, 0.9])
@pytest.mark.parametrize('seed', range(3))
def test_training_stays_below_the_bound_of_momentum(seed, decay):
  problem, rate = Problem(seed), 0.02
  bound = theory.robust_momentum_bound(
    1.0,
    num_honest=6,
    num_rounds=1000,
    learning_rate=rate,
    decay=decay,
    smoothness=2.0,
    gap=problem.gap,
    variance=4 * 0.5**2,
    heterogeneity=problem.heterogeneity,
  )
  got = np.mean([problem.train(1000, rate, decay, 0.5, s) for s in range(3)])
  assert got <= bound < math.inf


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: momentum_bound(-1.0), 'kappa'),
    (lambda: momentum_bound(1.0, decay=1.0), 'decay < 1'),
    (lambda: momentum_bound(1.0, heterogeneity=-1.0), 'heterogeneity'),
    (lambda: momentum_bound(1.0, growth=math.nan), 'growth'),
    (
      lambda: theory.heterogeneity_lower_bound(4, 2, heterogeneity=1.0),
      'majority|2',
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
