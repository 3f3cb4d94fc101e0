"""Step sizes and bounds of variance reduction and of error feedback.

F is the mean of the losses of h honest workers, the rule is (f, kappa)-robust
(see `kappa_bound`), and the heterogeneity is (G, B) as in `_convergence`. All
proofs start from g L <= 1 and descent along R, the aggregate:

  |grad F|^2 + (1 - gL) |R|^2 <= 2 (F(w) - F(w - gR)) / g + |R - grad F|^2
"""

import math

from byzjax._src import checks
from byzjax.theory import _convergence


# Proof. q_t, the mean of |g_i - grad F_i(w_t)|^2, obeys q_{t+1} <= r q_t +
# r^2 / (1 - r) L^2 g^2 |R|^2 with r = sqrt(1 - a), by Young with 1/r - 1. The
# spread of the g_i is at most (sqrt(q) + sqrt(G^2 + B^2 |grad F|^2))^2, so that
# |R - grad F|^2 <= M q + 2 kappa (G^2 + B^2 |grad F|^2), M = 2 (1 +
# sqrt(kappa))^2. Sum over T: the |R|^2 cancel if M (r / (1 - r))^2 L^2 g^2 <= 1
# - gL. From g_i = 0 and C, q_0 <= (1 - a) (G^2 + (1 + B^2) 2 L F0).
def byz_ef21_step_size(
  kappa: float, *, contraction: float, smoothness: float
) -> float:
  r"""The largest step size with a simple `byz_ef21_bound`.

  .. math::
    \gamma = \frac{1}{L (1 + \sqrt{A})}, \qquad
    A = 2 (1 + \sqrt\kappa)^2 \Big(\frac{r}{1 - r}\Big)^2, \quad
    r = \sqrt{1 - \alpha}

  Args:
    kappa: >= 0, of the rule.
    contraction: alpha in (0, 1], `E |C(x) - x|^2 <= (1 - alpha) |x|^2`; k / d
      for `top_k_codec(num_kept=k)`.
    smoothness: L > 0, of every worker's loss.

  Returns:
    gamma, a float; 1 / L without compression, 0 for an infinite kappa.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, 2024, arXiv:2310.09804, for
    the method; the proof of the constants is in the source code.

  Example:
    >>> import byzjax
    >>> print(byzjax.theory.byz_ef21_step_size(
    ...   0.0, contraction=0.75, smoothness=1.0))
    0.414...
  """
  name = 'byz_ef21_step_size'
  checks.check_range(name, 'smoothness', smoothness, 0, exclusive=True)
  return 1 / (smoothness * (1 + math.sqrt(_ef21(name, kappa, contraction))))


def byz_ef21_bound(
  kappa: float,
  *,
  contraction: float,
  num_rounds: int,
  learning_rate: float,
  smoothness: float,
  gap: float,
  heterogeneity: float,
  growth: float = 0.0,
) -> float:
  r"""The proved bound of `byz_ef21` with exact gradients.

  .. math::
    \frac1T \sum_{t < T} E |\nabla F(w_t)|^2 \le
    \frac{1}{1 - 2 \kappa B^2} \Big(\frac{2 F_0}{\gamma T}
      + \frac{2 (1 + \sqrt\kappa)^2 (1 - \alpha) q}{(1 - \sqrt{1 - \alpha}) T}
      + 2 \kappa G^2\Big)

  with :math:`q = G^2 + 2 (1 + B^2) L F_0`. Compression needs more rounds but
  leaves no error: as T grows, the limit is twice the bound without compression.
  The bound is inf if `2 kappa B^2 >= 1` (the heterogeneity is too large for
  this proof), or if :math:`\gamma L + A \gamma^2 L^2 > 1` with the A of
  `byz_ef21_step_size` (the differences may grow faster than they are sent).

  Args:
    kappa: >= 0, of the rule.
    contraction: alpha in (0, 1], of the codec.
    num_rounds: T >= 1, a Python int.
    learning_rate: gamma > 0, constant over rounds.
    smoothness: L > 0, of every worker's loss.
    gap: F0 >= F(w_0) - min F, non-negative.
    heterogeneity: G >= 0, not squared.
    growth: B >= 0, not squared.

  Returns:
    The bound, in the units of a squared gradient.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, 2024, arXiv:2310.09804, for
    the method; the proof of this bound is in the source code.

  Example:
    >>> import byzjax
    >>> byzjax.theory.byz_ef21_bound(
    ...   0.0, contraction=1.0, num_rounds=100, learning_rate=1.0,
    ...   smoothness=1.0, gap=50.0, heterogeneity=2.0)
    1.0
  """
  name = 'byz_ef21_bound'
  a = _ef21(name, kappa, contraction)
  _check_run(
    name, num_rounds, learning_rate, smoothness, gap, heterogeneity, growth
  )
  left = 1 - 2 * kappa * growth**2 if kappa else 1.0
  if left <= 0 or kappa == math.inf or _too_long(learning_rate * smoothness, a):
    return math.inf
  start = heterogeneity**2 + 2 * (1 + growth**2) * smoothness * gap
  start *= 2 * (1 + math.sqrt(kappa)) ** 2 * (1 - contraction)
  start /= 1 - math.sqrt(1 - contraction)
  total = 2 * gap / learning_rate + start
  return (total / num_rounds + 2 * kappa * heterogeneity**2) / left


# Proof. With e_t = E |g_t - grad F(w_t)|^2 and gradients that move by D_i,
# heads leave kappa G^2, and tails g_t - grad F + (ubar - D) + (rule(u) - ubar).
# The errors of the u_i have the mean 0 and a variance of V |w' - w|^2 at most,
# V = o L^2 + (1 + o) l^2 / b; the D_i spread by L^2 |w' - w|^2. By Young with
# p/2, e_{t+1} <= (1 - p/2) e_t + p kappa G^2 + A' g^2 |R|^2, where
# A' = (1 - p) ((1 + p/2) V/h + (1 + 2/p) kappa (V + L^2)). Add F + (g/p) e over
# T: the |R|^2 cancel if 2 A' / p g^2 <= 1 - gL. In the first round e_0 <= kappa
# G^2.
def byz_vr_marina_step_size(
  kappa: float,
  *,
  num_honest: int,
  batch_size: int,
  probability: float,
  smoothness: float,
  example_smoothness: float | None = None,
  variance_factor: float = 0.0,
) -> float:
  r"""The largest step size with a simple `byz_vr_marina_bound`.

  .. math::
    \gamma = \frac{1}{L (1 + \sqrt{A})}, \qquad
    A = \frac{2 (1 - p)}{p} \Big(\Big(1 + \frac p2\Big) \frac vh
      + \Big(1 + \frac2p\Big) \kappa (v + 1)\Big), \\
    v = \omega + (1 + \omega) \frac{\ell^2}{b L^2}

  Args:
    kappa: >= 0, of the rule.
    num_honest: h >= 1, a Python int.
    batch_size: b >= 1, a Python int.
    probability: p in (0, 1], of full gradients.
    smoothness: L > 0, of every worker's loss.
    example_smoothness: l > 0, the root mean square of the smoothness over the
      examples of a worker, at least L; None for L.
    variance_factor: omega >= 0 of the codec, `E |Q(x) - x|^2 <= omega |x|^2`; 0
      without a codec.

  Returns:
    gamma, a float; 1 / L for p = 1, 0 for an infinite kappa and p < 1.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Gorbunov, Horvath, Richtarik, Gidel, 2023, arXiv:2206.00529, for the method;
    the proof of the constants is in the source code.

  Example:
    >>> import byzjax
    >>> for p in (0.1, 1.0):
    ...   step = byzjax.theory.byz_vr_marina_step_size(
    ...     0.5, num_honest=8, batch_size=16, probability=p, smoothness=1.0)
    ...   print(round(step, 3))
    0.066
    1.0
  """
  name = 'byz_vr_marina_step_size'
  a = _marina(
    name,
    kappa,
    num_honest,
    batch_size,
    probability,
    smoothness,
    example_smoothness,
    variance_factor,
  )
  return 1 / (smoothness * (1 + math.sqrt(a)))


def byz_vr_marina_bound(
  kappa: float,
  *,
  num_honest: int,
  batch_size: int,
  probability: float,
  num_rounds: int,
  learning_rate: float,
  smoothness: float,
  gap: float,
  heterogeneity: float,
  example_smoothness: float | None = None,
  variance_factor: float = 0.0,
) -> float:
  r"""The proved bound of `byz_vr_marina` with `optax.sgd`.

  .. math::
    \frac1T \sum_{t < T} E |\nabla F(w_t)|^2 \le \frac{2 F_0}{\gamma T}
      + 2 \kappa G^2 \Big(1 + \frac{1}{p T}\Big)

  The noise of single examples does not appear: with equal data the bound goes
  to zero. It holds for heterogeneity with B = 0. It is inf if :math:`\gamma L +
  A \gamma^2 L^2 > 1` with the A of `byz_vr_marina_step_size` (the gradient
  differences are then too large).

  Args:
    kappa: >= 0, of the rule.
    num_honest: h >= 1, a Python int.
    batch_size: b >= 1, a Python int.
    probability: p in (0, 1], of full gradients.
    num_rounds: T >= 1, a Python int.
    learning_rate: gamma > 0, constant over rounds.
    smoothness: L > 0, of every worker's loss.
    gap: F0 >= F(w_0) - min F, non-negative.
    heterogeneity: G >= 0, not squared.
    example_smoothness: l > 0, as in `byz_vr_marina_step_size`.
    variance_factor: omega >= 0, of the codec.

  Returns:
    The bound, in the units of a squared gradient.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Gorbunov, Horvath, Richtarik, Gidel, 2023, arXiv:2206.00529, for the method;
    the proof of this bound is in the source code.

  Example:
    >>> import byzjax
    >>> byzjax.theory.byz_vr_marina_bound(
    ...   0.5, num_honest=8, batch_size=16, probability=0.5, num_rounds=1000,
    ...   learning_rate=0.1, smoothness=1.0, gap=50.0, heterogeneity=0.0)
    1.0
  """
  name = 'byz_vr_marina_bound'
  a = _marina(
    name,
    kappa,
    num_honest,
    batch_size,
    probability,
    smoothness,
    example_smoothness,
    variance_factor,
  )
  _check_run(name, num_rounds, learning_rate, smoothness, gap, heterogeneity)
  if kappa == math.inf or _too_long(learning_rate * smoothness, a):
    return math.inf
  stays = 2 * kappa * heterogeneity**2 * (1 + 1 / (probability * num_rounds))
  return 2 * gap / (learning_rate * num_rounds) + stays


def _ef21(name, kappa, contraction):
  """A of `byz_ef21_step_size`."""
  checks.check_range(name, 'kappa', kappa, 0)
  checks.check_range(name, 'contraction', contraction, 0, 1, exclusive=True)
  r = math.sqrt(1 - contraction)
  if r == 0:
    return 0.0
  return 2 * ((1 + math.sqrt(kappa)) * r / (1 - r)) ** 2


def _marina(name, kappa, h, b, p, smoothness, example_smoothness, omega):
  """A of `byz_vr_marina_step_size`."""
  checks.check_range(name, 'kappa', kappa, 0)
  checks.check_count(name, 'num_honest', h, 1)
  checks.check_count(name, 'batch_size', b, 1)
  checks.check_range(name, 'probability', p, 0, 1, exclusive=True)
  checks.check_range(name, 'smoothness', smoothness, 0, exclusive=True)
  checks.check_range(name, 'variance_factor', omega, 0)
  ratio = 1.0
  if example_smoothness is not None:
    checks.check_range(
      name, 'example_smoothness', example_smoothness, 0, exclusive=True
    )
    ratio = example_smoothness / smoothness
  if p == 1:
    return 0.0
  v = omega + (1 + omega) * ratio**2 / b
  inner = (1 + p / 2) * v / h
  if kappa:
    inner += (1 + 2 / p) * kappa * (v + 1)
  return 2 * (1 - p) / p * inner


def _too_long(step, a):
  """Whether a step, in units of 1 / L, is longer than the proofs stand."""
  # The largest one is right in spite of rounding.
  return step + a * step**2 > 1 + 1e-12


def _check_run(
  name, num_rounds, learning_rate, smoothness, gap, heterogeneity, growth=0.0
):
  _convergence.check_run(name, num_rounds, smoothness, gap)
  _convergence.check_data(name, heterogeneity, growth)
  checks.check_range(name, 'learning_rate', learning_rate, 0, exclusive=True)
