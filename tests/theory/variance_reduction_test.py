"""Steps and bounds of Byz-EF21 and Byz-VR-MARINA, against training in NumPy."""

import math

import numpy as np
import pytest

from byzjax import theory

D, HONEST, LIARS = 6, 6, 2
KAPPA = theory.kappa_bound('trimmed_mean', HONEST + LIARS, LIARS)
MARINA = {'num_honest': HONEST, 'batch_size': 2, 'probability': 0.25}


def trimmed_mean(x):
  return np.sort(x, axis=0)[LIARS:-LIARS].mean(axis=0)


class Problem:
  """Least squares of six honest workers with ten examples each."""

  def __init__(self, seed, spread):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, D))
    noise = rng.normal(size=(HONEST, 10))
    # One curvature for all, so that data differ by G alone.
    self.x = np.broadcast_to(x, (HONEST, 10, D))
    self.y = x @ rng.normal(size=D) + spread * noise + rng.normal(size=10)
    self.hessian = x.T @ x / 10
    self.smoothness = np.linalg.eigvalsh(self.hessian)[-1]
    squares = x[:, :, None] * x[:, None, :]
    mean_square = (squares @ squares).mean(axis=0)
    self.example_smoothness = math.sqrt(np.linalg.eigvalsh(mean_square)[-1])
    self.start = rng.normal(size=D) * 3
    best = np.linalg.solve(
      self.hessian, np.einsum('njd,nj->d', self.x, self.y) / (10 * HONEST)
    )
    off = self.start - best
    self.gap = 0.5 * off @ self.hessian @ off
    slopes = self.gradients(self.start)
    self.heterogeneity = math.sqrt(
      ((slopes - slopes.mean(axis=0)) ** 2).sum(axis=1).mean()
    )

  def gradients(self, w, rows=None):
    """`[h, D]`, on the rows `[h, b]` of every worker, or all."""
    x, y = self.x, self.y
    if rows is not None:
      x = np.take_along_axis(x, rows[:, :, None], axis=1)
      y = np.take_along_axis(y, rows, axis=1)
    return np.einsum('njd,nj->nd', x, x @ w - y) / x.shape[1]

  def given(self):
    return {
      'smoothness': self.smoothness,
      'gap': self.gap,
      'heterogeneity': self.heterogeneity,
    }


def attacked(sent, along):
  """With liars who pull against the gradient as far as trimming lets them."""
  return np.concatenate([sent, np.repeat([-1e9 * np.sign(along)], LIARS, 0)])


def train_ef21(problem, rounds, rate, kept):
  w, g, total = problem.start, np.zeros((HONEST, D)), 0.0
  for _ in range(rounds):
    x = problem.gradients(w)
    total += (x.mean(axis=0) ** 2).sum()
    c = x - g
    small = np.argsort(-np.abs(c), axis=1)[:, kept:]
    np.put_along_axis(c, small, 0, axis=1)
    g = g + c
    w = w - rate * trimmed_mean(attacked(g, x.mean(axis=0)))
  return total / rounds


def train_marina(problem, rounds, rate, seed):
  rng = np.random.default_rng(seed)
  w, g, total, before = problem.start, np.zeros(D), 0.0, None
  for t in range(rounds):
    along = problem.gradients(w).mean(axis=0)
    total += (along**2).sum()
    heads = t == 0 or rng.random() < MARINA['probability']
    if heads:
      g = trimmed_mean(attacked(problem.gradients(w), along))
    else:
      rows = rng.integers(10, size=(HONEST, MARINA['batch_size']))
      moved = problem.gradients(w, rows) - problem.gradients(before, rows)
      g = g + trimmed_mean(attacked(moved, along))
    before, w = w, w - rate * g
  return total / rounds


@pytest.mark.parametrize('spread', [0.0, 1.0])
@pytest.mark.parametrize('kept', [1, 3, 6])
def test_ef21_stays_below_its_bound(kept, spread):
  problem, contraction = Problem(kept, spread), kept / D
  rate = theory.byz_ef21_step_size(
    KAPPA, contraction=contraction, smoothness=problem.smoothness
  )
  for rounds in (20, 600):
    bound = theory.byz_ef21_bound(
      KAPPA,
      contraction=contraction,
      num_rounds=rounds,
      learning_rate=rate,
      **problem.given(),
    )
    got = train_ef21(problem, rounds, rate, kept)
    assert 0 < got <= bound < math.inf


@pytest.mark.parametrize('spread', [0.0, 1.0])
@pytest.mark.parametrize('seed', range(2))
def test_marina_stays_below_its_bound(seed, spread):
  problem = Problem(seed, spread)
  given = {**MARINA, 'example_smoothness': problem.example_smoothness}
  rate = theory.byz_vr_marina_step_size(
    KAPPA, **given, smoothness=problem.smoothness
  )
  for rounds in (20, 600):
    bound = theory.byz_vr_marina_bound(
      KAPPA, **given, num_rounds=rounds, learning_rate=rate, **problem.given()
    )
    got = np.mean([train_marina(problem, rounds, rate, s) for s in range(3)])
    assert 0 < got <= bound < math.inf


def ef21(kappa=0.5, **changed):
  given = {
    'contraction': 0.25,
    'num_rounds': 100,
    'learning_rate': 0.01,
    'smoothness': 2.0,
    'gap': 3.0,
    'heterogeneity': 0.7,
    **changed,
  }
  return theory.byz_ef21_bound(kappa, **given)


def marina(kappa=0.5, **changed):
  given = {
    **MARINA,
    'num_rounds': 100,
    'learning_rate': 0.01,
    'smoothness': 2.0,
    'gap': 3.0,
    'heterogeneity': 0.7,
    **changed,
  }
  return theory.byz_vr_marina_bound(kappa, **given)


def test_formulas():
  r = math.sqrt(0.75)
  m = 2 * (1 + math.sqrt(0.5)) ** 2
  a = m * (r / (1 - r)) ** 2
  step = theory.byz_ef21_step_size(0.5, contraction=0.25, smoothness=2.0)
  np.testing.assert_allclose(step, 1 / (2 + 2 * math.sqrt(a)), rtol=1e-12)
  q = 0.49 + 2 * (1 + 0.04) * 2 * 3
  want = 2 * 3 / (0.01 * 100) + m * 0.75 * q / ((1 - r) * 100) + 0.49
  np.testing.assert_allclose(
    ef21(growth=0.2), want / (1 - 2 * 0.5 * 0.04), rtol=1e-12
  )
  v = 3.0 + 4.0 * 2.25 / 2
  a = 2 * 0.75 / 0.25 * (1.125 * v / 6 + 9 * 0.5 * (v + 1))
  step = theory.byz_vr_marina_step_size(
    0.5,
    **MARINA,
    smoothness=2.0,
    example_smoothness=3.0,
    variance_factor=3.0,
  )
  np.testing.assert_allclose(step, 1 / (2 + 2 * math.sqrt(a)), rtol=1e-12)
  want = 2 * 3 / (0.01 * 100) + 0.49 * (1 + 1 / 25)
  np.testing.assert_allclose(marina(), want, rtol=1e-12)


def test_where_the_proofs_end_the_bounds_are_infinite():
  assert ef21(growth=1.0) == math.inf  # 2 kappa B^2 = 1.
  assert ef21(math.inf) == math.inf and marina(math.inf) == math.inf
  step = theory.byz_ef21_step_size(0.5, contraction=0.25, smoothness=2.0)
  assert ef21(learning_rate=step) < math.inf
  assert ef21(learning_rate=0.5) == math.inf
  step = theory.byz_vr_marina_step_size(0.5, **MARINA, smoothness=2.0)
  assert marina(learning_rate=step) < math.inf
  assert marina(learning_rate=0.5) == math.inf
  # Nothing to follow, and nothing to compress: gradient descent.
  assert ef21(contraction=1.0, learning_rate=0.5) < math.inf
  assert marina(probability=1.0, learning_rate=0.5) < math.inf
  assert theory.byz_ef21_step_size(1.0, contraction=1.0, smoothness=2.0) == 0.5


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: ef21(contraction=0.0), 'contraction'),
    (lambda: ef21(contraction=1.5), 'contraction'),
    (lambda: ef21(learning_rate=0.0), 'learning_rate'),
    (lambda: marina(probability=0.0), 'probability'),
    (lambda: marina(variance_factor=-1.0), 'variance_factor'),
    (lambda: marina(-1.0), 'kappa'),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
