"""Convergence bounds of robust training with heterogeneous data.

Throughout, F is the mean of the losses F_i of the `h = n - f` honest workers,
and their heterogeneity is (G, B):

  (1/h) sum_i |grad F_i(w) - grad F(w)|^2 <= G^2 + B^2 |grad F(w)|^2

The rule is (f, kappa)-robust (see `kappa_bound`), so its error is at most kappa
times the mean squared distance of honest messages from their mean.
"""

import math

from byzjax._src import checks


def heterogeneity_error(
  kappa: float, *, heterogeneity: float, growth: float = 0.0
) -> float:
  r"""The squared gradient norm at which robust training can stall.

  .. math::
    \frac{\kappa G^2}{1 - \kappa B^2} \quad \text{if } \kappa B^2 < 1,
    \text{ else } \infty

  With exact gradients, the honest messages have the mean squared deviation `G^2
  + B^2 |grad F|^2` at most, and the error of the rule is at most kappa times
  that. While the error is less than `|grad F|^2`, a step decreases the loss;
  the result is where both are equal. With kappa B^2 >= 1 the error may always
  be larger: an attack can hold the model at any point, and the result is inf.
  `robust_descent_bound` includes the number of rounds. With the kappa of
  `kappa_lower_bound` the result equals `heterogeneity_lower_bound`, so no rule
  can do better.

  Args:
    kappa: >= 0, of the rule, such as `kappa_bound('trimmed_mean', n, f)`.
    heterogeneity: G >= 0, not squared.
    growth: B >= 0, not squared.

  Returns:
    The bound on `|grad F|^2`, a float; 0 if G is 0 and kappa B^2 < 1.

  Raises:
    ValueError: if an argument is negative or not a number.

  References:
    Allouah, Guerraoui, Gupta, Pinot, Rizk, 2023, arXiv:2309.13591.

  Example:
    >>> import byzjax
    >>> for growth in (0.0, 0.5, 1.0):
    ...   byzjax.theory.heterogeneity_error(
    ...     1.0, heterogeneity=2.0, growth=growth)
    4.0
    5.333333333333333
    inf
  """
  name = 'heterogeneity_error'
  checks.check_range(name, 'kappa', kappa, 0)
  check_data(name, heterogeneity, growth)
  if kappa == 0:
    return 0.0
  left = 1 - kappa * growth**2
  return kappa * heterogeneity**2 / left if left > 0 else math.inf


# Proof. Workers 0..f-1 have the slope d(w) more than the others, the last f the
# slope -d(-w), with d(w) = d0 + d1 w; b(w) = b1 w is the slope of the n - 2f in
# the middle. Nobody can tell whether the first f or the last f lie. If the last
# do, the mean of the honest is F'(w) = (f/h) d0 + e w with e = b1 + (f/h) d1,
# and if the first do it is -(f/h) d0 + e w: one of the two is (f/h) |d0| at
# least, wherever w is, and so is the root mean square of a random w. Honest
# losses differ by P^2 d(w)^2, P^2 = f (n-2f) / h^2. With d1 = B^2 f e / (h P^2)
# P^2 d(w)^2 - B^2 F'(w)^2 = d0^2 (P^2 - B^2 f^2/h^2) - w^2 B^2 e^2 (1 - u), for
# u = B^2 f / (n-2f). If u < 1 it is at most G^2 for d0^2 = G^2 / (P^2 (1 - u)),
# whence (f/h)^2 d0^2 = f G^2 / ((n-2f) (1 - u)). If u >= 1 take b = 0 and d1 =
# (h/f) e: then P^2 d^2 = (1/u) B^2 F'^2, whatever d0 is. All losses are convex
# quadratics, for b1 = e (1 - u) >= 0.
def heterogeneity_lower_bound(
  num_workers: int,
  num_byzantine: int,
  *,
  heterogeneity: float,
  growth: float = 0.0,
) -> float:
  r"""A lower bound on the squared gradient norm that any method can guarantee.

  .. math::
    \frac{f G^2}{n - (2 + B^2) f} \quad \text{if } (2 + B^2) f < n,
    \text{ else } \infty

  For every method, deterministic or random, with any number of rounds, there
  are convex quadratic losses on which Byzantine workers that only behave like
  honest workers with other data make `E |grad F|^2` at least this large. The
  proof is in the source code. The bound equals `heterogeneity_error` with the
  kappa of `kappa_lower_bound`, which the trimmed mean attains, so neither can
  be improved. With B = 0, f can be any minority; with B = 1, f must be less
  than n / 3.

  Args:
    num_workers: n, a Python int.
    num_byzantine: f, a Python int with `0 <= f < n/2`.
    heterogeneity: G >= 0, not squared.
    growth: B >= 0, not squared.

  Returns:
    The bound on `E |grad F|^2`, as a float.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Allouah, Guerraoui, Gupta, Pinot, Rizk, 2023, arXiv:2309.13591.

  Example:
    >>> import byzjax
    >>> byzjax.theory.heterogeneity_lower_bound(9, 3, heterogeneity=2.0)
    4.0
    >>> byzjax.theory.heterogeneity_lower_bound(
    ...   9, 3, heterogeneity=0.0, growth=1.0)
    inf
  """
  name = 'heterogeneity_lower_bound'
  n, f = num_workers, num_byzantine
  checks.check_count(name, 'num_workers', n, 1)
  checks.check_count(name, 'num_byzantine', f)
  checks.check_majority(name, n, f)
  check_data(name, heterogeneity, growth)
  if f == 0:
    return 0.0
  left = n - (2 + growth**2) * f
  return f * heterogeneity**2 / left if left > 0 else math.inf


# Proof. With the step 1/L, F(w - R/L) <= F(w) - |grad F|^2 / (2L) + |R - grad
# F|^2 / (2L), and |R - grad F|^2 <= kappa (G^2 + B^2 |grad F|^2). Sum over T.
def robust_descent_bound(
  kappa: float,
  *,
  num_rounds: int,
  smoothness: float,
  gap: float,
  heterogeneity: float,
  growth: float = 0.0,
) -> float:
  r"""The proved bound of gradient descent with a robust rule.

  .. math::
    \frac{1}{T} \sum_{t < T} |\nabla F(w_t)|^2
      \le \frac{2 L F_0 / T + \kappa G^2}{1 - \kappa B^2}

  For `w <- w - rule(grad F_1(w), ..., grad F_n(w)) / L` with exact gradients.
  If `kappa B^2 >= 1` the bound is inf: the rule cannot distinguish the
  heterogeneity of the data from an attack.

  Args:
    kappa: >= 0, of the rule.
    num_rounds: T >= 1, a Python int.
    smoothness: L > 0, of F.
    gap: F0 >= F(w_0) - min F, non-negative.
    heterogeneity: G >= 0, not squared.
    growth: B >= 0, not squared.

  Returns:
    The bound, in the units of a squared gradient.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Allouah, Guerraoui, Gupta, Pinot, Rizk, 2023, arXiv:2309.13591.

  Example:
    >>> import byzjax
    >>> byzjax.theory.robust_descent_bound(
    ...   1.0, num_rounds=100, smoothness=1.0, gap=50.0, heterogeneity=2.0)
    5.0
  """
  name = 'robust_descent_bound'
  checks.check_range(name, 'kappa', kappa, 0)
  check_run(name, num_rounds, smoothness, gap)
  check_data(name, heterogeneity, growth)
  error = heterogeneity_error(kappa, heterogeneity=heterogeneity, growth=growth)
  if error == math.inf:
    return math.inf
  left = 1 - kappa * growth**2 if kappa else 1.0
  return 2 * smoothness * gap / (num_rounds * left) + error


# Proof. All means are over t < T, Y that of E|R_t|^2, X that of E|grad F|^2.
# (1) With g L <= 1, descent gives X + (1 - gL) Y <= 2 F0 / (gT) + mean E|R -
#     grad F|^2, and R - grad F = (R - mbar) + (mbar - grad F).
# (2) D_t = E|mbar_t - grad F(w_t)|^2 <= b D_{t-1} + b^2/(1-b) L^2 g^2 E|R|^2 +
#     (1-b)^2 s/h, by Young with (1-b)/b, and D_0 <= s/h. So its mean is at most
#     (bLg/(1-b))^2 Y + D, with D = ((1-b) + 1/((1-b)T)) s/h.
# (3) E|R - mbar|^2 <= kappa V_t, V_t the spread of the m_i, which are averages
#     of gradients with weights of sum 1. By Minkowski the root of its mean is
#     at most sqrt(N) + sqrt(H + B^2 X): N from noise, whose squared weights sum
#     to b^(2t) + (1-b)/(1+b) at most, and G^2 + B^2 |grad F|^2 averaged. The
#     weights of one gradient over all t sum to 1 at most, but of the first to
#     1/(1-b); |grad F(w_0)|^2 <= 2 L F0.
# (4) |x + y|^2 <= (1+s)|x|^2 + (1+1/s)|y|^2; for any s with (1 + 1/s)
#     (bLg/(1-b))^2 <= 1 - gL the Y cancel, and X <= A + K (sqrt(N) +
#     sqrt(H + B^2 X))^2 with K = (1+s) kappa: quadratic in the last root.
def robust_momentum_bound(
  kappa: float,
  *,
  num_honest: int,
  num_rounds: int,
  learning_rate: float,
  decay: float,
  smoothness: float,
  gap: float,
  variance: float,
  heterogeneity: float,
  growth: float = 0.0,
) -> float:
  r"""The proved bound of SGD with worker momentum and a robust rule.

  A bound on :math:`(1/T) \sum_{t < T} E |\nabla F(w_t)|^2` for
  `worker_momentum` and `optax.sgd`, with any learning rate and decay. It is the
  solution X of

  .. math::
    X = \frac{2 F_0}{\gamma T} + \Big(1 + \frac1s\Big) \frac{\sigma^2}{h}
      \Big(1 - \beta + \frac{1}{(1 - \beta) T}\Big)
      + (1 + s) \kappa \big(\sqrt N + \sqrt{H + B^2 X}\big)^2, \\
    N = \sigma^2 \Big(1 - \frac1h\Big)
      \Big(\frac{1 - \beta}{1 + \beta} + \frac{1}{(1 - \beta^2) T}\Big), \qquad
    H = G^2 + \frac{2 B^2 \beta L F_0}{(1 - \beta) T}

  for the best s with :math:`(1 + 1/s) (\beta L \gamma / (1 - \beta))^2 \le 1 -
  \gamma L`. Momentum reduces the noise N in which Byzantine messages can hide,
  but not G. For a small learning rate, with 1 - beta small but large compared
  with the rate, the bound tends to `heterogeneity_error`. The theorems of the
  references are for one choice of rate and decay; the proof of this bound is in
  the source code.

  The bound is inf if kappa B^2 >= 1 (then no method helps: see
  `heterogeneity_lower_bound`), or if no s satisfies the condition because the
  steps are too long for the momentum, `gamma L + (beta L gamma / (1 - beta))^2
  >= 1`.

  With `differentially_private_gradient`, add `privacy_noise_variance` to the
  variance. This is valid if no per-example gradient exceeds the clip norm;
  otherwise clipping biases the gradients, which the bound does not cover.

  Args:
    kappa: >= 0, of the rule.
    num_honest: h >= 1, a Python int.
    num_rounds: T >= 1, a Python int.
    learning_rate: gamma > 0, constant over rounds.
    decay: beta in [0, 1), of the momentum.
    smoothness: L > 0, of F.
    gap: F0 >= F(w_0) - min F, non-negative.
    variance: sigma^2 >= 0, of one worker's gradient, summed over coordinates.
      The gradients must be unbiased and independent.
    heterogeneity: G >= 0, not squared.
    growth: B >= 0, not squared.

  Returns:
    The bound, in the units of a squared gradient.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2022, arXiv:2205.12173;
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, 2023,
    arXiv:2302.01772.

  Example:
    >>> import byzjax
    >>> for decay in (0.0, 0.9, 0.99):
    ...   bound = byzjax.theory.robust_momentum_bound(
    ...     1.0, num_honest=6, num_rounds=10**6, learning_rate=1e-4,
    ...     decay=decay, smoothness=1.0, gap=1.0, variance=100.0,
    ...     heterogeneity=1.0)
    ...   print(round(bound, 2))
    201.98
    19.26
    4.27
  """
  name = 'robust_momentum_bound'
  checks.check_range(name, 'kappa', kappa, 0)
  checks.check_count(name, 'num_honest', num_honest, 1)
  check_run(name, num_rounds, smoothness, gap)
  checks.check_range(name, 'learning_rate', learning_rate, 0, exclusive=True)
  checks.check_range(name, 'decay', decay, 0, 1)
  checks.check_range(name, 'variance', variance, 0)
  check_data(name, heterogeneity, growth)
  if decay == 1:
    raise ValueError(f'{name} needs decay < 1, got {decay}')
  beta, rounds, rest = decay, num_rounds, 1 - decay
  lag = (beta * smoothness * learning_rate / rest) ** 2
  left = 1 - learning_rate * smoothness - lag
  if left <= 0 or kappa == math.inf:
    return math.inf
  noise = variance / num_honest * (rest + 1 / (rest * rounds))
  spread = variance * (1 - 1 / num_honest)
  spread *= rest / (1 + beta) + 1 / ((1 - beta**2) * rounds)
  begin = 2 * growth**2 * beta * smoothness * gap / (rest * rounds)
  differ = heterogeneity**2 + begin
  descent = 2 * gap / (learning_rate * rounds)

  def bound(s):
    k, a = (1 + s) * kappa, descent + (1 + 1 / s) * noise
    return _stuck(a, k, math.sqrt(spread), differ, growth**2)

  # Every s is a proof, so the best of many is one.
  return min(bound(lag / left + 10 ** (i / 20)) for i in range(-160, 161))


def _stuck(a, k, noise, differ, growth):
  """The X with `X = a + k (noise + sqrt(differ + growth X))^2`, or inf."""
  left = 1 - k * growth
  if left <= 0:
    return math.inf
  half = k * growth * noise
  constant = growth * (a + k * noise**2) + differ
  y = (half + math.sqrt(half**2 + left * constant)) / left
  return a + k * (noise + y) ** 2


def privacy_noise_variance(
  *,
  clip_norm: float,
  noise_multiplier: float,
  batch_size: int,
  num_coordinates: int,
) -> float:
  r"""The variance that privacy noise adds to a worker's gradient.

  .. math::
    d \, (z C / B)^2

  Used in `robust_momentum_bound`, it gives the joint cost of privacy and
  robustness: one part of the noise is averaged over the h honest workers, and
  kappa times the noise is what Byzantine workers can exploit. For rules whose
  error depends on the largest eigenvalue of the covariance instead of its trace
  (`smallest_max_eigenvalue_averaging`, `covariance_filter`) the second part is
  too pessimistic by up to a factor d, because the noise is the same in all
  directions.

  Args:
    clip_norm: C > 0, of `differentially_private_gradient`.
    noise_multiplier: z >= 0.
    batch_size: B >= 1, a Python int.
    num_coordinates: d >= 1, a Python int.

  Returns:
    The variance summed over coordinates, as a float.

  Raises:
    ValueError: if an argument is not in its range.

  References:
    Allouah, Guerraoui, Gupta, Pinot, Stephan, 2023, arXiv:2302.04787.

  Example:
    >>> import byzjax
    >>> byzjax.theory.privacy_noise_variance(
    ...   clip_norm=1.0, noise_multiplier=2.0, batch_size=4,
    ...   num_coordinates=100)
    25.0
  """
  name = 'privacy_noise_variance'
  checks.check_range(name, 'clip_norm', clip_norm, 0, exclusive=True)
  checks.check_range(name, 'noise_multiplier', noise_multiplier, 0)
  checks.check_count(name, 'batch_size', batch_size, 1)
  checks.check_count(name, 'num_coordinates', num_coordinates, 1)
  return num_coordinates * (noise_multiplier * clip_norm / batch_size) ** 2


def check_data(name, heterogeneity, growth):
  checks.check_range(name, 'heterogeneity', heterogeneity, 0)
  checks.check_range(name, 'growth', growth, 0)


def check_run(name, num_rounds, smoothness, gap):
  checks.check_count(name, 'num_rounds', num_rounds, 1)
  checks.check_range(name, 'smoothness', smoothness, 0, exclusive=True)
  checks.check_range(name, 'gap', gap, 0)
