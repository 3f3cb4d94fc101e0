"""The cost of compressed messages, and error rates of their votes."""

import math

from byzjax._src import checks


def golomb_bits(density: float) -> float:
  """Expected bits per coordinate of a ternary message in Golomb-Rice code.

  `s (b + 1 / (1 - (1 - s)^(2^b)) + 1)`: for each of a share s of the
  coordinates, b bits and a unary number for its position, and one bit for its
  sign. The code parameter is `b = max(0, 1 + floor(log2(log(phi - 1) / log(1 -
  s))))`, with phi the golden ratio. The header of a few bits that encodes b is
  not counted.

  Args:
    density: s in [0, 1], the probability that a coordinate is non-zero.

  Returns:
    The bits, as a float; 0 for s = 0.

  Raises:
    ValueError: if s is outside [0, 1].

  References:
    Jin, He, Zhong, Zhang, Quek, Dai, 2023, arXiv:2302.09634; Sattler,
    Wiedemann, Mueller, Samek, 2019, arXiv:1903.02891 (the code).

  Example:
    >>> import byzjax
    >>> byzjax.theory.golomb_bits(0.5)
    1.5
  """
  checks.check_range('golomb_bits', 'density', density, 0, 1)
  if density in (0, 1):
    return 2.0 * density
  golden = (math.sqrt(5) + 1) / 2
  ratio = math.log(golden - 1) / math.log1p(-density)
  b = max(0, 1 + math.floor(math.log2(ratio)))
  block = -math.expm1(2**b * math.log1p(-density))
  return density * (b + 1 / block + 1)


def sign_error_bound(signal_to_noise: float) -> float:
  """An upper bound on the probability that a stochastic gradient sign is wrong.

  With `S = |g| / sigma` and unimodal symmetric noise: `2 / (9 S^2)` if `S > 2 /
  sqrt(3)`, else `1/2 - S / (2 sqrt(3))`. This is less than 1/2 for any S > 0,
  so more workers make a majority vote more reliable. Skewed noise and
  heterogeneous data are not covered.

  Args:
    signal_to_noise: S >= 0, per coordinate.

  Returns:
    The bound, as a float.

  Raises:
    ValueError: if S is negative.

  References:
    Bernstein, Zhao, Azizzadenesheli, Anandkumar, 2019, arXiv:1810.05291.

  Example:
    >>> import byzjax
    >>> round(byzjax.theory.sign_error_bound(2.0), 4)
    0.0556
  """
  checks.check_range('sign_error_bound', 'signal_to_noise', signal_to_noise, 0)
  if signal_to_noise > 2 / math.sqrt(3):
    return 2 / (9 * signal_to_noise**2)
  return 0.5 - signal_to_noise / (2 * math.sqrt(3))


def vote_error_bound(p_right: float, p_wrong: float, num_workers: int) -> float:
  """An upper bound on the probability that a majority vote is wrong or tied.

  `(1 - (sqrt(p) - sqrt(q))^2)^M` if `p > q`, else 1: the Chernoff bound for M
  independent votes with abstentions, of which on average a share p is right and
  a share q wrong (averages over workers, which may differ). For
  `sparsign_codec`, p is the sum of `min(1, B |g_i|)` over the workers whose
  gradient has the sign of the total, divided by M, and q the same for the other
  workers.

  Args:
    p_right: p in [0, 1], the mean share of right votes.
    p_wrong: q in [0, 1], the mean share of wrong votes, with `p + q <= 1`.
    num_workers: M >= 1, a Python int.

  Returns:
    The bound, as a float.

  Raises:
    ValueError: if an argument is outside its range.

  References:
    Jin, He, Zhong, Zhang, Quek, Dai, 2023, arXiv:2302.09634 (a bound of this
    form).

  Example:
    >>> import byzjax
    >>> round(byzjax.theory.vote_error_bound(1 / 3, 0.2 / 3, 3), 2)
    0.72
  """
  name = 'vote_error_bound'
  checks.check_range(name, 'p_right', p_right, 0, 1)
  checks.check_range(name, 'p_wrong', p_wrong, 0, 1)
  checks.check_count(name, 'num_workers', num_workers, 1)
  if p_right + p_wrong > 1 + 1e-12:
    raise ValueError(
      f'{name} needs p_right + p_wrong <= 1, got {p_right} and {p_wrong}'
    )
  if p_right <= p_wrong:
    return 1.0
  return (1 - (math.sqrt(p_right) - math.sqrt(p_wrong)) ** 2) ** num_workers
