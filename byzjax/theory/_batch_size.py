"""Convergence bounds of ByzSGDm and ByzSGDnm, and the best batch size."""

import math

from byzjax._src import checks


def byz_sgdm_bound(
  batch_size: float,
  *,
  num_workers: int,
  num_byzantine: int,
  num_gradients: float,
  smoothness: float = 1.0,
  gap: float = 1.0,
  variance: float = 1.0,
  constant: float = 1.0,
) -> float:
  """The proved bound of ByzSGDm for a fixed number of gradients.

  `(1/T) sum_t E |grad F(w_t)|^2 <= A1 + A2 / sqrt(B) + A3 B`, where `T = C / (B
  m (1 - delta))`, `delta = f / m`, and with `a = (1 + c delta m) (1 - delta)`::

      A1 = 16 sqrt(10 L F0 a s / C) + 20 a s / C
      A2 = 16 sqrt(3 c delta a s^2 / C)
      A3 = 32 L F0 m (1 - delta) / C

  It is strictly convex in B: larger batches mean fewer steps, and smaller
  batches leave more noise in which Byzantine messages can hide.

  Args:
    batch_size: B > 0, gradients per worker and step.
    num_workers: m, a Python int.
    num_byzantine: f, a Python int with `0 <= f < m/2`.
    num_gradients: C > 0, total number of gradients of all honest workers.
    smoothness: L > 0.
    gap: F0 >= F(w_0) - min F, positive.
    variance: s = sigma^2 > 0, of the gradient on one example.
    constant: c >= 0, with `E |Agg - mean|^2 <= c delta rho^2`, where rho^2 is
      the mean squared distance between two honest messages. For an (f,
      kappa)-robust rule `c = kappa / (2 delta) (1 - 1 / ((1 - delta) m))`.

  Returns:
    The bound, in the units of a squared gradient.

  Raises:
    ValueError: if an argument is out of its range.

  References:
    Yang, Shi, Li, 2023, arXiv:2305.13856.

  Example:
    >>> import byzjax
    >>> bounds = [byzjax.theory.byz_sgdm_bound(
    ...   b, num_workers=8, num_byzantine=3, num_gradients=1e6)
    ...   for b in (1, 19, 1000)]
    >>> bounds[1] < bounds[0] < bounds[2]
    True
  """
  checks.check_range(
    'byz_sgdm_bound', 'batch_size', batch_size, 0, exclusive=True
  )
  a1, a2, a3 = _terms(
    'byz_sgdm_bound',
    num_workers,
    num_byzantine,
    num_gradients,
    smoothness,
    gap,
    variance,
    constant,
  )
  return a1 + a2 / math.sqrt(batch_size) + a3 * batch_size


def byz_sgdnm_bound(
  batch_size: float,
  *,
  num_workers: int,
  num_byzantine: int,
  num_gradients: float,
  smoothness: float = 1.0,
  gap: float = 1.0,
  variance: float = 1.0,
  constant: float = 1.0,
) -> float:
  """The proved bound of ByzSGDnm for a fixed number of gradients.

  With its best step size and momentum, `K = sqrt(2 c m delta (1 - delta)) + 1`
  and `h = m (1 - delta)`, `(1/T) sum_t E |grad F(w_t)|` is at most::

      6 sqrt(K) (5 L F0 s / C)^(1/4) + 12 sqrt(5 L F0 h B / C)
        + 27 K^(3/2) s / (4 sqrt(5 C B h L F0))

  These are the published constants. Inserting the published step size and
  momentum into the inequality that they optimise gives `12 sqrt(K)` in the
  first term, `81 K^2` in the third, and `27 K^2 s / (80 h L F0)` as the best
  batch size.

  Args:
    batch_size: B > 0, gradients per worker and step.
    num_workers: m, a Python int.
    num_byzantine: f, a Python int with `0 <= f < m/2`.
    num_gradients: C > 0, total number of gradients of all honest workers.
    smoothness: L > 0.
    gap: F0 >= F(w_0) - min F, positive.
    variance: s = sigma^2 > 0, of the gradient on one example.
    constant: c >= 0, as in `byz_sgdm_bound`.

  Returns:
    The bound, in the units of a gradient (not squared).

  Raises:
    ValueError: if an argument is out of its range.

  References:
    Yang, Shi, Li, 2023, arXiv:2305.13856.

  Example:
    >>> import byzjax
    >>> bound = byzjax.theory.byz_sgdnm_bound(
    ...   1.0, num_workers=8, num_byzantine=3, num_gradients=1e6)
    >>> print(f'{bound:.3f}')
    0.553
  """
  name = 'byz_sgdnm_bound'
  checks.check_range(name, 'batch_size', batch_size, 0, exclusive=True)
  _check(
    name,
    num_workers,
    num_byzantine,
    num_gradients,
    smoothness,
    gap,
    variance,
    constant,
  )
  k = _spread(num_workers, num_byzantine, constant)
  honest = num_workers - num_byzantine
  curvature = smoothness * gap
  return (
    6 * math.sqrt(k) * (5 * curvature * variance / num_gradients) ** 0.25
    + 12 * math.sqrt(5 * curvature * honest * batch_size / num_gradients)
    + 27
    * k**1.5
    * variance
    / (4 * math.sqrt(5 * num_gradients * batch_size * honest * curvature))
  )


def optimal_batch_size(
  *,
  num_workers: int,
  num_byzantine: int,
  num_gradients: float,
  smoothness: float = 1.0,
  gap: float = 1.0,
  variance: float = 1.0,
  constant: float = 1.0,
  normalized: bool = False,
) -> float:
  """The batch size that minimises the bound of ByzSGDm (or ByzSGDnm).

  `B* = (A2 / (2 A3))^(2/3)` with the A2, A3 of `byz_sgdm_bound`: it grows with
  the share of Byzantine workers and with `C^(1/3)`, and is 0 without Byzantine
  workers. The best integer is one of its two neighbours. For ByzSGDnm
  (`normalized=True`) it is `9 K^(3/2) s / (80 m (1 - delta) L F0)`, for any C.

  Args:
    num_workers: m, a Python int.
    num_byzantine: f, a Python int with `0 <= f < m/2`.
    num_gradients: C > 0, total number of gradients of all honest workers.
    smoothness: L > 0.
    gap: F0 >= F(w_0) - min F, positive.
    variance: s = sigma^2 > 0, of the gradient on one example.
    constant: c >= 0, as in `byz_sgdm_bound`.
    normalized: whether steps are normalised, as in `byz_sgdnm`.

  Returns:
    B*, not rounded.

  Raises:
    ValueError: if an argument is out of its range.

  References:
    Yang, Shi, Li, 2023, arXiv:2305.13856.

  Example:
    >>> import byzjax
    >>> for f in (1, 2, 3):
    ...   best = byzjax.theory.optimal_batch_size(
    ...     num_workers=8, num_byzantine=f, num_gradients=1e6)
    ...   print(f'{best:.3f}')
    9.424
    14.309
    19.158
  """
  name = 'optimal_batch_size'
  given = (
    name,
    num_workers,
    num_byzantine,
    num_gradients,
    smoothness,
    gap,
    variance,
    constant,
  )
  checks.check_flag('optimal_batch_size', 'normalized', normalized)
  if not normalized:
    _, a2, a3 = _terms(*given)
    return (a2 / (2 * a3)) ** (2 / 3)
  _check(*given)
  k = _spread(num_workers, num_byzantine, constant)
  honest = num_workers - num_byzantine
  return 9 * k**1.5 * variance / (80 * honest * smoothness * gap)


def _check(name, m, f, gradients, smoothness, gap, variance, constant):
  checks.check_count(name, 'num_workers', m, 1)
  checks.check_count(name, 'num_byzantine', f)
  checks.check_majority(name, m, f)
  for argument, value in [
    ('num_gradients', gradients),
    ('smoothness', smoothness),
    ('gap', gap),
    ('variance', variance),
  ]:
    checks.check_range(name, argument, value, 0, exclusive=True)
  checks.check_range(name, 'constant', constant, 0)


def _terms(name, m, f, gradients, smoothness, gap, variance, constant):
  """A1, A2 and A3."""
  _check(name, m, f, gradients, smoothness, gap, variance, constant)
  delta = f / m
  a = (1 + constant * f) * (1 - delta)
  noise = a * variance / gradients
  return (
    16 * math.sqrt(10 * smoothness * gap * noise) + 20 * noise,
    16 * math.sqrt(3 * constant * delta * noise * variance),
    32 * smoothness * gap * (m - f) / gradients,
  )


def _spread(m, f, constant):
  """K: how much farther attackers pull than noise does."""
  return math.sqrt(2 * constant * f * (1 - f / m)) + 1
